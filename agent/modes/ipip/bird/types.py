"""The configuration and the status of BIRD, as frozen values."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from agent.config import GraceTimes
from agent.model.problem import Problem
from agent.runtime import atomic_file

AS_NUMBERS = range(1, 2**32 - 1)  # the last is reserved (RFC 7300)
AS_ALLOWED = f"{AS_NUMBERS[0]} to {AS_NUMBERS[-1]}; 64512 to 65534 are private"
DEFAULT_AS = 64512  # the first private one (RFC 6996)
KERNEL_PROTOCOL = 12  # RTPROT_BIRD: stock BIRD writes no other
METRIC = 84  # our mark, together with the protocol `bird`; the default of other BIRDs is 32
MAIN_TABLE = 254
PASSWORD_LIMIT = 80  # TCP_MD5SIG_MAXKEYLEN


@dataclass(frozen=True, slots=True)
class BirdTimes:
    """The times for which the agent waits for BIRD, in seconds."""

    retire: float = GraceTimes().daemon
    """The time that BIRD runs on when it is not wanted any more."""
    hung: float = 30.0
    """The time until a BIRD that does not answer is killed, and started again."""
    answer: float = 5.0
    """The wait for one reply; BIRD answers between two rounds of its work."""
    session: float = 10.0
    """The time until a missing session is a problem; a node that starts needs 3."""


class BirdError(Exception):
    """BIRD cannot be used: what is wrong, and how to fix it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what
        self.remedy = remedy

    def problem(self, where: str = "bird") -> Problem:
        """Return the error as a problem."""
        return Problem(where, self.what, self.remedy)


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A BGP password (RFC 2385), which is never in a log, trace or status."""

    text: str

    def __post_init__(self) -> None:
        if not self.text or len(self.text) > PASSWORD_LIMIT:
            raise BirdError(
                f"a BGP password has {len(self.text)} characters", f"the kernel takes 1 to {PASSWORD_LIMIT}"
            )
        if not self.text.isascii() or not self.text.isprintable() or '"' in self.text:
            raise BirdError(
                "a BGP password has a character that a BIRD configuration cannot have", 'printable ASCII without "'
            )

    def __repr__(self) -> str:
        return "Secret(...)"


def read_secret(path: Path) -> Secret:
    """Return the password in a file of mode 0600 or stricter, without the newline at its end. Raises BirdError."""
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BirdError(f"password file {path} may be read by others", f"chmod 600 {path}")
        return Secret(atomic_file.read(path).decode().rstrip("\n"))
    except (OSError, UnicodeError) as error:
        raise BirdError(f"password file {path}: {error}", "write the password into it, mode 0600") from None
    except BirdError as error:
        raise BirdError(f"{path}: {error.what}", error.remedy) from None


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, as an iBGP neighbour."""

    name: str
    address: IPv4Address
    reflector: bool = False


@dataclass(frozen=True, slots=True)
class External:
    """A router outside the cluster, to which BIRD announces the blocks."""

    address: IPv4Address
    asn: int
    password: Secret | None = None
    multihop: bool = False
    """Whether it may be in another subnet; else an eBGP neighbour must be on-link."""

    @property
    def name(self) -> str:
        """Return its name in sessions."""
        return f"external {self.address}"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The path to nodes that plain routes do not reach."""

    device: str
    gateway: IPv4Address | None = None
    """Next hop on that device; None: the node itself, as an ipip device has it."""
    mtu: int | None = None
    """Bytes of a packet that goes this way; None: the device's own MTU."""


@dataclass(frozen=True, slots=True)
class BirdConfig:
    """All inputs of bird.conf; equal values give equal text."""

    node: str
    address: IPv4Address
    """This node's InternalIP: source of sessions, and router id."""
    asn: int = DEFAULT_AS
    blocks: tuple[IPv4Network, ...] = ()
    pools: tuple[IPv4Network, ...] = ()
    peers: tuple[Peer, ...] = ()
    externals: tuple[External, ...] = ()
    reflector: bool = False
    direct: tuple[IPv4Network, ...] = ()
    """Networks of the underlay whose nodes are reached by plain routes, as in host-gw."""
    tunnel: Tunnel | None = None
    """The tunnel by which all other nodes are reached; None: they are not reached at all."""
    source: IPv4Address | None = None
    """Source address of the node's own packets to pods; None: the kernel chooses."""
    guard: bool = True
    """Whether unused addresses of own blocks are `unreachable` in the kernel."""
    password: Secret | None = None
    """The password of the sessions between nodes."""
    table: int = MAIN_TABLE
    metric: int = METRIC

    def join(self, other: BirdConfig) -> BirdConfig:
        """Return one configuration for two networks: the blocks of both, all other values of the first."""
        found, pools = {*self.blocks, *other.blocks}, {*self.pools, *other.pools}
        return replace(self, blocks=tuple(sorted(found)), pools=tuple(sorted(pools)))


class State(StrEnum):
    """States of a BGP session (RFC 4271, section 8.2.2), and BIRD's own for a session that is turned off."""

    IDLE = "Idle"
    CONNECT = "Connect"
    ACTIVE = "Active"
    OPEN_SENT = "OpenSent"
    OPEN_CONFIRM = "OpenConfirm"
    ESTABLISHED = "Established"
    CLOSE = "Close"
    DOWN = "Down"


@dataclass(frozen=True, slots=True)
class Session:
    """A BGP session: the peer, the state, and the numbers of routes from and to the peer."""

    peer: str
    state: State
    imported: int = 0
    exported: int = 0
    error: str = ""
    """BIRD's reason for its last end."""


@dataclass(frozen=True, slots=True)
class BirdStatus:
    """The state of BIRD, for status and metrics."""

    running: bool = False
    version: str = ""
    pid: int = 0
    starts: int = 0
    """The number of times that this agent has started it."""
    sessions: tuple[Session, ...] = ()
    kernel_routes: int = 0
    """The number of BIRD's routes in the kernel."""
    problems: tuple[Problem, ...] = ()

    def by_state(self) -> dict[State, int]:
        """Return the number of sessions in each state; 0 for states without sessions."""
        return count(session.state for session in self.sessions)


def count(states: Iterable[State]) -> dict[State, int]:
    """Return how often each state occurs."""
    numbers = dict.fromkeys(State, 0)
    for state in states:
        numbers[state] += 1
    return numbers
