"""Which addresses are behind links, as the kernel sees it: for links of which nothing else is known."""

from __future__ import annotations

from collections.abc import Iterable

from agent.datapath import neighbours, rtnl
from agent.datapath.netlink import Netlink, NetlinkError
from agent.datapath.rtnl import Link
from agent.model import Address


def addresses(nl: Netlink, links: Iterable[Link]) -> dict[str, frozenset[Address]]:
    """The addresses behind each of these links, by its name.

    Those of the namespace that has the link's other end (veth), of host routes by the link, and of its permanent
    neighbours. Link-local and loopback addresses are left out. Raises OSError.
    """
    by_index: dict[int, set[Address]] = {}
    for version in (4, 6):
        for route in rtnl.routes(nl, version):
            if route.dst.prefixlen == route.dst.max_prefixlen:
                by_index.setdefault(route.index, set()).add(route.dst.network_address)
    for index, address in neighbours.permanent(nl):
        by_index.setdefault(index, set()).add(address)
    return {
        link.name: frozenset(
            address
            for address in by_index.get(link.index, set()) | _inside(nl, link)
            if not address.is_link_local and not address.is_loopback
        )
        for link in links
    }


def _inside(nl: Netlink, link: Link) -> set[Address]:
    if link.netnsid is None:
        return set()
    try:
        return {entry.address for entry in rtnl.addresses(nl, netnsid=link.netnsid)}
    except NetlinkError:  # the namespace has gone meanwhile, or cannot be looked into: nothing is known of it
        return set()
