"""Frozen values that the pod path and the node path share: nothing here does anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from agent.ip import Address, Subnet, address_name
from agent.model.usage import PoolStatus

API_VERSION = "testcni.io/v1"


AcceptedModes = tuple[tuple[str, tuple[str, ...]], ...]
"""By the name of a network the modes in which a node takes packets for pods now; that of its conf first.

A network of ipvlan or macvlan has its mode alone: pods are reached past the node.

Under ENDS, which is no network's name, those of its InternalIPs that it has on an interface where others would
send to another by themselves.
"""
ENDS = "@"


@dataclass(frozen=True, slots=True)
class Node:
    """What we need of a v1 Node: its InternalIPs in their order, its podCIDRs and its labels, sorted."""

    name: str
    addresses: tuple[Address, ...] = ()
    blocks: tuple[Subnet, ...] = ()
    resource_version: str = field(default="", compare=False)
    labels: tuple[tuple[str, str], ...] = ()
    accepted_modes: AcceptedModes = ()
    created: str = field(default="", compare=False)
    """When its object was created, in a form that sorts by time; empty: nobody says."""
    unavailable: bool = False
    """Whether its condition NetworkUnavailable is True."""

    def announced(self, network: str) -> tuple[str, ...]:
        """All modes that it has announced for a network; none: it does not say."""
        return dict(self.accepted_modes).get(network, ())


@dataclass(frozen=True, slots=True)
class IPPool:
    """A range of pod addresses, cut into blocks of prefix length `block_size` that nodes claim."""

    name: str
    cidr: Subnet
    block_size: int
    resource_version: str = field(default="", compare=False)
    start: Address | None = None
    """The first address of `cidr` that pods may have; None: its first."""
    end: Address | None = None
    """The last one."""
    exclude: tuple[Subnet, ...] = ()
    """What within `cidr` is others'."""
    gateway: Address | None = None
    """The router of pods that share their subnet with others; no pod's."""
    namespaces: tuple[str, ...] | None = None
    """Whose pods may ask for its addresses, in whichever way; None: those of all namespaces."""
    status: PoolStatus = field(default=PoolStatus(), compare=False)
    """What people are told of it: it changes nothing for pods, so a pool with another status is the same pool."""


@dataclass(frozen=True, slots=True)
class IPBlock:
    """A part of a pool that one node owns; named for its CIDR, so creating it is the claim."""

    cidr: Subnet
    node: str
    pool: str
    resource_version: str = field(default="", compare=False)
    uid: str = ""
    """Tells it from one of the same name that was there before (Kubernetes); empty where nobody gives one."""
    created: str = field(default="", compare=False)
    """When the object was created, in a form that sorts by time; empty: nobody says."""
    shared: bool = False
    """Whether a network claimed it whose pods share their parent's subnet: then no network routes it.

    False in blocks of versions that did not write it, whatever claimed them.
    """

    @property
    def name(self) -> str:
        """The object's name: the CIDR with every `.`, `:` and `/` as `-` (a DNS-1123 name)."""
        return block_name(self.cidr)


def block_name(cidr: Subnet) -> str:
    """`10.244.3.0/24` as `10-244-3-0-24`."""
    return f"{address_name(cidr.network_address)}-{cidr.prefixlen}"


WHILE_POD, ALWAYS_KEPT = KEEPS = ("Pod", "Always")
"""How long a reservation is kept: until its pod is gone; until a person deletes it."""


@dataclass(frozen=True, slots=True)
class IPReservation:
    """An address that stays with its owner; named for the address, so creating it is the claim."""

    address: Address
    owner: str
    """`namespace/pod` where pods keep their names, else `namespace/Kind/name` of their controller."""
    pod: str = ""
    """`namespace/name` of who has it, or had it last; empty: a person reserved it, and no pod has had it yet."""
    node: str = ""
    """Where that pod is, or was; empty with `pod`."""
    network: str = ""
    """The network's name in the netconf; empty: any."""
    since: datetime | None = None
    """When that pod got it; None with an empty `pod`."""
    released: datetime | None = None
    """When that pod gave it back; None: it is in use."""
    asks: str = ""
    """The node that has to agree, as the address is in its block; empty: none has to, or it has agreed."""
    refused: str = ""
    """Why that node did not agree."""
    resource_version: str = field(default="", compare=False)
    keep: str = ""
    """How long it outlives its pod: one of KEEPS; empty: for the time of the agents' option keep-address."""

    @property
    def name(self) -> str:
        """The object's name: the address with every `.` and `:` as `-`."""
        return address_name(self.address)

    @property
    def in_use(self) -> bool:
        """Whether a pod has it, or is about to."""
        return self.released is None and not self.asks and not self.ahead

    @property
    def ahead(self) -> bool:
        """Whether a person reserved it, and no pod has had it yet."""
        return not self.node


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """What we need of a v1 Pod or Namespace: what people wrote on it, and who made it."""

    kind: Literal["Pod", "Namespace"]
    name: str
    """A pod's is `namespace/name`."""
    uid: str = ""
    annotations: tuple[tuple[str, str], ...] = ()
    """Only those that begin with `testcni.io/`."""
    controller: str = ""
    """`Kind/name` of the controller; empty: a pod of its own."""
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


MOMENT = 60.0  # seconds for which podCIDRs are kept, those of a deleted Node too, as it may be created again
