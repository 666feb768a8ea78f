"""Define the cluster's objects as frozen values that the pod path and the node path share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from agent.ip import Address, Subnet, address_name
from agent.model.usage import PoolStatus

API_VERSION = "testcni.io/v1"


AcceptedModes = tuple[tuple[str, tuple[str, ...]], ...]
"""The modes in which a node accepts packets for pods, by network; the mode of its conf is the first.

A network with a parent interface has only its own mode, as its pods are reached without the node.

The key ENDS is not a network: its values are those InternalIPs of the node that are on one of its interfaces,
where peers would choose another of its addresses by default.
"""
ENDS = "@"


@dataclass(frozen=True, slots=True)
class Node:
    """The fields of a v1 Node that testcni reads: InternalIPs in their order, podCIDRs, labels sorted by key."""

    name: str
    addresses: tuple[Address, ...] = ()
    blocks: tuple[Subnet, ...] = ()
    resource_version: str = field(default="", compare=False)
    labels: tuple[tuple[str, str], ...] = ()
    accepted_modes: AcceptedModes = ()
    created: str = field(default="", compare=False)
    """The time when its object was created, as text that sorts by time; empty if unknown."""
    unavailable: bool = False
    """Whether its condition NetworkUnavailable is True."""

    def announced_modes(self, network: str) -> tuple[str, ...]:
        """Return the modes that it accepts for a network; empty if it published none."""
        return dict(self.accepted_modes).get(network, ())


@dataclass(frozen=True, slots=True)
class IPPool:
    """A range of pod addresses, cut into blocks of prefix length `block_size` that nodes claim."""

    name: str
    cidr: Subnet
    block_size: int
    resource_version: str = field(default="", compare=False)
    start: Address | None = None
    """The first address that pods may have; None: the first of `cidr`."""
    end: Address | None = None
    """The last address that pods may have; None: the last of `cidr`."""
    exclude: tuple[Subnet, ...] = ()
    """Parts of `cidr` that no pod may have."""
    gateway: Address | None = None
    """The router of pods on a subnet shared with other machines; no pod may have it."""
    namespaces: tuple[str, ...] | None = None
    """Namespaces whose pods may request its addresses in any way; None: all namespaces."""
    status: PoolStatus = field(default=PoolStatus(), compare=False)
    """Its status, for people. Pods do not depend on it, so it is not compared."""


@dataclass(frozen=True, slots=True)
class IPBlock:
    """A part of a pool that one node owns. Its name is its CIDR, so that creating the object claims the block."""

    cidr: Subnet
    node: str
    pool: str
    resource_version: str = field(default="", compare=False)
    uid: str = ""
    """Differs from that of an earlier object of the same name; empty in a directory of manifests."""
    created: str = field(default="", compare=False)
    """The time when the object was created, as text that sorts by time; empty if unknown."""
    shared: bool = False
    """Whether a network claimed it whose pods are on their parent's subnet: then no network routes it.

    False in blocks that a version without this field wrote, for any network.
    """

    @property
    def name(self) -> str:
        """Return the object's name: the CIDR with every `.`, `:` and `/` as `-` (a DNS-1123 name)."""
        return block_name(self.cidr)


def block_name(cidr: Subnet) -> str:
    """Return `10.244.3.0/24` as `10-244-3-0-24`."""
    return f"{address_name(cidr.network_address)}-{cidr.prefixlen}"


WHILE_POD, ALWAYS_KEPT = KEEPS = ("Pod", "Always")
"""The times that a reservation is kept: until its pod is deleted, or until a person deletes the reservation."""


@dataclass(frozen=True, slots=True)
class IPReservation:
    """An address kept for its owner. Its name is the address, so that creating the object claims the address."""

    address: Address
    owner: str
    """`namespace/pod` where pods keep their names, else `namespace/Kind/name` of their controller."""
    pod: str = ""
    """`namespace/name` of the pod that has it or had it last; empty if a person reserved it and no pod had it."""
    node: str = ""
    """The node of that pod; empty if `pod` is."""
    network: str = ""
    """The network's name in the netconf; empty: any."""
    since: datetime | None = None
    """The time when that pod got it; None if `pod` is empty."""
    released: datetime | None = None
    """The time when that pod released it; None: it is in use."""
    asks: str = ""
    """The node that must confirm, as the address is in its block; empty if none must, or it has confirmed."""
    refused: str = ""
    """The reason why that node refused."""
    resource_version: str = field(default="", compare=False)
    keep: str = ""
    """The time that it outlives its pod: one of KEEPS; empty: the time of the agents' option keep-address."""

    @property
    def name(self) -> str:
        """Return the object's name: the address with every `.` and `:` as `-`."""
        return address_name(self.address)

    @property
    def in_use(self) -> bool:
        """Return whether a pod has the address, or is about to get it."""
        return self.released is None and not self.asks and not self.ahead

    @property
    def ahead(self) -> bool:
        """Return whether a person reserved it and no pod had it yet."""
        return not self.node


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """The metadata of a v1 Pod or Namespace that testcni reads: annotations and controller."""

    kind: Literal["Pod", "Namespace"]
    name: str
    """The object's name; that of a Pod is `namespace/name`."""
    uid: str = ""
    annotations: tuple[tuple[str, str], ...] = ()
    """The annotations that begin with `testcni.io/`."""
    controller: str = ""
    """`Kind/name` of the controller; empty if there is none."""
    template: str = ""
    """The label pod-template-hash, which the name of a Deployment's ReplicaSet ends with."""
    resource_version: str = field(default="", compare=False)


Resource = Node | IPPool | IPBlock | IPReservation | ObjectMetadata


@dataclass(frozen=True, slots=True)
class HostNetworks:
    """Networks and addresses that a node needs for itself: no routed block of pods' addresses may overlap them."""

    interfaces: tuple[tuple[Subnet, str], ...] = ()
    """The networks of its interfaces, each with a text for people, such as `192.0.2.1/24 of eth0`."""
    gateways: frozenset[Address] = frozenset()
    """The gateways of its default routes."""
    api_servers: frozenset[Address] = frozenset()
    """The addresses by which the agent reaches the API server."""


class Derived:
    """Values that are derived from parts of snapshots, kept for as long as the parts are the same objects."""

    KEPT = 4  # values: the parts of the agent see snapshots that differ a little

    def __init__(self) -> None:
        self._known: tuple[tuple[tuple[object, ...], object], ...] = ()

    def get(self, parts: tuple[object, ...], make: Callable[[], object]) -> object:
        """Return the value of these parts. Several threads may each make one; the last one is kept."""
        for known, value in self._known:
            if all(one is other for one, other in zip(known, parts, strict=True)):
                return value
        value = make()
        self._known = ((parts, value), *self._known)[: self.KEPT]
        return value


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster as last seen; `synced` once each kind has been listed completely."""

    synced: bool = False
    nodes: Mapping[str, Node] = field(default_factory=dict)
    pools: Mapping[str, IPPool] = field(default_factory=dict)
    blocks: Mapping[str, IPBlock] = field(default_factory=dict)
    reservations: Mapping[str, IPReservation] = field(default_factory=dict)
    host_networks: HostNetworks = field(default_factory=HostNetworks)
    """Networks and addresses of this node itself. Empty where they were not read."""
    derived: Derived = field(default_factory=Derived, compare=False, repr=False)
    """A snapshot that was made of another one by `replace` shares it."""


MOMENT = 60.0  # seconds for which podCIDRs of a deleted Node are kept, as it may be created again
