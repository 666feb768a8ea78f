"""Frozen values that the pod path and the node path share: nothing here does anything."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from agent.model.usage import PoolStatus

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

API_VERSION = "testcni.io/v1"
FAMILIES: Mapping[int, str] = {4: "ipv4", 6: "ipv6"}
"""The names of the IP versions, where people and metrics tell them apart."""
ROUTE_PROTOCOL = 116
"""By which our routes are known, unless an option says otherwise: 't', registered by nobody (docs/marks.md)."""


Receives = tuple[tuple[str, tuple[str, ...]], ...]
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
    receives: Receives = ()
    created: str = field(default="", compare=False)
    """When its object was created, in a form that sorts by time; empty: nobody says."""
    unavailable: bool = False
    """Whether its condition NetworkUnavailable is True."""

    def modes(self, network: str) -> tuple[str, ...]:
        """In which of the modes ROUTED it takes packets of a network; none: it does not say."""
        return tuple(mode for mode in self.announced(network) if mode in ROUTED)

    def announced(self, network: str) -> tuple[str, ...]:
        """All modes that it has announced for a network; none: it does not say."""
        return dict(self.receives).get(network, ())


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


def address_name(address: Address) -> str:
    """`10.244.3.7` as `10-244-3-7`; IPv6 is written out in full, as a name must not end in `-`."""
    text = address.exploded if address.version == 6 else str(address)
    return text.replace(".", "-").replace(":", "-")


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
class Described:
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


Resource = Node | IPPool | IPBlock | IPReservation | Described


@dataclass(frozen=True, slots=True)
class Ground:
    """What a node needs for itself, and no routed block of pods' addresses may overlap."""

    networks: tuple[tuple[Subnet, str], ...] = ()
    """The networks of its interfaces, each with a text for people, such as `192.0.2.1/24 of eth0`."""
    routers: frozenset[Address] = frozenset()
    """The gateways of its default routes."""
    servers: frozenset[Address] = frozenset()
    """The addresses by which the agent reaches the API server."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster as last seen; `synced` once each kind has been listed completely."""

    synced: bool = False
    nodes: Mapping[str, Node] = field(default_factory=dict)
    pools: Mapping[str, IPPool] = field(default_factory=dict)
    blocks: Mapping[str, IPBlock] = field(default_factory=dict)
    reservations: Mapping[str, IPReservation] = field(default_factory=dict)
    ground: Ground = field(default_factory=Ground)
    """What this node stands on; empty where nobody has looked."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a person must mend: where it is, what is wrong and how to mend it."""

    where: str
    what: str
    remedy: str

    def __post_init__(self) -> None:
        """Write out what can't be shown: a file's name need not be UTF-8, and this goes to people by many ways."""
        for name in ("where", "what", "remedy"):
            text = getattr(self, name)
            if not text.isascii():
                object.__setattr__(self, name, text.encode(errors="backslashreplace").decode())

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


HOST_GW = "host-gw"
VXLAN = "vxlan"
IPIP = "ipip"
EBPF, KERNEL = BACKENDS = ("ebpf", "kernel")  # of the mode vxlan
VNI, VXLAN_PORT = 1, 8472  # as flannel has them, and Linux before the port had a number of its own (4789)
ALWAYS, CROSS_SUBNET, NEVER = ENCAPSULATIONS = ("always", "crossSubnet", "never")
IPVLAN, MACVLAN = "ipvlan", "macvlan"
MODES = (HOST_GW, VXLAN, IPIP, IPVLAN, MACVLAN)
ROUTED = (VXLAN, IPIP, HOST_GW)
"""Modes whose pods are in the nodes' blocks, so that one can follow the other; the preferred first."""
L3, PASSTHRU = "l3", "passthru"
LINK_MODES = {IPVLAN: ("l2", L3, "l3s"), MACVLAN: ("bridge", "private", "vepa", PASSTHRU)}
"""How slaves of one parent see each other, as the kernel and the reference plugins name it; the default first."""
SERVICES = (ipaddress.IPv4Network("10.96.0.0/12"),)  # kubeadm's default


@dataclass(frozen=True, slots=True)
class Network:
    """What a netconf says of the whole network, and so of node state: equal confs are one network."""

    name: str
    mode: str = HOST_GW
    subnet: Subnet | None = None
    """Where pods' addresses lie; None: wherever the node's blocks are."""
    bridge: str = "testcni0"
    mtu: int | None = None
    """Bytes of a pod's interface; None: that of the interface that holds the node's address."""
    masquerade: bool = True
    hairpin: bool = True
    range_start: Address | None = None
    range_end: Address | None = None
    vni: int = VNI
    """Network identifier of the tunnel (mode vxlan), 1 to 2^24 - 1."""
    port: int = VXLAN_PORT
    """UDP port of the tunnel (mode vxlan)."""
    encapsulate: str = ALWAYS
    """To which nodes packets go in tunnels (mode ipip): all, those of other subnets, none."""
    master: str | None = None
    """Parent of the slaves (modes ipvlan, macvlan); None: the interface that holds the node's address."""
    link_mode: str = ""
    """One of LINK_MODES; empty in other modes."""
    gateway: Address | None = None
    """The subnet's router; None: the parent's own."""
    via_host: tuple[Subnet, ...] = ()
    """What pods of ipvlan and macvlan reach through their node: Services, pods of other networks."""
    vxlan_backend: str = EBPF
    """Who carries packets (mode vxlan): eBPF programs, or the kernel's stack and its own vxlan."""
    spoof_check: bool = True
    """Whether a pod may send only from its own addresses and MAC."""
    pool: str = ""
    """The IPPool that pods of this network asked for by name, which makes it a network of its own; empty: any."""

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that its mode carries; its pods get no addresses of others."""
        return (4, 6) if self.mode == HOST_GW else (4,)

    @property
    def shared(self) -> bool:
        """Whether pods are on the parent's own subnet, among machines that we know nothing of."""
        return self.link_mode not in ("", L3)

    @property
    def hand_made(self) -> bool:
        """Whether the range of the netconf is all that this node has: nodes have ranges divided by hand."""
        return bool(self.link_mode and self.subnet and (self.range_start or self.range_end))


@dataclass(frozen=True, slots=True)
class Uplink:
    """Where slaves hang, and what pods must know of their node: found out by the node path for the pod path."""

    device: str
    """The parent."""
    hosts: tuple[Address, ...]
    """The node's own addresses that its pods reach past the parent; it speaks to them as the first."""
    gateway: Address | None = None
    via_host: tuple[Subnet, ...] = ()
    reserved: frozenset[Address] = frozenset()
    """What no pod may have."""
