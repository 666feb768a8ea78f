"""Change settings of existing links, and read them (rtnetlink(7)); `ip_links` creates links."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.kernel import ip_links, netlink
from agent.kernel.ip_links import IFF_UP, IFINFO, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE, Link
from agent.kernel.netlink import Request

IFLA_BRPORT_STATE, FORWARDING = 1, 3  # BR_STATE_FORWARDING of uapi/linux/if_bridge.h
IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING, IFLA_BRPORT_UNICAST_FLOOD = 4, 8, 9  # the first is hairpin
IFLA_BRPORT_PROXYARP, IFLA_BRPORT_PROXYARP_WIFI, IFLA_BRPORT_MCAST_FLOOD, IFLA_BRPORT_BCAST_FLOOD = 10, 12, 27, 30
IFLA_BRPORT_NEIGH_SUPPRESS, IFLA_BRPORT_ISOLATED, IFLA_BRPORT_LOCKED = 32, 33, 39
PLAIN_PORT = (
    (IFLA_BRPORT_PROXYARP, 0),
    (IFLA_BRPORT_PROXYARP_WIFI, 0),
    (IFLA_BRPORT_MCAST_FLOOD, 1),
    (IFLA_BRPORT_BCAST_FLOOD, 1),
    (IFLA_BRPORT_NEIGH_SUPPRESS, 0),
    (IFLA_BRPORT_ISOLATED, 0),
    (IFLA_BRPORT_LOCKED, 0),
)
"""Default flags of a bridge port: it gets ARP requests and reaches all ports. Old kernels lack some of them."""
IFLA_INET6_CONF = 2
NUMBER = struct.Struct("=i")
QUIET = netlink.attribute(socket.AF_INET6, netlink.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE))
"""The setting without a generated IPv6 address."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings of a link; those that are None or empty are not changed."""

    alias: str | None = None
    mtu: int | None = None
    """Bytes."""
    mac: str | None = None
    master: int | None = None
    """Index of the bridge of which it becomes a port."""
    up: bool = True
    ipv4: Mapping[int, int] = field(default_factory=dict)
    """Switches of /proc/sys/net/ipv4/conf by their IPV4_DEVCONF_ numbers (uapi/linux/ip.h)."""


def configure(link: str | int, setup: Setup) -> Request:
    """Return the request to change settings of a link by name or index; it gets no generated IPv6 address.

    A link without IPv6 refuses the setting about IPv6: its MTU is below 1280 bytes (RFC 8200, section 5), or the
    kernel has no IPv6. Then the request is repeated without that part.
    """
    index, name = (0, link) if isinstance(link, str) else (link, "")
    flags = IFF_UP if setup.up else 0
    attributes = netlink.text(ip_links.IFLA_IFNAME, name) if name else b""
    if setup.alias is not None:
        attributes += netlink.text(ip_links.IFLA_IFALIAS, setup.alias)
    if setup.mtu is not None:
        attributes += netlink.u32(ip_links.IFLA_MTU, setup.mtu)
    if setup.mac is not None:
        attributes += netlink.attribute(ip_links.IFLA_ADDRESS, ip_links.mac_bytes(setup.mac))
    if setup.master is not None:
        attributes += netlink.u32(ip_links.IFLA_MASTER, setup.master)
    inet = b"".join(netlink.u32(number, value) for number, value in setup.ipv4.items())
    ipv4 = netlink.attribute(socket.AF_INET, netlink.attribute(ip_links.IFLA_INET_CONF, inet)) if inet else b""
    plain = IFINFO.pack(0, 0, index, flags, flags) + attributes
    return Request(
        ip_links.RTM_NEWLINK,
        0,
        plain + netlink.attribute(ip_links.IFLA_AF_SPEC, ipv4 + QUIET),
        f"set up link {link}",
        without_ipv6=plain + (netlink.attribute(ip_links.IFLA_AF_SPEC, ipv4) if ipv4 else b""),
    )


def bridge_port(link: str, flags: Mapping[int, int]) -> Request:
    """Return the request to set flags of a bridge port, by IFLA_BRPORT_ number (uapi/linux/if_link.h)."""
    data = b"".join(netlink.u8(number, value) for number, value in flags.items())
    kind = netlink.text(ip_links.IFLA_INFO_SLAVE_KIND, "bridge")
    port = kind + netlink.attribute(ip_links.IFLA_INFO_SLAVE_DATA, data)
    payload = (
        IFINFO.pack(0, 0, 0, 0, 0)
        + netlink.text(ip_links.IFLA_IFNAME, link)
        + netlink.attribute(ip_links.IFLA_LINKINFO, port)
    )
    return Request(ip_links.RTM_NEWLINK, 0, payload, f"set flags of bridge port {link}")


def port_state(link: str, state: int) -> Request:
    """Return the request to set the state of a bridge port; ENETDOWN if it is down, EBUSY with a spanning tree."""
    return bridge_port(link, {IFLA_BRPORT_STATE: state})


def option(link: Link, number: int) -> bytes | None:
    """Return an attribute of a link's kind by its IFLA_ number, None if the link has none."""
    return netlink.attributes(link.data, 0, len(link.data)).get(number)


def is_as_made(link: Link, data: bytes) -> bool:
    """Return whether a link has this data of its kind, is no port of another device, and is not held down."""
    wanted = netlink.attributes(data, 0, len(data))
    same = all((option(link, number) or bytes(len(value))) == value for number, value in wanted.items())
    return same and not link.master and not link.held_down


def ipv4(link: Link, number: int) -> int | None:
    """Return a switch of a link by its IPV4_DEVCONF_ number, None where the link has no IPv4."""
    return _number(_family(link, socket.AF_INET).get(ip_links.IFLA_INET_CONF, b""), number - 1)


def ipv6(link: Link, number: int) -> int | None:
    """Return a switch of a link by its DEVCONF_ number (uapi/linux/ipv6.h), None where the link has no IPv6."""
    return _number(_family(link, socket.AF_INET6).get(IFLA_INET6_CONF, b""), number)


def is_quiet(link: Link) -> bool:
    """Return whether the kernel generates no IPv6 address for a link."""
    mode = _family(link, socket.AF_INET6).get(IFLA_INET6_ADDR_GEN_MODE)
    return mode is None or mode[0] == IN6_ADDR_GEN_MODE_NONE


def port_flag(link: Link, number: int) -> int | None:
    """Return a flag of a bridge's port by its IFLA_BRPORT_ number, None if the link is not a port."""
    value = netlink.attributes(link.port, 0, len(link.port)).get(number)
    return value[0] if value else None


def _family(link: Link, family: int) -> dict[int, bytes]:
    found = netlink.attributes(link.families, 0, len(link.families)).get(family, b"")
    return netlink.attributes(found, 0, len(found))


def _number(array: bytes, position: int) -> int | None:
    return int(NUMBER.unpack_from(array, 4 * position)[0]) if len(array) >= 4 * position + 4 else None
