"""Define types of IP addresses and networks, and names made of addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

FAMILIES: Mapping[int, str] = {4: "ipv4", 6: "ipv6"}
"""Names of the IP versions in messages and metrics."""


def address_name(address: Address) -> str:
    """Return `10.244.3.7` as `10-244-3-7`; IPv6 is written in full, as a name must not end in `-`."""
    text = address.exploded if address.version == 6 else str(address)
    return text.replace(".", "-").replace(":", "-")
