"""Read and write forwarding entries (FDB): of a tunnel's device for its peers, and of a bridge for its ports.

A tunnel's device that forwards Ethernet frames has two permanent entries for each peer: a neighbour (the peer's
address in the tunnel and MAC) and a forwarding entry (that MAC and the peer's node address). See bridge(8), fdb.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from agent.kernel import ip_links, neighbours, netlink
from agent.kernel.neighbours import (
    NDA_DST,
    NDA_LLADDR,
    NDMSG,
    NUD_PERMANENT,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)
from agent.kernel.netlink import NLM_F_CREATE, NLM_F_REPLACE, Netlink, Request

NTF_SELF = 0x02
NTF_MASTER, NTF_STICKY, NUD_NOARP = 0x04, 0x40, 0x40  # NOARP: static, not of the bridge itself (PERMANENT)
Entry = tuple[str, IPv4Address]
"""A MAC, and the node to which packets for it are sent."""


def sync(nl: Netlink, index: int, peers: Iterable[Entry]) -> int:
    """Make `peers` the only neighbours and forwarding entries of a device.

    Return how many entries changed. Raises OSError.
    """
    wanted = set(peers)
    known, forwarded = _neighbours(nl, index), _entries(nl, index)
    steps = [_change(RTM_NEWNEIGH, index, entry) for entry in wanted - forwarded]
    steps += [neighbours.add(index, peer, mac) for mac, peer in wanted - known]
    steps += [neighbours.delete(index, peer) for _mac, peer in known - wanted]
    steps += [_change(RTM_DELNEIGH, index, entry) for entry in forwarded - wanted]
    for error in nl.batch(steps):
        if error and error.errno != errno.ENOENT:
            raise error
    return len(steps)


def add_station(index: int, mac: str) -> Request:
    """Return the request for a static entry: a MAC is behind a bridge port, whatever frames arrive (sticky)."""
    payload = NDMSG.pack(socket.AF_BRIDGE, index, NUD_NOARP, NTF_MASTER | NTF_STICKY, 0) + netlink.attribute(
        NDA_LLADDR, ip_links.mac_bytes(mac)
    )
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, payload, f"add forwarding entry {mac}")


def add_local(index: int, mac: str) -> Request:
    """Return the request for a local entry: frames for a MAC of a bridge are for the node (bridge(8), `local`)."""
    payload = NDMSG.pack(socket.AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0) + netlink.attribute(
        NDA_LLADDR, ip_links.mac_bytes(mac)
    )
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, payload, f"add the bridge's own entry {mac}")


def stations(nl: Netlink) -> set[tuple[int, str]]:
    """Return bridge ports with the MACs of their static entries. Raises NetlinkError."""
    return {(index, mac) for index, mac, state, flags in _all(nl) if state & NUD_NOARP and flags & NTF_STICKY}


def local(nl: Netlink) -> set[tuple[int, str]]:
    """Return bridges and ports with the MACs of their local entries. Raises NetlinkError."""
    return {(index, mac) for index, mac, state, _flags in _all(nl) if state & NUD_PERMANENT}


def _all(nl: Netlink) -> Iterator[tuple[int, str, int, int]]:
    """Yield interface, MAC, state and flags of every entry."""
    header = NDMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0)
    for payload in nl.dump(Request(RTM_GETNEIGH, 0, header, "list forwarding entries")):
        _family, index, state, flags, _type = NDMSG.unpack_from(payload)
        has = netlink.attributes(payload, NDMSG.size, len(payload))
        if NDA_LLADDR in has:
            yield index, has[NDA_LLADDR].hex(":"), state, flags


def _neighbours(nl: Netlink, index: int) -> set[Entry]:
    return {
        (mac, address)
        for (device, address), mac in neighbours.permanent(nl).items()
        if device == index and isinstance(address, IPv4Address)
    }


def _entries(nl: Netlink, index: int) -> set[Entry]:
    header = NDMSG.pack(socket.AF_BRIDGE, index, 0, 0, 0)
    found = set()
    for payload in nl.dump(Request(RTM_GETNEIGH, 0, header, "list forwarding entries")):
        has = netlink.attributes(payload, NDMSG.size, len(payload))
        if NDMSG.unpack_from(payload)[1] == index and len(has.get(NDA_DST, b"")) == 4:
            address = ipaddress.IPv4Address(has[NDA_DST])
            found.add((has[NDA_LLADDR].hex(":"), address))
    return found


def _change(kind: int, index: int, entry: Entry) -> Request:
    mac, peer = entry
    payload = (
        NDMSG.pack(socket.AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
        + netlink.attribute(NDA_DST, peer.packed)
        + netlink.attribute(NDA_LLADDR, ip_links.mac_bytes(mac))
    )
    flags = NLM_F_CREATE | NLM_F_REPLACE if kind == RTM_NEWNEIGH else 0
    return Request(kind, flags, payload, f"forwarding entry {mac} to {peer}")
