"""Node state as frozen values: the state that modes want, and the state of the kernel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Self, TypeVar

from agent.ip import Address, Interface, Subnet
from agent.model.network import ParentLink
from agent.model.problem import Problem

AcceptedSources = Mapping[int, frozenset[IPv4Address]]
"""The only source addresses from which this node accepts packets, by their IP protocol."""
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
    """Whether it has no neighbours, as on lo. For an InternalIP, `device` then leads to other nodes."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """The properties of the network between the nodes that tunnels need."""

    by_device: bool = True
    """Whether devices encapsulate here; else eBPF programs do."""
    device: str = ""
    """The interface to nodes of other subnets; empty: there are none, or there is no route to them."""
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
    tunnel: bool = field(default=False, compare=False)
    """Whether the device is a tunnel's, which the name of the device says already."""

    @property
    def onlink(self) -> bool:
        """Whether the gateway is behind the device though no address of the device says so."""
        return self.gateway is not None and self.tunnel

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{self.dst}{via} dev {self.device}{f' metric {self.metric}' if self.metric else ''}"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge with its MTU in bytes and its addresses."""

    name: str
    mac: str
    """The MAC of a new bridge. A bridge that exists keeps its own, as pods know it: `bridges.adopt`."""
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
class NodeSnat:
    """Packets of pods of `subnet` leave under the node's address `source`, so that answers pass the node, too."""

    subnet: Subnet
    source: Address
    everything: bool = True
    """False: only what was translated for a Service, which can't work otherwise."""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Packets from `sources` leave under the node's address unless they go to one of `exempt`."""

    sources: frozenset[Subnet] = frozenset()
    exempt: frozenset[Subnet] = frozenset()
    node_snats: frozenset[NodeSnat] = frozenset()


@dataclass(frozen=True, slots=True)
class Shut:
    """Destinations closed to pods: tunnels, which would take a masqueraded packet of a pod for one of its node."""

    ports: tuple[int, ...] = ()
    """UDP ports of tunnels, those of this node first."""
    bridges: frozenset[str] = frozenset()
    """The bridges by which packets of pods come, beside the pods' own links."""
    bypassed: bool = False
    """Whether pods reach the node's stack by more than a port with pod_guard, as by a subinterface in l3."""
    to_pods: frozenset[str] = frozenset()
    """Devices by which packets leave that are for pods of other nodes, and so may go to any port."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The content of the nft table."""

    masquerade: Masquerade
    accepted_sources: AcceptedSources
    no_redirects_on: frozenset[str]
    shut: Shut


def united(found: Iterable[AcceptedSources]) -> AcceptedSources:
    """Return the sources of all, by protocol."""
    total: dict[int, frozenset[IPv4Address]] = {}
    for sources in found:
        total.update({protocol: total.get(protocol, frozenset()) | more for protocol, more in sources.items()})
    return total


class Section:
    """The node state of one mode beside the common fields, and its properties that other parts need.

    Each subclass is a frozen dataclass in the folder of its mode.
    """

    __slots__ = ()

    @property
    def devices(self) -> frozenset[str]:
        """The devices that the mode makes."""
        return frozenset()

    @property
    def tunnel_ports(self) -> tuple[int, ...]:
        """UDP ports by which this node takes packets of tunnels."""
        return ()

    @property
    def devices_to_pods(self) -> frozenset[str]:
        """Devices by which only packets to pods of other nodes leave."""
        return frozenset()

    @property
    def accepted_sources(self) -> AcceptedSources:
        """The only addresses that packets of an IP protocol are accepted from, as a device takes those of any."""
        return {}

    @abstractmethod
    def join(self, other: Self) -> tuple[Self, frozenset[Problem]]:
        """Return what two networks of the mode want together, and why not all of it is possible."""


