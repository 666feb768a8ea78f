"""The interface of a mode: it wires, checks and unwires a pod, and computes the node state.

A mode is a file or a folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from prometheus_client.metrics_core import Metric

from agent.codec.json_fields import Fields
from agent.config import AgentConfig
from agent.errors import CniError, Code
from agent.ip import Address, Subnet
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.block_ownership import BlockOwnership
from agent.kernel.bpf.map_entries import Count
from agent.model.cluster import Snapshot
from agent.model.network import ExtraRoute, ModeOptions, Network
from agent.model.node_view import NodeView
from agent.model.problem_board import ProblemBoard
from agent.modes.node_endpoints import NodeEndpoints
from agent.modes.packet_monitor import PacketMonitor
from agent.objects.base import NodeObject
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import PodPort
from agent.objects.state import LocalAddress, NodeState, Underlay
from agent.options import Option
from agent.runtime.controller import Source
from agent.runtime.threads import Part

PLAIN = ""
"""Stands in place of a mode: packets go to a peer as they are, without a tunnel. Every node accepts those."""


@dataclass(frozen=True, slots=True)
class RoutedModes:
    """The names of the routed modes, as far as one mode must know of others while a network changes its mode."""

    tunnels: tuple[str, ...]
    """Modes in which packets between nodes travel in tunnels; the first is preferred where nodes have several."""
    plain: tuple[str, ...]
    """Modes in which packets travel as they are."""
    ipv6: tuple[str, ...]
    """Modes that carry IPv6."""

    @property
    def by_preference(self) -> tuple[str, ...]:
        """All of them, the preferred first: a tunnel works on any underlay."""
        return (*self.tunnels, *self.plain)

    def known(self, modes: Iterable[str]) -> tuple[str, ...]:
        """Return those of some modes that are routed modes of this agent."""
        return tuple(mode for mode in modes if mode in self.tunnels or mode in self.plain)

    def path(self, mode: str) -> str:
        """Return how packets travel in a mode: PLAIN, or the tunnel's mode itself."""
        return mode if mode in self.tunnels else PLAIN


@dataclass(frozen=True, slots=True)
class ModeContext:
    """All that a mode's desired state may depend on: the cluster, this node, one network."""

    snapshot: Snapshot
    node: str
    local: tuple[LocalAddress, ...]
    network: Network
    blocks: tuple[Subnet, ...]
    routed: RoutedModes = field(kw_only=True)
    underlay: Underlay = field(default_factory=Underlay)
    off_block_pods: frozenset[Subnet] = frozenset()
    """Single addresses of this network's pods here that are in none of the blocks."""
    reserved_addresses: frozenset[Subnet] = frozenset()
    """Reserved addresses of this network's pods here, in a block of this node or not."""
    other_mode_pods: frozenset[Address] = frozenset()
    """Addresses of the blocks that pods of other modes here have, while the mode is being changed."""
    accepted_modes: tuple[str, ...] = ()
    """The modes in which this node takes packets of the network, that of its conf first; none: the network's."""
    ends: NodeEndpoints | None = None
    """The address of each node of the snapshot to which packets for it go; None: still to be chosen."""
    claims: BlockOwnership | None = None
    """The owner of each block of the snapshot; None: still to be found out."""
    used: frozenset[Subnet] = frozenset()
    """The blocks of this node of which pods here have addresses."""
    routers: frozenset[Address] = frozenset()
    """The gateways of this node's default routes."""
    ipv6: bool = True
    """Whether the kernel has IPv6."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes in which packets of the network may be sent here."""
        return self.accepted_modes or (self.network.mode,)


class Wired(TypedDict):
    """The answer of ADD about a pod's wiring, in the form of CNI 1.1: interfaces (the pod's last), ips, routes."""

    interfaces: list[dict[str, Any]]
    ips: list[dict[str, Any]]
    routes: list[dict[str, Any]]


class NodeNotReadyError(Exception):
    """A part of the node that a pod's wiring depends on isn't there (any more): the node path will make it."""


class AddressTakenError(CniError):
    """Another pod of this node has the address, though no attachment says so."""

    def __init__(self, address: Address, link: str) -> None:
        what = f"the pod behind link {link} has {address}, though no attachment file says so"
        super().__init__(Code.TRY_AGAIN, what, "restart the agent: it looks for such pods when it starts")


class CheckError(CniError):
    """CHECK found the kernel other than ADD left it."""

    def __init__(self, msg: str) -> None:
        super().__init__(Code.CHECK_FAILED, msg, "delete the pod, so that it is created again")


@dataclass(frozen=True, slots=True)
class ConfFields:
    """The fields of a netconf, of which each mode takes its own."""

    top: Fields
    ipam: Fields
    """The fields of the object `ipam`."""


