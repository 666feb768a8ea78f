"""Node state as frozen values: what a mode wants of the kernel, and what the kernel has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from agent.ip import Address, Interface, Subnet
from agent.model.marks import IPIP_DEVICE, VXLAN_DEVICE
from agent.model.network import Uplink
from agent.model.problem import Problem
from agent.modes.ipip.bird.types import BirdConfig
from agent.modes.vxlan.options import EBPF

IPV6_MIN_MTU = 1280  # bytes: a link with less has no IPv6 (RFC 8200, section 5)


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address that the node itself has, on a link that testcni did not make."""

    device: str
    mtu: int
    interface: Interface
    gateway: Address | None = None
    """The default gateway by this link, if it is in this address's network."""
    behind: bool = False
    """Whether nobody is on-link by it, as on lo: for an InternalIP, `device` is that of the way to other nodes."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """What a tunnel has to know of the network between the nodes."""

    ipip: bool = True
    """Whether ipip devices encapsulate here; else eBPF does."""
    device: str = ""
    """By which packets to nodes of other subnets leave; empty: there are none, or no way to them."""
    gateway: IPv4Address | None = None
    """Their next hop."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table with our protocol number."""

    dst: Subnet
    gateway: Address | None
    device: str
    metric: int = 0
    mtu: int | None = None
    """Bytes of a packet that goes this way; None: the device's own MTU."""

    @property
    def onlink(self) -> bool:
        """Whether the gateway is behind the device though no address of the device says so."""
        return self.gateway is not None and self.device in (VXLAN_DEVICE, IPIP_DEVICE)

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{self.dst}{via} dev {self.device}{f' metric {self.metric}' if self.metric else ''}"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge with its MTU in bytes and its addresses."""

    name: str
    mac: str
    """That of a new bridge. One that is there keeps its own, as pods know it: `bridges.adopt`."""
    mtu: int
    addresses: frozenset[Interface]
    nf_call: bool = True
    """Whether packets between its ports pass nftables and iptables, as those of Services must."""
    plain: bool = True
    """Whether it carries what its ports send: it has no spanning tree, VLAN filter or master, and does ARP."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A bridge answers ARP for an address that is elsewhere, though its ports believe it among them."""

    bridge: str
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Detour:
    """Pods of `subnet` pass the node one way only, unless they are seen as `source`, the node's address."""

    subnet: Subnet
    source: Address
    everything: bool = True
    """False: only what was translated for a Service, which can't work otherwise."""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Packets from `sources` leave under the node's address unless they go to one of `exempt`."""

    sources: frozenset[Subnet] = frozenset()
    exempt: frozenset[Subnet] = frozenset()
    detours: frozenset[Detour] = frozenset()


@dataclass(frozen=True, slots=True)
class Overlay:
    """A vxlan device, and what its programs know of the cluster. IPv4 only."""

    device: str
    vni: int
    port: int
    """UDP port of the tunnel."""
    mtu: int
    """Bytes of an inner packet."""
    node: IPv4Address
    """Where this node's end of the tunnel is."""
    addresses: frozenset[IPv4Address] = frozenset()
    """Of the device: what the node itself speaks to pods of other nodes as."""
    blocks: frozenset[tuple[IPv4Network, IPv4Address]] = frozenset()
    """Blocks of pods and the addresses of their nodes, this node's included."""
    nodes: frozenset[IPv4Address] = frozenset()
    """Addresses that tunnels may come from."""
    backend: str = EBPF
    ends: frozenset[tuple[IPv4Address, IPv4Address]] = frozenset()
    """Nodes that send from their own blocks only: each of their addresses, and the one that `blocks` has."""

    @property
    def open(self) -> frozenset[IPv4Address]:
        """Those of the nodes that may send from any block."""
        return self.nodes - dict(self.ends).keys()


@dataclass(frozen=True, slots=True)
class Shut:
    """Destinations closed to pods: tunnels, which would take a masqueraded packet of a pod for one of its node."""

    ports: tuple[int, ...] = ()
    """UDP ports of vxlan tunnels, that of this node first."""
    bridges: frozenset[str] = frozenset()
    """By which packets of pods come, beside the pods' own links."""
    bypassed: bool = False
    """Whether pods have another way to the node's stack than a port with pod_guard (ipvlan l3)."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What the nft table does."""

    masquerade: Masquerade
    senders: frozenset[IPv4Address] | None
    quiet: frozenset[str]
    shut: Shut


