"""BIRD's routes in the kernel, recognised by protocol number and metric together."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network

from agent.kernel import ip_routes, netlink
from agent.kernel.netlink import Netlink, Request
from agent.modes.ipip.bird.types import KERNEL_PROTOCOL, MAIN_TABLE, METRIC

RTN_UNREACHABLE = 7


@dataclass(frozen=True, slots=True)
class Held:
    """A route of our BIRD in the kernel."""

    dst: IPv4Network
    unicast: bool
    """False: the route is of the type unreachable, for unused addresses of an own block."""


def read(nl: Netlink, table: int = MAIN_TABLE, metric: int = METRIC) -> frozenset[Held]:
    """Return the routes of our BIRD in one table. Raises OSError."""
    header = ip_routes.RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, KERNEL_PROTOCOL, 0, 0, 0)
    try:
        payloads = nl.dump(
            Request(
                ip_routes.RTM_GETROUTE, 0, header + netlink.u32(ip_routes.RTA_TABLE, table), "list BIRD's routes"
            )
        )
    except OSError as error:
        if error.errno == errno.ENOENT:  # no such table yet
            return frozenset()
        raise
    return frozenset(held for payload in payloads if (held := _held(payload, metric)))


def flush(nl: Netlink, table: int = MAIN_TABLE, metric: int = METRIC) -> int:
    """Delete the routes of a BIRD that will not come back; return how many. Raises OSError."""
    gone = read(nl, table, metric)
    errors = nl.batch([_delete(held, table, metric) for held in gone])
    for error in errors:
        if error and error.errno != errno.ESRCH:
            raise error
    return len(gone)


def _held(payload: bytes, metric: int) -> Held | None:
    _af, prefix, _src, _tos, _table, protocol, _scope, kind, _flags = ip_routes.RTMSG.unpack_from(payload)
    found = netlink.attributes(payload, ip_routes.RTMSG.size, len(payload))
    its = int.from_bytes(found.get(ip_routes.RTA_PRIORITY, b""), sys.byteorder)
    if protocol != KERNEL_PROTOCOL or its != metric or kind not in (ip_routes.RTN_UNICAST, RTN_UNREACHABLE):
        return None
    address = ipaddress.IPv4Address(found.get(ip_routes.RTA_DST, b"\0" * 4))
    return Held(IPv4Network((address, prefix)), kind == ip_routes.RTN_UNICAST)


def _delete(held: Held, table: int, metric: int) -> Request:
    header = ip_routes.RTMSG.pack(socket.AF_INET, held.dst.prefixlen, 0, 0, 0, KERNEL_PROTOCOL, 255, 0, 0)
    body = (
        netlink.attribute(ip_routes.RTA_DST, held.dst.network_address.packed)
        + netlink.u32(ip_routes.RTA_TABLE, table)
        + netlink.u32(ip_routes.RTA_PRIORITY, metric)
    )
    return Request(ip_routes.RTM_DELROUTE, 0, header + body, f"delete BIRD's route {held.dst}")
