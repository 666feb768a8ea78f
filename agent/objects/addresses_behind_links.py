"""The addresses behind links, as the kernel sees them: for links of which a file says nothing, or not all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.ip import Address
from agent.kernel import ip_addresses, ip_routes, neighbours
from agent.kernel.bpf.loader import Loader
from agent.kernel.ip_links import Link
from agent.kernel.netlink import Netlink, NetlinkError
from agent.objects import pod_guard


def addresses(nl: Netlink, links: Iterable[Link]) -> dict[str, frozenset[Address]]:
    """The addresses behind each of these links, by its name.

    Those of the namespace that has the link's other end (veth), of host routes by the link, and of its permanent
    neighbours. Link-local and loopback addresses are left out. Raises OSError.
    """
    by_index = _on_the_node(nl)
    return {link.name: _of_pods(by_index.get(link.index, set()) | _inside(nl, link)) for link in links}


def given(nl: Netlink, bpf: Loader, links: Iterable[Link]) -> dict[str, frozenset[Address]]:
    """The addresses behind each of these links that testcni gave, by its name.

    The node's side says so, and pod_guard; where that does not know a link, the namespace, to which a pod may add
    what it likes. Raises OSError.
    """
    by_index, held = _on_the_node(nl), bpf.maps(pod_guard.GUARD)
    guarded = pod_guard.addresses(held) if held else {}
    return {link.name: _given(nl, link, by_index, guarded) for link in links}


def _given(
    nl: Netlink, link: Link, by_index: Mapping[int, set[Address]], guarded: Mapping[int, frozenset[Address]]
) -> frozenset[Address]:
    rest = guarded.get(link.index)
    return _of_pods(by_index.get(link.index, set()) | (_inside(nl, link) if rest is None else rest))


def _on_the_node(nl: Netlink) -> dict[int, set[Address]]:
    """The addresses of host routes and of permanent neighbours, by the index of their link. Raises OSError."""
    by_index: dict[int, set[Address]] = {}
    for version in (4, 6):
        for route in ip_routes.routes(nl, version):
            if route.dst.prefixlen == route.dst.max_prefixlen:
                by_index.setdefault(route.index, set()).add(route.dst.network_address)
    for index, address in neighbours.permanent(nl):
        by_index.setdefault(index, set()).add(address)
    return by_index


def _of_pods(found: Iterable[Address]) -> frozenset[Address]:
    return frozenset(address for address in found if not address.is_link_local and not address.is_loopback)


def _inside(nl: Netlink, link: Link) -> set[Address]:
    if link.netnsid is None:
        return set()
    try:
        return {entry.address for entry in ip_addresses.addresses(nl, netnsid=link.netnsid)}
    except NetlinkError:  # the namespace has gone meanwhile, or cannot be looked into: nothing is known of it
        return set()
