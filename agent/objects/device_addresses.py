"""The addresses of a tunnel's device, which the node itself speaks to pods of other nodes as."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import IPv4Address

from agent.kernel import ip_addresses
from agent.kernel.ip_addresses import LinkAddress
from agent.kernel.netlink import Netlink, Request


def sync(nl: Netlink, index: int, wanted: frozenset[IPv4Address], addresses: Sequence[LinkAddress]) -> None:
    """Make the IPv4 addresses of a device those wanted. Raises NetlinkError."""
    held = {a.address for a in addresses if a.index == index and a.address.version == 4}
    steps: list[Request] = [ip_addresses.add_address(index, address, 32) for address in sorted(wanted - held)]
    steps += [ip_addresses.delete_address(index, address, 32) for address in held - wanted]
    for error in nl.batch(steps):
        if error and error.errno not in (errno.EEXIST, errno.EADDRNOTAVAIL):
            raise error
