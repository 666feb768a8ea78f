"""Define the addresses that RFCs keep for other uses than pods and nodes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from agent.ip import Address, Subnet


@dataclass(frozen=True, slots=True)
class Class:
    """A range of addresses that no pod may have."""

    network: Subnet
    use: str
    """Its use according to the RFC."""
    source: str
    alone: str = ""
    """Says what a single address of it is; empty if nodes may have it, as Linux treats it as any other."""

    @property
    def ordinary(self) -> bool:
        """Return whether packets to it follow the node's routes, so a route for it breaks nothing on the node."""
        return not self.alone

    def __str__(self) -> str:
        return f"{self.network}, which is kept for {self.use} ({self.source})"


def _class(network: str, use: str, source: str, alone: str = "") -> Class:
    return Class(ipaddress.ip_network(network), use, source, alone)


# RFC 6890 lists them all.
CLASSES = (
    _class("0.0.0.0/8", "hosts that do not know their address", "RFC 1122"),
    _class("0.0.0.0/32", "hosts that do not know their address", "RFC 1122", "is unspecified"),
    _class("127.0.0.0/8", "loopback", "RFC 1122", "is a loopback address"),
    _class("169.254.0.0/16", "single links and clouds' metadata", "RFC 3927", "is link-local"),
    _class("224.0.0.0/4", "multicast", "RFC 5771", "is multicast"),
    _class("240.0.0.0/4", "future use", "RFC 1112"),
    _class("255.255.255.255/32", "broadcast", "RFC 919", "is the broadcast address"),
    _class("::ffff:0:0/96", "IPv4 addresses written as IPv6", "RFC 4291", "is an IPv4 address written as IPv6"),
    _class("::/8", "IPv4 addresses and loopback", "RFC 4291"),
    _class("::/128", "hosts that do not know their address", "RFC 4291", "is unspecified"),
    _class("::1/128", "loopback", "RFC 4291", "is a loopback address"),
    _class("100::/64", "packets to be discarded", "RFC 6666"),
    _class("fe80::/10", "single links", "RFC 4291", "is link-local"),
    _class("ff00::/8", "multicast", "RFC 4291", "is multicast"),
)


_RANGES: Mapping[int, tuple[tuple[int, int, Class], ...]] = {
    version: tuple(
        (int(kept.network.network_address), int(kept.network.broadcast_address), kept)
        for kept in CLASSES
        if kept.network.version == version
    )
    for version in (4, 6)
}
"""First and last address as numbers, with the class; numbers, as each block is compared with all of them."""


def against(subnet: Subnet, *, ordinary: bool = True) -> Class | None:
    """Return the class that a subnet overlaps: the smallest that holds all of it, else the first one.

    None if pods may have all of it. Without `ordinary`, only classes count that the node itself needs.
    """
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    found = [
        kept
        for low, high, kept in _RANGES[subnet.version]
        if low <= last and first <= high and (ordinary or not kept.ordinary)
    ]
    around = [kept for kept in found if kept.network.prefixlen <= subnet.prefixlen]
    return max(around, key=lambda kept: kept.network.prefixlen) if around else next(iter(found), None)


def unusable(address: Address) -> str:
    """Return why no other node can send packets to an address; empty if other nodes can."""
    found = against(ipaddress.ip_network(address), ordinary=False)
    return found.alone if found else ""
