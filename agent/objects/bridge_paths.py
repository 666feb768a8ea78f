"""Restore what the kernel makes for a bridge's MAC and addresses: without it pods reach nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from agent.ip import Interface
from agent.kernel import fdb, ip_addresses, ip_links, ip_routes
from agent.kernel.ip_addresses import LinkAddress
from agent.kernel.ip_links import Link
from agent.kernel.ip_routes import KernelRoute
from agent.kernel.netlink import Netlink, Request
from agent.objects.state import Bridge

RTPROT_KERNEL = 2  # rtnetlink(7)
METRIC: Mapping[int, int] = {4: 0, 6: 256}
"""The metric of the routes that the kernel makes itself, by IP version."""
MULTICAST = ip_network("ff00::/8")


def repair(nl: Netlink, bridges: Iterable[Bridge]) -> int:
    """Add the entries of bridges for their own MACs and the routes of their addresses that are missing.

    Returns how many were. Raises OSError, also where another's route stands in the place of one.
    """
    wanted = [(bridge, link) for bridge in bridges if (link := ip_links.link(nl, bridge.name)) and link.up]
    if not wanted:
        return 0
    own = fdb.local(nl)
    routes = {(r.index, r.dst) for version in METRIC for r in ip_routes.routes(nl, version, RTPROT_KERNEL)}
    steps: list[Request] = [
        fdb.add_local(link.index, link.mac) for _bridge, link in wanted if (link.index, link.mac) not in own
    ]
    steps += [
        ip_routes.add_route(_route(interface, link.index), RTPROT_KERNEL)
        for bridge, link in wanted
        for interface in bridge.addresses
        if interface.network.num_addresses > 1 and (link.index, interface.network) not in routes
    ]
    for error in nl.batch(steps):
        if error:
            raise error
    return len(steps)


def repair_local(nl: Netlink, devices: Iterable[Link]) -> int:
    """Add the routes by which the node takes packets to addresses of devices that are missing.

    Without one the node answers nobody as that address, neither ARP nor else. Returns how many were missing.
    Raises OSError.
    """
    ours = {link.index: link for link in devices}
    # the kernel makes those of IPv6 once the device has a carrier, and the address is known to be nobody else's
    held = [
        entry
        for entry in ip_addresses.addresses(nl)
        if entry.index in ours
        and not entry.tentative
        and (entry.address.version == 4 or ours[entry.index].running)
    ]
    versions = sorted({address.address.version for address in held})
    there = {
        (route.index, route.dst)
        for version in versions
        for kind in ip_routes.OF_LOCAL_TABLE
        for route in ip_routes.routes(nl, version, RTPROT_KERNEL, kind)
    }
    lacking = [entry for entry in held if (entry.index, ip_network(entry.address)) not in there]
    steps = [step for entry in lacking for step in _new_entry(entry)]
    steps += [
        _local(KernelRoute(MULTICAST, None, index, METRIC[6], kind=ip_routes.RTN_MULTICAST))
        for index in {entry.index for entry in held if entry.address.version == 6}
        if (index, MULTICAST) not in there
    ]
    errors = nl.batch(steps)
    for error in errors:
        if error and error.errno != errno.EEXIST:  # a kernel may say of another kind what it is
            raise error
    return errors.count(None)


def _new_entry(entry: LinkAddress) -> list[Request]:
    """Make what the kernel makes of an address.

    An IPv6 address is set again, as the kernel would not recognise a route that it has not made as its own.
    """
    if entry.address.version == 6:
        parts = entry.index, entry.address, entry.prefix
        return [ip_addresses.delete_address(*parts), ip_addresses.add_address(*parts)]
    alone = ip_network(entry.address)
    return [_local(KernelRoute(alone, None, entry.index, source=entry.address, kind=ip_routes.RTN_LOCAL))]


def _local(route: KernelRoute) -> Request:
    return ip_routes.add_route(route, RTPROT_KERNEL)


def _route(interface: Interface, index: int) -> KernelRoute:
    """The route that the kernel makes of an address."""
    source = interface.ip if interface.version == 4 else None
    return KernelRoute(interface.network, None, index, METRIC[interface.version], source)
