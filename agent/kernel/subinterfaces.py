"""Slaves of a parent interface, macvlan and ipvlan, as rtnetlink(7) messages (if_link.h has the numbers)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from agent.kernel import ip_links, netlink
from agent.kernel.ip_links import IFINFO
from agent.kernel.netlink import Request

MACVLAN, IPVLAN = "macvlan", "ipvlan"  # IFLA_INFO_KIND
IFLA_MACVLAN_MODE, IFLA_IPVLAN_MODE = 1, 1
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IFLA_INET_CONF = 1
RP_FILTER, ARP_NOTIFY = 8, 22  # IPV4_DEVCONF_* of linux/ip.h
LOOSE = 2  # the source must be reachable, by whichever interface (RFC 3704, 2.4)


@dataclass(frozen=True, slots=True)
class Slave:
    """A slave to be made: its parent by index here, its namespace by a descriptor."""

    name: str
    kind: str
    mode: str
    parent: int
    netns: int
    mac: str | None
    """None: that of the parent, or one of the kernel's choice."""
    mtu: int
    group: int


def create(slave: Slave) -> Request:
    """The slave, in its namespace at once, marked by its group."""
    if slave.kind == MACVLAN:
        data = netlink.u32(IFLA_MACVLAN_MODE, MACVLAN_MODES[slave.mode])
    else:
        data = netlink.attribute(IFLA_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODES[slave.mode]))
    attributes = (
        netlink.text(ip_links.IFLA_IFNAME, slave.name)
        + netlink.u32(ip_links.IFLA_LINK, slave.parent)
        + netlink.u32(ip_links.IFLA_NET_NS_FD, slave.netns)
        + netlink.u32(ip_links.IFLA_MTU, slave.mtu)
        + netlink.u32(ip_links.IFLA_GROUP, slave.group)
        + (netlink.attribute(ip_links.IFLA_ADDRESS, ip_links.mac_bytes(slave.mac)) if slave.mac else b"")
    )
    return ip_links.create(slave.kind, attributes, data, f"{slave.kind} {slave.name} in mode {slave.mode}")


def rename(index: int, name: str) -> Request:
    """Give a link that is down its name; EEXIST where another has it."""
    payload = IFINFO.pack(0, 0, index, 0, 0) + netlink.text(ip_links.IFLA_IFNAME, name)
    return Request(ip_links.RTM_SETLINK, 0, payload, f"name link {index} {name}")


def announce(index: int) -> Request:
    """Let the kernel send a gratuitous ARP when the link comes up, and take answers that come another way."""
    switches = netlink.u32(ARP_NOTIFY, 1) + netlink.u32(RP_FILTER, LOOSE)
    inet = netlink.attribute(socket.AF_INET, netlink.attribute(IFLA_INET_CONF, switches))
    payload = IFINFO.pack(0, 0, index, 0, 0) + netlink.attribute(ip_links.IFLA_AF_SPEC, inet)
    return Request(ip_links.RTM_SETLINK, 0, payload, f"set announcements of link {index}")


def is_slave(link: ip_links.Link) -> bool:
    """Whether a link is of a kind that this module makes."""
    return link.kind in (IPVLAN, MACVLAN)