@dataclass(frozen=True, slots=True)
class Ipip:
    """Packets between nodes inside of ipip ones, by an ipip device or by eBPF. IPv4 only."""

    node: IPv4Address
    """Where this node's end of the tunnels is."""
    mtu: int
    """Bytes of an inner packet."""
    device: bool = True
    """Whether there is an ipip device; else one that only holds the addresses."""
    underlay: str | None = None
    """The device where eBPF encapsulates; None: nowhere; "": nobody knows now, so it stays where it is."""
    addresses: frozenset[IPv4Address] = frozenset()
    """What the node itself speaks to pods of other nodes as."""
    blocks: frozenset[tuple[IPv4Network, IPv4Address]] = frozenset()
    """Blocks of pods and the addresses of their nodes, this node's included."""
    nodes: frozenset[IPv4Address] = frozenset()
    """Addresses that tunnels may come from."""
    tunnelled: frozenset[IPv4Address] = frozenset()
    """Those of them that packets go to in tunnels."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """All that testcni wants on a node, pods aside."""

    bridges: frozenset[Bridge] = frozenset()
    routes: frozenset[Route] = frozenset()
    masquerade: Masquerade = Masquerade()
    forwarding: frozenset[int] = frozenset()
    """IP versions that the node must forward."""
    bird: BirdConfig | None = None
    """What BIRD does; None: there is none."""
    problems: frozenset[Problem] = frozenset()
    refused: frozenset[Subnet] = frozenset()
    """This node's blocks that pods get no address of, as they are another's or the nodes' own network."""
    lacking: frozenset[int] = frozenset()
    """IP versions of this node's blocks that pods get no address of, as their links can't have one."""
    overlay: Overlay | None = None
    ipip: Ipip | None = None
    uplinks: frozenset[Uplink] = frozenset()
    proxies: frozenset[Proxy] = frozenset()
    crossing: frozenset[str] = frozenset()
    """Interfaces where packets arrive that would go back another way."""
    answering: frozenset[str] = frozenset()
    """Bridges that answer ARP for pods that are not on them."""
    guards: frozenset[tuple[str, bool]] = frozenset()
    """What pods hang on that pod_guard is for, and whether it checks the sources of their packets."""

    ports: tuple[int, ...] = ()
    """UDP ports of vxlan tunnels, of this node and of others, that pods must not send to."""

    @property
    def shut(self) -> Shut:
        """What pods must not reach."""
        bypassed = bool(self.uplinks and self.masquerade.sources)
        own = (self.overlay.port,) if self.overlay else ()
        bridges = frozenset(bridge.name for bridge in self.bridges)
        return Shut(tuple(dict.fromkeys((*own, *self.ports))), bridges, bypassed)

    @property
    def filter(self) -> Filter:
        """All that nft does."""
        return Filter(self.masquerade, self.senders, self.quiet, self.shut)

    @property
    def senders(self) -> frozenset[IPv4Address] | None:
        """Who may send packets to the ipip device, which by itself takes those of anybody; None: there is none."""
        return self.ipip.nodes if self.ipip and self.ipip.device else None

    @property
    def made(self) -> frozenset[str]:
        """The devices that the node path makes."""
        names = {bridge.name for bridge in self.bridges} | ({self.overlay.device} if self.overlay else set())
        return frozenset(names | ({IPIP_DEVICE} if self.ipip else set()))

    @property
    def quiet(self) -> frozenset[str]:
        """Bridges with guests: their other ports must not hear that a guest is on their link, as it moves on."""
        lone = {route.device for route in self.routes if route.gateway is None}
        return frozenset(bridge.name for bridge in self.bridges if bridge.name in lone)

    @property
    def devices(self) -> frozenset[str]:
        """What pods hang on: none can be connected before these are there."""
        return self.made | {uplink.device for uplink in self.uplinks}


