"""What the two paths hand to each other: frozen values, published one at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from agent.model.cluster import Address, Ground, Network, Problem, Receives, Subnet, Uplink

T = TypeVar("T")


class Latest(Generic[T]):
    """The newest value of something; who waits for it is woken by the next one."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._condition = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def get(self) -> T:
        """The value now."""
        return self._value

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each publication, in the publisher's thread."""
        self._listeners.append(listener)

    def publish(self, value: T) -> None:
        """Make `value` the newest."""
        self.update(lambda _old: value)

    def update(self, change: Callable[[T], T]) -> None:
        """Make the newest what `change` makes of it; nobody is woken when it is the same."""
        with self._condition:
            new = change(self._value)
            if new == self._value:
                return
            self._value = new
            self._condition.notify_all()
        for listener in self._listeners:
            listener()

    def wait(self, wanted: Callable[[T], bool], deadline: float) -> bool:
        """Wait until `wanted` is true of the value, or until `deadline` (time.monotonic); whether it is."""
        with self._condition:
            return self._condition.wait_for(
                lambda: wanted(self._value), timeout=max(0.0, deadline - time.monotonic())
            )


class Pace:
    """So many turns at once, then one in so many seconds: for what others can make come again and again."""

    def __init__(self, at_once: int, every: float) -> None:
        self._most = self._left = float(at_once)
        self._every = every
        self._since = time.monotonic()
        self.spent = 0

    def spend(self) -> bool:
        """Whether there is a turn left; it is gone then."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._since) / self._every)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        self.spent += 1
        return True

    def wait(self, stop: threading.Event) -> None:
        """Spend a turn, when there is one or `stop` is set."""
        while not self.spend() and not stop.wait(max(0.001, (1 - self._left) * self._every)):
            pass


def pace() -> Pace:
    """The pace of each loop that others wake: parts may wake each other in a circle, but not at full speed."""
    return Pace(60, 1.0)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """From the node path to the pod path: which networks are prepared here, and what is wrong."""

    synced: bool = False
    blocks: Mapping[Network, tuple[Subnet, ...]] = field(default_factory=dict)
    """The blocks of each network whose node state is in the kernel."""
    withheld: Mapping[Network, frozenset[Subnet]] = field(default_factory=dict)
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
    receives: Receives = ()
    """What peers are to be told."""
    guests: frozenset[Subnet] = frozenset()
    """Addresses of this node's pods that are in none of its blocks, and for which its state is in the kernel."""
    refused: frozenset[str] = frozenset()
    """The names of networks whose new mode does not come into force, as other pods would not reach its pods."""
    unserved: frozenset[Network] = frozenset()
    """Networks that pods on this node are on, and whose node state is not in the kernel."""
    away: frozenset[Subnet] = frozenset()
    """Single addresses for which this node has a route to another."""
    ground: Ground = field(default_factory=Ground)
    """What this node stands on."""
    pool_faults: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with IPPools, by their names; those that are right are left out."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What went wrong for a pod, for those who look at the pod."""

    pod: str
    """`namespace/name`."""
    uid: str
    reason: str
    """In CamelCase, for machines."""
    message: str
    once: str = ""
    """What it is about, where one Event is enough, also after the agent was restarted."""


class Notices:
    """Notices on their way from the pod path, which does not wait: the oldest go where nobody takes them."""

    def __init__(self) -> None:
        self._waiting: deque[Notice] = deque(maxlen=256)
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each notice, in its thread."""
        self._listeners.append(listener)

    def put(self, notice: Notice) -> None:
        """Hand one over."""
        self._waiting.append(notice)
        for listener in self._listeners:
            listener()

    def take(self) -> Notice | None:
        """The oldest one, which is then gone."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None


Busy = frozenset[Address]
"""From the pod path to the node path: reserved addresses that an ADD is at work on."""


def _nowhere(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Sink:
    """Where the paths tell how many seconds things took; nobody listens by default."""

    call: Callable[[str, str, str, float], None] = _nowhere
    """A verb of CNI: its name, the network's mode (empty: not known), `ok` or the error's code, seconds."""
    round: Callable[[float], None] = _nowhere
    """A comparison of all node state with the kernel."""


NOBODY = Sink()


class Tally:
    """Counts by labels, which only grow; for several threads at once."""

    def __init__(self, *known: tuple[str, ...]) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = dict.fromkeys(known, 0)

    def add(self, *labels: str, by: int = 1) -> None:
        """Count `by` more."""
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + by

    def all(self) -> Mapping[tuple[str, ...], int]:
        """The counts now; those known from the start are there even while they are 0."""
        with self._lock:
            return dict(self._counts)


@dataclass(frozen=True, slots=True)
class Want:
    """How many blocks of each IP version a network's pods need, and until when (time.monotonic) that counts."""

    blocks: Mapping[int, int]
    until: float


Demand = Mapping[Network, Want]
"""From the pod path to the node path: networks that pods asked for lately."""