@dataclass(frozen=True, slots=True)
class AgentContext:
    """The agent that runs the parts of a mode."""

    conf: AgentConfig
    board: ProblemBoard
    host: HostKernel


def _no_threads(_view: NodeView) -> Mapping[str, Part]:
    return {}


@dataclass(frozen=True, slots=True)
class ModeParts:
    """The parts that a mode adds to a running agent, with what they share."""

    objects: tuple[NodeObject, ...] = ()
    """Node objects in place of those of the same kind that `node_objects` returns, or beside them."""
    threads: Callable[[NodeView], Mapping[str, Part]] = _no_threads
    """Returns what runs in threads, by the names of the threads."""
    wake_on: tuple[Source, ...] = ()
    """The sources that its node objects read beside the desired state: a change begins a reconciler's round."""
    report: Callable[[], Mapping[str, object]] = dict
    """Returns what the status report says of the mode, beside its networks."""
    summary: Callable[[], Iterable[str]] = tuple
    """Returns lines of text about the mode for the status report, beside its networks."""
    metrics: Callable[[], Iterable[Metric]] = tuple


class Mode(ABC):
    """A way of connecting pods. The pod path calls wire, check and unwire; the node path calls desired."""

    options: ClassVar[type[ModeOptions]]
    """The class of the options in a netconf; it has the mode's name, too."""
    agent_options: ClassVar[tuple[Option, ...]] = ()
    """The options of the agent that belong to the mode."""
    tunnels: ClassVar[bool] = False
    """Whether packets between nodes travel in tunnels, which both ends must have; for routed modes."""

    needs_underlay: ClassVar[bool] = False
    """Whether what it desires depends on how nodes of other subnets are reached, which costs time to look up."""

    @property
    def name(self) -> str:
        """The mode's name in netconfs."""
        return self.options.mode

    def parse_options(self, given: ConfFields) -> ModeOptions:
        """Return the options that a netconf gives for this mode, whichever mode it names. Raises CniError 7."""
        return self.options()

    def exclusive_fields(self, options: ModeOptions) -> Mapping[str, object]:
        """Return what these options set that is an error in a netconf of another mode, by the netconf's fields."""
        return {}

    def complete_options(self, network: Network, given: ConfFields) -> ModeOptions:
        """Return the options of a network of this mode with the defaults that depend on other fields.

        Raises CniError 7 where fields contradict each other.
        """
        return network.options

    def device(self, network: Network) -> str:
        """Return the node's device that pods of a network depend on, empty where each network finds its own."""
        return ""

    def report(self, network: Network) -> Mapping[str, object]:
        """Return what the status report says of a network beside what it says of all."""
        return {}

    def node_objects(self) -> tuple[NodeObject, ...]:
        """Return what the node path programs for this mode only: new values, as they remember what they did."""
        return ()

    def packet_counts(self, host: HostKernel) -> Mapping[str, Count]:
        """Return what became of packets in the mode's eBPF programs, by reason. Raises OSError."""
        return {}

    def packet_monitor(self, run_dir: Path, options: Mapping[str, type[ModeOptions]]) -> PacketMonitor | None:
        """Return what happens to the mode's packets from now on, None where nothing shows it.

        `options`: those of all modes, by which the attachments in `run_dir` are read. Raises OSError.
        """
        return None

    def parts(self, agent: AgentContext) -> ModeParts:
        """Return what the mode adds to an agent that runs. It is called once for each agent."""
        return ModeParts()

    def uninstall(self, run_dir: Path) -> Iterator[str]:
        """Remove what the mode leaves beside what the node path programs; yield what. Raises OSError."""
        yield from ()

    @abstractmethod
    def desired(self, view: ModeContext) -> NodeState:
        """The node state for one network: a pure function."""

    @abstractmethod
    def port(self, attachment: Attachment) -> PodPort:
        """The node's side of a pod's link: a pure function.

        Raises NodeNotReadyError where the attachment lacks an address or parent that it needs.
        """

    @abstractmethod
    def wire(
        self, host: HostKernel, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]
    ) -> Wired:
        """Connect the pod whose namespace is behind the fd `netns_fd`.

        Raises OSError or NodeNotReadyError, and may leave anything half done: `unwire` follows.
        """

    @abstractmethod
    def check(self, host: HostKernel, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Raises CheckError when the kernel is not as `wire` left it, OSError when it can't be asked."""

    def forget_link(self, host: HostKernel, index: int) -> None:  # noqa: B027 - most modes know nothing by a link's index
        """Forget what is known of a pod by the index of its host end only. Raises OSError."""

    @abstractmethod
    def unwire(self, host: HostKernel, attachment: Attachment) -> None:
        """Take away all that `wire` made, or as much of it as is there. Raises OSError."""