S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class NodeState:
    """All that testcni wants on a node, except pods."""

    bridges: frozenset[Bridge] = frozenset()
    routes: frozenset[Route] = frozenset()
    masquerade: Masquerade = Masquerade()
    forwarding: frozenset[int] = frozenset()
    """IP versions that the node must forward."""
    problems: frozenset[Problem] = frozenset()
    refused: frozenset[Subnet] = frozenset()
    """This node's blocks that pods get no address of, as they are another's or the nodes' own network."""
    lacking: frozenset[int] = frozenset()
    """IP versions of this node's blocks that pods get no address of, as their links can't have one."""
    sections: frozenset[Section] = frozenset()
    """The node state of single modes beside the common fields, one of each type."""
    uplinks: frozenset[ParentLink] = frozenset()
    proxies: frozenset[Proxy] = frozenset()
    loose_rp_filter_on: frozenset[str] = frozenset()
    """Interfaces where packets arrive that would go back another way."""
    proxy_arp_on: frozenset[str] = frozenset()
    """Bridges that answer ARP for pods that are not on them."""
    guards: frozenset[tuple[str, bool]] = frozenset()
    """Devices whose pods have pod_guard, and whether it checks the sources of their packets."""

    ports: tuple[int, ...] = ()
    """UDP ports of tunnels, of this node and of others, that pods must not send to."""

    def section(self, kind: type[S]) -> S | None:
        """Return what a mode wants beside the common fields; None: nothing."""
        return next((section for section in self.sections if isinstance(section, kind)), None)

    @property
    def shut(self) -> Shut:
        """Return the destinations that pods must not reach."""
        bypassed = bool(self.uplinks and self.masquerade.sources)
        own = (port for section in self.sections for port in section.tunnel_ports)
        bridges = frozenset(bridge.name for bridge in self.bridges)
        to_pods = frozenset(device for section in self.sections for device in section.devices_to_pods)
        return Shut(tuple(dict.fromkeys((*own, *self.ports))), bridges, bypassed, to_pods)

    @property
    def filter(self) -> Filter:
        """All that nft does."""
        return Filter(self.masquerade, self.accepted_sources, self.no_redirects_on, self.shut)

    @property
    def accepted_sources(self) -> AcceptedSources:
        """The only addresses that packets of an IP protocol are accepted from; others are not filtered."""
        return united(section.accepted_sources for section in self.sections)

    @property
    def made(self) -> frozenset[str]:
        """The devices that the node path makes."""
        of_modes = (device for section in self.sections for device in section.devices)
        return frozenset({*(bridge.name for bridge in self.bridges), *of_modes})

    @property
    def no_redirects_on(self) -> frozenset[str]:
        """Bridges with off-block pods: no redirect may say that such a pod is on the link, as it may move."""
        lone = {route.device for route in self.routes if route.gateway is None}
        return frozenset(bridge.name for bridge in self.bridges if bridge.name in lone)

    @property
    def devices(self) -> frozenset[str]:
        """Return the devices that pods need: no pod can be connected before they exist."""
        return self.made | {uplink.device for uplink in self.uplinks}


def union(states: Iterable[NodeState]) -> NodeState:
    """Return what several networks want together; bridges of one name are one, with all their addresses."""
    total = NodeState()
    for state in states:
        sections, clashes = _joined(total.sections, state.sections)
        total = NodeState(
            bridges=_merge(total.bridges | state.bridges),
            routes=_distinct(total.routes | state.routes),
            masquerade=Masquerade(
                total.masquerade.sources | state.masquerade.sources,
                total.masquerade.exempt | state.masquerade.exempt,
                total.masquerade.node_snats | state.masquerade.node_snats,
            ),
            forwarding=total.forwarding | state.forwarding,
            problems=total.problems | state.problems | clashes,
            refused=total.refused | state.refused,
            sections=sections,
            uplinks=total.uplinks | state.uplinks,
            proxies=total.proxies | state.proxies,
            loose_rp_filter_on=total.loose_rp_filter_on | state.loose_rp_filter_on,
            proxy_arp_on=total.proxy_arp_on | state.proxy_arp_on,
            guards=total.guards | state.guards,
        )
    return total


def _joined(one: frozenset[Section], other: frozenset[Section]) -> tuple[frozenset[Section], frozenset[Problem]]:
    """Return one section of each type, where what the first says comes first."""
    by_type = {type(section): section for section in one}
    clashes: frozenset[Problem] = frozenset()
    for section in other:
        known = by_type.get(type(section))
        if known is None:
            by_type[type(section)] = section
        else:
            by_type[type(section)], more = known.join(section)
            clashes |= more
    return frozenset(by_type.values()), clashes


def _distinct(routes: frozenset[Route]) -> frozenset[Route]:
    """One route for each destination; where modes differ about a peer, the tunnel, which works on any underlay."""
    preferred = sorted(routes, key=lambda route: (route.tunnel, str(route)))
    return frozenset({(route.dst, route.metric): route for route in preferred}.values())


def _merge(bridges: frozenset[Bridge]) -> frozenset[Bridge]:
    by_name: dict[str, Bridge] = {}
    for bridge in sorted(bridges, key=lambda b: (b.name, b.mac, b.mtu)):
        known = by_name.get(bridge.name, bridge)
        mtu, addresses = min(known.mtu, bridge.mtu), known.addresses | bridge.addresses
        if mtu < IPV6_MIN_MTU:  # pods of a network with a larger MTU may have IPv6 addresses, but no gateway now
            addresses = frozenset(address for address in addresses if address.version == 4)
        by_name[bridge.name] = Bridge(bridge.name, known.mac, mtu, addresses)
    return frozenset(by_name.values())
