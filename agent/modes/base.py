"""What a mode is: how to wire, check and unwire a pod, and what node state it wants. A mode is one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from agent.errors import CniError, Code
from agent.ip import Address, Subnet
from agent.ipam.attachment import Attachment
from agent.ipam.block_ownership import Ownership
from agent.model.cluster import Snapshot
from agent.model.network import ExtraRoute, Network
from agent.modes.ipip.bird.options import BgpOptions
from agent.modes.node_endpoints import Ends
from agent.objects.pod_port import PodPort
from agent.objects.state import LocalAddress, NodeState, Underlay


@dataclass(frozen=True, slots=True)
class View:
    """All that a mode's desired state may depend on: the cluster, this node, one network."""

    snapshot: Snapshot
    node: str
    local: tuple[LocalAddress, ...]
    network: Network
    blocks: tuple[Subnet, ...]
    bgp: BgpOptions | None = field(default_factory=BgpOptions)
    underlay: Underlay = field(default_factory=Underlay)
    guests: frozenset[Subnet] = frozenset()
    """Single addresses of this network's pods here that are in none of the blocks."""
    held: frozenset[Subnet] = frozenset()
    """Reserved addresses of this network's pods here, guests or at home: wherever they were, they are here now."""
    strays: frozenset[Address] = frozenset()
    """Addresses of the blocks that pods of other modes here have, while the mode is being changed."""
    receives: tuple[str, ...] = ()
    """The modes in which this node takes packets of the network, that of its conf first; none: the network's."""
    ends: Ends | None = None
    """Where each node of the snapshot is; None: to be chosen yet."""
    claims: Ownership | None = None
    """Whose each block of the snapshot is; None: to be found out yet."""
    used: frozenset[Subnet] = frozenset()
    """Those of the blocks that pods here have addresses of."""
    routers: frozenset[Address] = frozenset()
    """The gateways of this node's default routes."""
    ipv6: bool = True
    """Whether the kernel has IPv6."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes in which packets of the network may be sent here."""
        return self.receives or (self.network.mode,)


class Wired(TypedDict):
    """What ADD answers of a pod's wiring, in the form of CNI 1.1: interfaces (the pod's last), ips, routes."""

    interfaces: list[dict[str, Any]]
    ips: list[dict[str, Any]]
    routes: list[dict[str, Any]]


class NodeNotReadyError(Exception):
    """What a pod's wiring hangs on isn't there (any more): the node path will make it."""


class AddressTakenError(CniError):
    """Another pod of this node has the address, though no attachment says so."""

    def __init__(self, address: Address, link: str) -> None:
        what = f"the pod behind link {link} has {address}, though no attachment file says so"
        super().__init__(Code.TRY_AGAIN, what, "restart the agent: it looks for such pods when it starts")


class CheckError(CniError):
    """CHECK found the kernel other than ADD left it."""

    def __init__(self, msg: str) -> None:
        super().__init__(Code.CHECK_FAILED, msg, "delete the pod, so that it is made anew")


class Mode(Protocol):
    """A way of connecting pods. The pod path calls wire, check and unwire; the node path calls desired."""

    def desired(self, view: View) -> NodeState:
        """The node state for one network: a pure function."""

    def port(self, attachment: Attachment) -> PodPort:
        """The node's side of a pod's link: a pure function.

        Raises NodeNotReadyError where the attachment lacks an address or parent that it needs.
        """

    def wire(self, attachment: Attachment, netns: int, routes: tuple[ExtraRoute, ...]) -> Wired:
        """Connect the pod whose namespace is behind the fd `netns`.

        Raises OSError or NodeNotReadyError, and may leave anything half done: `unwire` follows.
        """

    def check(self, attachment: Attachment, wired: Wired, netns: int) -> None:
        """Raises CheckError when the kernel is not as `wire` left it, OSError when it can't be asked."""

    def unwire(self, attachment: Attachment) -> None:
        """Take away all that `wire` made, or as much of it as is there. Raises OSError."""
