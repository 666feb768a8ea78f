"""Make and parse rtnetlink(7) messages about neighbours of links, permanent and proxy (ip-neighbour(8))."""

from __future__ import annotations

import ipaddress
import socket
import struct

from agent.ip import Address
from agent.kernel import netlink
from agent.kernel.ip_links import mac_bytes
from agent.kernel.netlink import NLM_F_CREATE, NLM_F_REPLACE, Netlink, Request, family

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NDA_DST, NDA_LLADDR, NUD_PERMANENT, NTF_PROXY = 1, 2, 0x80, 0x08
NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type


def add(index: int, address: Address, mac: str) -> Request:
    """Return the request for a permanent neighbour: the MAC of an address on a link."""
    payload = (
        NDMSG.pack(family(address), index, NUD_PERMANENT, 0, 0)
        + netlink.attribute(NDA_DST, address.packed)
        + netlink.attribute(NDA_LLADDR, mac_bytes(mac))
    )
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, payload, f"add neighbour {address}")


def delete(index: int, address: Address) -> Request:
    """Return the request to delete a neighbour of a link; ENOENT if it does not exist."""
    payload = NDMSG.pack(family(address), index, 0, 0, 0) + netlink.attribute(NDA_DST, address.packed)
    return Request(RTM_DELNEIGH, 0, payload, f"delete neighbour {address}")


def permanent(nl: Netlink) -> dict[tuple[int, Address], str]:
    """Return the MACs of permanent IPv4 neighbours, by link and address. Raises NetlinkError."""
    header = NDMSG.pack(socket.AF_INET, 0, 0, 0, 0)
    found = {}
    for payload in nl.dump(Request(RTM_GETNEIGH, 0, header, "list neighbours")):
        _family, index, state, _flags, _type = NDMSG.unpack_from(payload)
        has = netlink.attributes(payload, NDMSG.size, len(payload))
        if state & NUD_PERMANENT and NDA_DST in has and NDA_LLADDR in has:
            found[index, ipaddress.ip_address(has[NDA_DST])] = has[NDA_LLADDR].hex(":")
    return found


def add_proxy(index: int, address: Address) -> Request:
    """Return the request to let a link answer ARP for an address that the node routes to another link."""
    return _proxy(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, index, address)


def delete_proxy(index: int, address: Address) -> Request:
    """Return the request to stop answering ARP for an address; ENOENT if the link did not."""
    return _proxy(RTM_DELNEIGH, 0, index, address)


def proxies(nl: Netlink) -> set[tuple[int, Address]]:
    """Return links with the IPv4 addresses for which they answer ARP (add_proxy). Raises NetlinkError."""
    header = NDMSG.pack(socket.AF_INET, 0, 0, NTF_PROXY, 0)
    found = set()
    for payload in nl.dump(Request(RTM_GETNEIGH, 0, header, "list proxy neighbours")):
        _family, index, _state, _flags, _type = NDMSG.unpack_from(payload)
        found.add((index, ipaddress.ip_address(netlink.attributes(payload, NDMSG.size, len(payload))[NDA_DST])))
    return found


def _proxy(kind: int, flags: int, index: int, address: Address) -> Request:
    payload = NDMSG.pack(family(address), index, 0, NTF_PROXY, 0)
    payload += netlink.attribute(NDA_DST, address.packed)
    verb = "delete" if kind == RTM_DELNEIGH else "add"
    return Request(kind, flags, payload, f"{verb} proxy neighbour {address}")
