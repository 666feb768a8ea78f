"""Define the frozen values that the node path and the pod path pass to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.ip import Address, Subnet
from agent.model.cluster import AcceptedModes, HostNetworks
from agent.model.network import Network, ParentLink
from agent.model.problem import Problem


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The networks prepared on this node, and its problems: the node path tells them to the pod path."""

    synced: bool = False
    blocks: Mapping[Network, tuple[Subnet, ...]] = field(default_factory=dict)
    """The blocks of each network whose node state is in the kernel."""
    excluded: Mapping[Network, frozenset[Subnet]] = field(default_factory=dict)
    """Parts of these blocks that no pod may have."""
    families: Mapping[Network, frozenset[int]] = field(default_factory=dict)
    """The IP versions of which each pod gets an address; for a network missing here, those of its blocks."""
    limits: Mapping[tuple[Network, int], str] = field(default_factory=dict)
    """The reasons why networks cannot get more blocks of an IP version; networks that can are missing here."""
    uplinks: Mapping[Network, ParentLink] = field(default_factory=dict)
    """The parent interface of networks whose modes need one."""
    routes: int = 0
    """The number of routes to peers' blocks that are wanted."""
    programmed: int = 0
    """The number of these routes that are in the kernel."""
    problems: tuple[Problem, ...] = ()
    accepted_modes: AcceptedModes = ()
    """The accepted modes to publish to peers."""
    off_block_pods: frozenset[Subnet] = frozenset()
    """Addresses of this node's pods outside of its blocks whose node state is in the kernel."""
    refused: frozenset[str] = frozenset()
    """Names of networks whose new mode is refused, as pods on other nodes could not reach its pods."""
    unserved: frozenset[Network] = frozenset()
    """Networks with pods on this node whose node state is not in the kernel."""
    roaming: frozenset[Subnet] = frozenset()
    """Single addresses for which this node has a route to another node."""
    host_networks: HostNetworks = field(default_factory=HostNetworks)
    """Networks and addresses of the node itself."""
    pool_faults: Mapping[str, str] = field(default_factory=dict)
    """The faults of IPPools, by name; pools without a fault are missing here."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """An Event about a pod: what went wrong."""

    pod: str
    """`namespace/name`."""
    uid: str
    reason: str
    """The reason in CamelCase, for machines."""
    message: str
    once: str = ""
    """The subject, if one Event is enough for it, even after a restart of the agent; else empty."""


ReportEvent = Callable[[PodEvent], None]
"""Takes an Event about a pod, to be written to the cluster. It never waits."""


def ignore_event(_event: PodEvent) -> None:
    """Drop an event: there is no cluster to write it to."""


ReservationsInProgress = frozenset[Address]
"""The reserved addresses that an ADD is about to use: the pod path tells them to the node path."""


def _nowhere(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Timings:
    """Callbacks that get durations in seconds; by default they do nothing."""

    call: Callable[[str, str, str, float], None] = _nowhere
    """Takes a CNI verb, the network's mode (empty if unknown), `ok` or the error's code, and seconds."""
    round: Callable[[float], None] = _nowhere
    """Takes the seconds of a round of the reconciler."""


NO_TIMINGS = Timings()


@dataclass(frozen=True, slots=True)
class BlockDemand:
    """The number of blocks of each IP version that a network's pods need, and until when (time.monotonic)."""

    blocks: Mapping[int, int]
    until: float


Demand = Mapping[Network, BlockDemand]
"""The networks of which pods requested addresses lately: the pod path tells them to the node path."""
