"""Make and parse rtnetlink(7) messages about routes (ip-route(8))."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from agent.ip import Address, Subnet
from agent.kernel import netlink
from agent.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, NetlinkError, Request

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
RTAX_MTU = 2
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTN_ANY, RTN_UNICAST, RTN_LOCAL, RTN_MULTICAST = 0, 1, 2, 5
OF_LOCAL_TABLE = (RTN_LOCAL, RTN_MULTICAST)
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST, RT_SCOPE_NOWHERE = 0, 253, 254, 255
RTPROT_BOOT, RTPROT_RA, RTNH_F_ONLINK = 3, 9, 4
IP6_RT_PRIO_USER = 1024  # the metric of an IPv6 route that was added without one

RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags

NO_WAY = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}
)
"""Errors of a look-up: no route, a route that rejects, or no support of the IP version."""


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route of the main table: `dst` via `gateway` (or on-link) out of the interface `index`.

    A route that rejects packets, or has several next hops, has no interface (0).
    """

    dst: Subnet
    gateway: Address | None
    index: int
    metric: int = 0
    """The kernel uses the route of a destination with the lowest metric."""
    source: Address | None = None
    """The source address of packets that the node itself sends by it."""
    onlink: bool = False
    """Whether the gateway need not be in a network of the interface."""
    mtu: int | None = None
    """Bytes of a packet on this route; None: the interface's MTU."""
    kind: int = RTN_UNICAST
    """A type of rtnetlink(7). RTN_LOCAL (for an address of the node) and RTN_MULTICAST are in the local table."""

    @property
    def leads(self) -> bool:
        """Return whether it sends packets out of one interface."""
        return self.kind == RTN_UNICAST and self.index > 0


def _route(kind: int, flags: int, route: KernelRoute, protocol: int) -> Request:
    hop = RTNH_F_ONLINK if route.onlink else 0
    table = RT_TABLE_LOCAL if route.kind in OF_LOCAL_TABLE else RT_TABLE_MAIN
    payload = RTMSG.pack(
        netlink.family(route.dst), route.dst.prefixlen, 0, 0, table, protocol, _scope(route), route.kind, hop
    ) + netlink.u32(RTA_OIF, route.index)
    if route.source:
        payload += netlink.attribute(RTA_PREFSRC, route.source.packed)
    if route.dst.prefixlen:
        payload += netlink.attribute(RTA_DST, route.dst.network_address.packed)
    if route.metric:
        payload += netlink.u32(RTA_PRIORITY, route.metric)
    if route.gateway:
        payload += netlink.attribute(RTA_GATEWAY, route.gateway.packed)
    if route.mtu:
        payload += netlink.attribute(RTA_METRICS, netlink.u32(RTAX_MTU, route.mtu))
    verb = "delete" if kind == RTM_DELROUTE else "add"
    return Request(kind, flags, payload, f"{verb} route {route.dst} via {route.gateway}")


def _scope(route: KernelRoute) -> int:
    if route.kind == RTN_LOCAL:
        return RT_SCOPE_HOST
    if not route.leads and route.kind != RTN_MULTICAST:
        return RT_SCOPE_NOWHERE  # of any, where it is deleted
    return RT_SCOPE_UNIVERSE if route.gateway or route.dst.version == 6 else RT_SCOPE_LINK


def add_route(route: KernelRoute, protocol: int = RTPROT_BOOT) -> Request:
    """Return the request to add a route; EEXIST if the table has one for its destination and metric."""
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route, protocol)


def replace_route(route: KernelRoute, protocol: int) -> Request:
    """Return the request to replace the route of a destination in one step, so that no packet is lost."""
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route, protocol)


def delete_route(route: KernelRoute, protocol: int) -> Request:
    """Return the request to delete exactly this route of this protocol; ESRCH if it does not exist."""
    return _route(RTM_DELROUTE, 0, route, protocol)


def routes(nl: Netlink, version: int, protocol: int = 0, kind: int = RTN_UNICAST) -> list[KernelRoute]:
    """Return the routes of a kind for an IP version, of one protocol or of all (0).

    The table is the main one, or the local one for RTN_LOCAL and RTN_MULTICAST. Raises NetlinkError.
    """
    af = socket.AF_INET if version == 4 else socket.AF_INET6
    table = RT_TABLE_LOCAL if kind in OF_LOCAL_TABLE else RT_TABLE_MAIN
    header = RTMSG.pack(af, 0, 0, 0, table, protocol, 0, kind, 0)
    try:
        payloads = nl.dump(Request(RTM_GETROUTE, 0, header + netlink.u32(RTA_TABLE, table), "list routes"))
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # no such table, or no IPv6
            return []
        raise
    return [_kernel_route(payload) for payload in payloads]


def next_hop(nl: Netlink, address: Address) -> tuple[int, Address | None] | None:
    """Return the interface and the gateway, if any, of packets to an address; None without a route."""
    header = RTMSG.pack(netlink.family(address), 8 * len(address.packed), 0, 0, 0, 0, 0, 0, 0)
    request = Request(
        RTM_GETROUTE, 0, header + netlink.attribute(RTA_DST, address.packed), f"get the route to {address}"
    )
    try:
        found = _kernel_route(nl.get(request))
    except NetlinkError as error:
        if error.errno in NO_WAY:
            return None
        raise
    return found.index, found.gateway


def _kernel_route(payload: bytes) -> KernelRoute:
    af, prefix, *_, kind, flags = RTMSG.unpack_from(payload)
    found = netlink.attributes(payload, RTMSG.size, len(payload))
    zero = b"\0" * (4 if af == socket.AF_INET else 16)
    gateway = found.get(RTA_GATEWAY)
    metric = netlink.number(found.get(RTA_PRIORITY))
    source = found.get(RTA_PREFSRC)
    metrics = found.get(RTA_METRICS, b"")
    return KernelRoute(
        dst=ipaddress.ip_network((found.get(RTA_DST, zero), prefix)),
        gateway=ipaddress.ip_address(gateway) if gateway else None,
        index=netlink.number(found.get(RTA_OIF)),
        metric=0 if af == socket.AF_INET6 and metric == IP6_RT_PRIO_USER else metric,
        source=ipaddress.ip_address(source) if source else None,
        onlink=bool(flags & RTNH_F_ONLINK),
        mtu=netlink.number(netlink.attributes(metrics, 0, len(metrics)).get(RTAX_MTU)) or None,
        kind=kind,
    )
