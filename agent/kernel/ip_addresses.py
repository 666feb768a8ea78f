"""Make and parse rtnetlink(7) messages about addresses of links (ip-address(8))."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

from agent.ip import Address
from agent.kernel import netlink
from agent.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, Request

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_TARGET_NETNSID = 1, 2, 8, 10
IFA_F_NODAD, IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x02, 0x04, 0x08, 0x40

IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address on the interface of index `index`, with its prefix length."""

    index: int
    address: Address
    prefix: int
    tentative: bool = field(default=False, compare=False)
    """Whether duplicate address detection is not finished, or has failed (RFC 4862)."""

    @property
    def interface(self) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
        """Return the address with its network."""
        return ipaddress.ip_interface((self.address, self.prefix))


def add_address(index: int, address: Address, prefix: int) -> Request:
    """Return the request to add an address to a link, without duplicate address detection."""
    payload = (
        IFADDR.pack(netlink.family(address), prefix, 0, 0, index)
        + netlink.attribute(IFA_LOCAL, address.packed)
        + netlink.attribute(IFA_ADDRESS, address.packed)
        + netlink.u32(IFA_FLAGS, IFA_F_NODAD)
    )
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload, f"add address {address}/{prefix}")


def delete_address(index: int, address: Address, prefix: int) -> Request:
    """Return the request to delete an address of a link."""
    header = IFADDR.pack(netlink.family(address), prefix, 0, 0, index)
    payload = header + netlink.attribute(IFA_LOCAL, address.packed)
    return Request(RTM_DELADDR, 0, payload, f"delete address {address}/{prefix}")


def addresses(nl: Netlink, index: int = 0, netnsid: int | None = None) -> list[LinkAddress]:
    """Return the addresses of a link, or of all (0), here or in the namespace `netnsid`. Raises NetlinkError."""
    target = b"" if netnsid is None else netlink.u32(IFA_TARGET_NETNSID, netnsid)
    request = Request(RTM_GETADDR, 0, IFADDR.pack(0, 0, 0, 0, index) + target, "list addresses")
    return [_address(payload) for payload in nl.dump(request)]


def _address(payload: bytes) -> LinkAddress:
    _family, prefix, flags, _scope, index = IFADDR.unpack_from(payload)
    found = netlink.attributes(payload, IFADDR.size, len(payload))
    address = ipaddress.ip_address(found.get(IFA_LOCAL) or found[IFA_ADDRESS])
    unsure = IFA_F_TENTATIVE | IFA_F_OPTIMISTIC | IFA_F_DADFAILED if address.version == 6 else 0
    return LinkAddress(index, address, prefix, bool(flags & unsure))
