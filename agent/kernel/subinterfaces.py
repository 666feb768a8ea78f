"""Make rtnetlink(7) messages about macvlan and ipvlan links (ip-link(8)); if_link.h has the numbers."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from agent.kernel import ip_links, netlink
from agent.kernel.ip_links import IFINFO
from agent.kernel.netlink import Request

MACVLAN, IPVLAN = "macvlan", "ipvlan"  # IFLA_INFO_KIND
IFLA_MACVLAN_MODE, IFLA_IPVLAN_MODE = 1, 1
MACVLAN_MODES: Mapping[str, int] = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES: Mapping[str, int] = {"l2": 0, "l3": 1, "l3s": 2}
IFLA_INET_CONF = 1
RP_FILTER, ARP_NOTIFY = 8, 22  # IPV4_DEVCONF_* of linux/ip.h
LOOSE = 2  # the source must be reachable, by whichever interface (RFC 3704, 2.4)


@dataclass(frozen=True, slots=True)
class Subinterface:
    """A macvlan or ipvlan link to create: its parent by index, its namespace by descriptor."""

    name: str
    kind: str
    mode: str
    parent: int
    netns: int
    mac: str | None
    """None: that of the parent, or a random one of the kernel."""
    mtu: int
    group: int


def create(link: Subinterface) -> Request:
    """Return the request to create a link in its namespace, marked by its group."""
    if link.kind == MACVLAN:
        data = netlink.u32(IFLA_MACVLAN_MODE, MACVLAN_MODES[link.mode])
    else:
        data = netlink.attribute(IFLA_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODES[link.mode]))
    attributes = (
        netlink.text(ip_links.IFLA_IFNAME, link.name)
        + netlink.u32(ip_links.IFLA_LINK, link.parent)
        + netlink.u32(ip_links.IFLA_NET_NS_FD, link.netns)
        + netlink.u32(ip_links.IFLA_MTU, link.mtu)
        + netlink.u32(ip_links.IFLA_GROUP, link.group)
        + (netlink.attribute(ip_links.IFLA_ADDRESS, ip_links.mac_bytes(link.mac)) if link.mac else b"")
    )
    return ip_links.create(link.kind, attributes, data, f"{link.kind} {link.name} in mode {link.mode}")


def rename(index: int, name: str) -> Request:
    """Return the request to rename a link that is down; EEXIST if another has the name."""
    payload = IFINFO.pack(0, 0, index, 0, 0) + netlink.text(ip_links.IFLA_IFNAME, name)
    return Request(ip_links.RTM_SETLINK, 0, payload, f"name link {index} {name}")


def set_announcements(index: int) -> Request:
    """Return the request for a gratuitous ARP when the link is set up, and for loose reverse path filtering."""
    switches = netlink.u32(ARP_NOTIFY, 1) + netlink.u32(RP_FILTER, LOOSE)
    inet = netlink.attribute(socket.AF_INET, netlink.attribute(IFLA_INET_CONF, switches))
    payload = IFINFO.pack(0, 0, index, 0, 0) + netlink.attribute(ip_links.IFLA_AF_SPEC, inet)
    return Request(ip_links.RTM_SETLINK, 0, payload, f"set announcements of link {index}")


def is_subinterface(link: ip_links.Link) -> bool:
    """Return whether a link is a macvlan or ipvlan."""
    return link.kind in (IPVLAN, MACVLAN)
