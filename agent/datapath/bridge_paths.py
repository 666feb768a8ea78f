"""What the kernel makes of a bridge's MAC and addresses, and anybody can remove: without it pods reach nothing."""

from __future__ import annotations

from collections.abc import Iterable

from agent.datapath import fdb, rtnl
from agent.datapath.netlink import Netlink, Request
from agent.datapath.rtnl import KernelRoute
from agent.datapath.state import Bridge, Interface

RTPROT_KERNEL = 2  # rtnetlink(7)
METRIC = {4: 0, 6: 256}
"""Of the routes that the kernel makes itself, by IP version."""


def repair(nl: Netlink, bridges: Iterable[Bridge]) -> int:
    """Add the entries of bridges for their own MACs and the routes to their networks that are missing.

    Returns how many were. Raises OSError, also where another's route stands in the place of one.
    """
    wanted = [(bridge, link) for bridge in bridges if (link := rtnl.link(nl, bridge.name)) and link.up]
    if not wanted:
        return 0
    own = fdb.local(nl)
    routes = {(r.index, r.dst) for version in METRIC for r in rtnl.routes(nl, version, RTPROT_KERNEL)}
    steps: list[Request] = [
        fdb.add_local(link.index, link.mac) for _bridge, link in wanted if (link.index, link.mac) not in own
    ]
    steps += [
        rtnl.add_route(_route(interface, link.index), RTPROT_KERNEL)
        for bridge, link in wanted
        for interface in bridge.addresses
        if interface.network.num_addresses > 1 and (link.index, interface.network) not in routes
    ]
    for error in nl.batch(steps):
        if error:
            raise error
    return len(steps)


def _route(interface: Interface, index: int) -> KernelRoute:
    """The route that the kernel makes of an address."""
    source = interface.ip if interface.version == 4 else None
    return KernelRoute(interface.network, None, index, METRIC[interface.version], source)
