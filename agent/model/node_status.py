"""What the node path tells the pod path, and the other way round: frozen values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.ip import Address, Subnet
from agent.model.cluster import AcceptedModes, HostNetworks
from agent.model.network import Network, Uplink
from agent.model.problem import Problem


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """From the node path to the pod path: which networks are prepared here, and what is wrong."""

    synced: bool = False
    blocks: Mapping[Network, tuple[Subnet, ...]] = field(default_factory=dict)
    """The blocks of each network whose node state is in the kernel."""
    excluded: Mapping[Network, frozenset[Subnet]] = field(default_factory=dict)
    """What of these blocks no pod may have."""
    families: Mapping[Network, frozenset[int]] = field(default_factory=dict)
    """The IP versions of which each pod gets an address; of a network that is not here, those of its blocks."""
    limits: Mapping[tuple[Network, int], str] = field(default_factory=dict)
    """Why a network can have no more blocks of an IP version, for those that can't."""
    uplinks: Mapping[Network, Uplink] = field(default_factory=dict)
    """Where the pods of those networks hang that have slaves of a parent."""
    routes: int = 0
    """How many routes to peers' blocks are wanted."""
    programmed: int = 0
    """How many of them are in the kernel."""
    problems: tuple[Problem, ...] = ()
    accepted_modes: AcceptedModes = ()
    """What peers are to be told."""
    guests: frozenset[Subnet] = frozenset()
    """Addresses of this node's pods that are in none of its blocks, and for which its state is in the kernel."""
    refused: frozenset[str] = frozenset()
    """The names of networks whose new mode does not come into force, as other pods would not reach its pods."""
    unserved: frozenset[Network] = frozenset()
    """Networks that pods on this node are on, and whose node state is not in the kernel."""
    away: frozenset[Subnet] = frozenset()
    """Single addresses for which this node has a route to another."""
    host_networks: HostNetworks = field(default_factory=HostNetworks)
    """What this node stands on."""
    pool_faults: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with IPPools, by their names; those that are right are left out."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """What went wrong for a pod, for those who look at the pod."""

    pod: str
    """`namespace/name`."""
    uid: str
    reason: str
    """In CamelCase, for machines."""
    message: str
    once: str = ""
    """What it is about, where one Event is enough, also after the agent was restarted."""


ReservationsInProgress = frozenset[Address]
"""From the pod path to the node path: reserved addresses that an ADD is at work on."""


def _nowhere(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the paths tell how many seconds things took; nobody listens by default."""

    call: Callable[[str, str, str, float], None] = _nowhere
    """A verb of CNI: its name, the network's mode (empty: not known), `ok` or the error's code, seconds."""
    round: Callable[[float], None] = _nowhere
    """A comparison of all node state with the kernel."""


NO_TIMINGS = Timings()


@dataclass(frozen=True, slots=True)
class BlockDemand:
    """How many blocks of each IP version a network's pods need, and until when (time.monotonic) that counts."""

    blocks: Mapping[int, int]
    until: float


Demand = Mapping[Network, BlockDemand]
"""From the pod path to the node path: networks that pods asked for lately."""
