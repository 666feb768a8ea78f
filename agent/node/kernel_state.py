"""The node's own state, as the kernel has it: its interfaces and addresses, and its ways to other nodes."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from agent.ip import Address
from agent.kernel import ip_addresses, ip_links, ip_routes
from agent.kernel.ip_links import Link
from agent.kernel.netlink import Netlink
from agent.model.cluster import HostNetworks, Node
from agent.modes.underlay import end
from agent.node.last_known_nodes import Known
from agent.objects.base import KernelState
from agent.objects.state import LocalAddress, Underlay

# Addresses that only a default route leads to: reserved (RFC 1112), and for documentation (RFC 9637).
SOMEWHERE = (ipaddress.IPv4Address("240.0.0.1"), ipaddress.IPv6Address("3fff::1"))
LOOKUPS = 16  # nodes that the kernel is asked for the way to
LOOPBACK = "lo"
MTU = 1500  # bytes, where no interface says another: that of lo means nothing to peers


def read(
    nl: Netlink,
    is_made: Callable[[Link], bool],
    *,
    gateways: bool = False,
    known: Known | None = None,
    node: str = "",
) -> KernelState:
    """Read links, addresses and default routes. Raises OSError.

    `is_made` says which links testcni made: their addresses are not the node's own.
    `gateways`: also find the gateway of each link, which costs a dump of all routes. `known` is where
    nodes are: an InternalIP of `node` on lo, or a /32 or /128 on any link (as a dummy), counts as one of the
    interface that leads to them.
    """
    links, addresses = ip_links.links(nl), ip_addresses.addresses(nl)
    usable = {link.index: link for link in links if link.up and not is_made(link)}
    found = _gateways(nl) if gateways else []
    hops = {somewhere.version: ip_routes.next_hop(nl, somewhere) for somewhere in SOMEWHERE}
    local = [
        LocalAddress(
            link.name,
            MTU if link.name == LOOPBACK else link.mtu,
            a.interface,
            next((g for index, g in found if index == a.index and g in a.interface.network), None),
            behind=link.name == LOOPBACK or a.interface.network.num_addresses == 1,
        )
        for a in addresses
        if (link := usable.get(a.index)) and not a.address.is_loopback
    ]
    me = known.nodes.get(node) if known else None
    for number, entry in enumerate(local):
        if entry.behind and known and me and entry.interface.ip in me.addresses:
            version = entry.interface.version
            peers = (address for name, address in known.ends.chosen.get(version, {}).items() if name != node)
            local[number] = _as_of_leading_interface(nl, entry, usable, peers, hops[version])
    routers = frozenset(hop[1] for hop in hops.values() if hop and hop[1])
    outward = frozenset(link.name for link in links if (hop := hops[4]) and hop[0] == link.index)
    return KernelState(links, addresses, tuple(local), routers, outward)


def host_networks_of(
    kernel: KernelState, me: Node | None, servers: frozenset[Address] = frozenset()
) -> HostNetworks:
    """Return what no block of pods' addresses may overlap on this node.

    `servers`: the addresses by which the agent reaches the API server. A single address counts only where it is
    the node's InternalIP: the kernel reaches others whatever the block, as it looks at local addresses first.
    """
    mine = me.addresses if me else ()
    near = {
        local.interface.network: f"{local.interface} of {local.device}"
        for local in reversed(kernel.local)
        if local.interface.ip in mine or local.interface.network.num_addresses > 1
    }
    order = sorted(near.items(), key=lambda entry: (entry[0].version, int(entry[0].network_address), entry[1]))
    return HostNetworks(tuple(order), kernel.routers, servers)


def underlay(nl: Netlink, kernel: KernelState, known: Known, node: str) -> Underlay:
    """Return how nodes in other subnets are reached. Raises OSError.

    The way by the interface that has this node's end counts; the first to any far node where there is none.
    """
    ends, me = known.ends.chosen.get(4, {}), known.nodes.get(node)
    home = end(me, kernel.local, known.ends)[1] if me else None
    near = [local.interface.network for local in kernel.local]
    far = (a for a in ends.values() if not any(a in network for network in near))
    names = {link.index: link.name for link in kernel.links}
    underlays: list[Underlay] = []
    for address in itertools.islice(far, LOOKUPS):
        if found := ip_routes.next_hop(nl, address):
            gateway = found[1] if isinstance(found[1], IPv4Address) else None
            underlays.append(Underlay(device=names.get(found[0], ""), gateway=gateway))
            if home and gateway and underlays[-1].device == home.device:
                return underlays[-1]
    return underlays[0] if underlays else Underlay()


def _gateways(nl: Netlink) -> list[tuple[int, Address]]:
    """Interfaces with a default gateway, the preferred first."""
    default = sorted((r for r in ip_routes.routes(nl, 4) if r.dst.prefixlen == 0), key=lambda route: route.metric)
    return [(route.index, route.gateway) for route in default if route.gateway]


def _as_of_leading_interface(
    nl: Netlink,
    local: LocalAddress,
    usable: Mapping[int, Link],
    peers: Iterable[Address],
    default: tuple[int, Address | None] | None,
) -> LocalAddress:
    """The address as one of the interface that leads to other nodes, with the smallest MTU of those that do.

    That of the default route where no other node is known; where no interface leads to any, it stays as it is.
    """
    leading = {index: usable[index] for index in _interfaces_to(nl, peers) if index in usable}
    outward = {index: link for index, link in leading.items() if link.name != LOOPBACK}
    if not outward and default and default[0] in usable:
        outward = {default[0]: usable[default[0]]}
    if not outward or any(link.name == local.device for link in outward.values()):
        return local
    first = outward.get(default[0]) if default else None
    first = first or min(outward.values(), key=lambda link: link.name)
    return replace(local, device=first.name, mtu=min(link.mtu for link in outward.values()))


def _interfaces_to(nl: Netlink, addresses: Iterable[Address]) -> Iterator[int]:
    """The interfaces by which packets to these addresses leave. Raises OSError."""
    for address in itertools.islice(addresses, LOOKUPS):
        if hop := ip_routes.next_hop(nl, address):
            yield hop[0]
