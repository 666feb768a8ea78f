"""IP addresses and networks, and names made of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


FAMILIES: Mapping[int, str] = {4: "ipv4", 6: "ipv6"}
"""The names of the IP versions, where people and metrics tell them apart."""


def address_name(address: Address) -> str:
    """`10.244.3.7` as `10-244-3-7`; IPv6 is written out in full, as a name must not end in `-`."""
    text = address.exploded if address.version == 6 else str(address)
    return text.replace(".", "-").replace(":", "-")


Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