def union(states: Iterable[NodeState]) -> NodeState:
    """What several networks want together; bridges of one name are one, with all their addresses."""
    total = NodeState()
    for state in states:
        overlay, clash = _join(total.overlay, state.overlay)
        total = NodeState(
            bridges=_merge(total.bridges | state.bridges),
            routes=_distinct(total.routes | state.routes),
            masquerade=Masquerade(
                total.masquerade.sources | state.masquerade.sources,
                total.masquerade.exempt | state.masquerade.exempt,
                total.masquerade.detours | state.masquerade.detours,
            ),
            forwarding=total.forwarding | state.forwarding,
            problems=total.problems | state.problems | clash,
            refused=total.refused | state.refused,
            overlay=overlay,
            ipip=_tunnels(total.ipip, state.ipip),
            bird=_together(total.bird, state.bird),
            uplinks=total.uplinks | state.uplinks,
            proxies=total.proxies | state.proxies,
            crossing=total.crossing | state.crossing,
            answering=total.answering | state.answering,
            guards=total.guards | state.guards,
        )
    return total


def _distinct(routes: frozenset[Route]) -> frozenset[Route]:
    """One route for each destination; where modes differ about a peer, the tunnel, which works on any underlay."""
    preferred = sorted(routes, key=lambda route: (route.device == VXLAN_DEVICE, str(route)))
    return frozenset({(route.dst, route.metric): route for route in preferred}.values())


def _join(one: Overlay | None, other: Overlay | None) -> tuple[Overlay | None, frozenset[Problem]]:
    """One overlay for all networks: a node has one tunnel."""
    if one is None or other is None:
        return one or other, frozenset()
    if (one.vni, one.port) != (other.vni, other.port):
        what = f"vni {other.vni}, port {other.port}, where another has vni {one.vni}, port {one.port}"
        remedy = "give all networks of mode vxlan the same vni and port"
        return one, frozenset({Problem("networks of mode vxlan", f"one of them has {what}", remedy)})
    both = replace(
        one,
        mtu=min(one.mtu, other.mtu),
        addresses=one.addresses | other.addresses,
        blocks=one.blocks | other.blocks,
        nodes=one.nodes | other.nodes,
        ends=frozenset(pair for pair in one.ends | other.ends if pair[0] not in one.open | other.open),
        # pods of the backend kernel need no programs, so they work on a tunnel that has some
        backend=EBPF if EBPF in (one.backend, other.backend) else one.backend,
    )
    return both, frozenset()


def _tunnels(one: Ipip | None, other: Ipip | None) -> Ipip | None:
    """One device for all networks; to nodes that one of them wants a tunnel to there is one."""
    if one is None or other is None:
        return one or other
    return replace(
        one,
        mtu=min(one.mtu, other.mtu),
        device=one.device or other.device,
        underlay=other.underlay if one.underlay is None else one.underlay,
        addresses=one.addresses | other.addresses,
        blocks=one.blocks | other.blocks,
        nodes=one.nodes | other.nodes,
        tunnelled=one.tunnelled | other.tunnelled,
    )


def _together(one: BirdConfig | None, other: BirdConfig | None) -> BirdConfig | None:
    """One BIRD for two networks: with the blocks of both, and for the rest what the first says."""
    if one is None or other is None:
        return one or other
    blocks, pools = dict.fromkeys((*one.blocks, *other.blocks)), dict.fromkeys((*one.pools, *other.pools))
    return replace(one, blocks=tuple(sorted(blocks)), pools=tuple(sorted(pools)))


def _merge(bridges: frozenset[Bridge]) -> frozenset[Bridge]:
    by_name: dict[str, Bridge] = {}
    for bridge in sorted(bridges, key=lambda b: (b.name, b.mac, b.mtu)):
        known = by_name.get(bridge.name, bridge)
        mtu, addresses = min(known.mtu, bridge.mtu), known.addresses | bridge.addresses
        if mtu < IPV6_MIN_MTU:  # pods of a network with a larger MTU may have IPv6 addresses, but no gateway now
            addresses = frozenset(address for address in addresses if address.version == 4)
        by_name[bridge.name] = Bridge(bridge.name, known.mac, mtu, addresses)
    return frozenset(by_name.values())
