"""ARP frames sent by the agent itself: announce an address, or ask who has it (RFC 826, RFC 5227).

Questions are ARP probes. A probe names no sender's address, so it changes no cache.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from agent.ip import Address
from agent.kernel import socket_filter
from agent.kernel.ip_links import mac_bytes
from agent.kernel.link_operations import Reaper
from agent.kernel.socket_filter import JUMP_EQUAL, LOAD_HALF, LOAD_WORD, PACKET_TYPE, RETURN, VLAN_TAG_PRESENT

ETH_P_ARP, ETH_P_ALL, REQUEST = 0x0806, 0x0003, 1
BROADCAST, NO_MAC, NO_ADDRESS = b"\xff" * 6, bytes(6), bytes(4)
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_UNICAST = 263, 1, 3
PROBES, ANSWER_WITHIN = 3, 0.05  # seconds for all probes: a neighbour answers within a millisecond
LATE = 64  # frames read after that time; a limit, as a flood does not end

_ARP_FOR_US = socket_filter.assemble(
    {
        "type": (LOAD_WORD, "", "", PACKET_TYPE),
        "sent by us": (JUMP_EQUAL, "drop", "", socket.PACKET_OUTGOING),
        "tag": (LOAD_WORD, "", "", VLAN_TAG_PRESENT),
        "of no VLAN": (JUMP_EQUAL, "", "drop", 0),  # a tagged frame is for another device
        "EtherType": (LOAD_HALF, "", "", 12),
        "ARP": (JUMP_EQUAL, "keep", "drop", ETH_P_ARP),
        "keep": (RETURN, "", "", 64),
        "drop": (RETURN, "", "", 0),
    }
)


def request(mac: bytes, sender: bytes, target: bytes) -> bytes:
    """Return the frame of a broadcast ARP request (RFC 826)."""
    ethernet = BROADCAST + mac + struct.pack("!H", ETH_P_ARP)
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, REQUEST)  # Ethernet, IPv4, lengths of their addresses
    return ethernet + header + mac + sender + NO_MAC + target


def announcement(mac: str, address: Address) -> bytes:
    """Return the broadcast frame that announces that `mac` has `address` (RFC 5227, section 2.3)."""
    return request(mac_bytes(mac), address.packed, address.packed)


def announce(reaper: Reaper, device: str, mac: str, address: Address) -> None:
    """Announce by an interface of this thread's namespace that `mac` has `address`. Raises OSError."""
    with _socket(reaper) as sock:
        sock.bind((device, 0))
        sock.send(announcement(mac, address))


def who_has(
    reaper: Reaper, device: str, address: Address, *, mac: str | None = None, rivals: bool = False
) -> str | None:
    """Return the MAC of the machine that has an IPv4 address; None where none answers in ANSWER_WITHIN seconds.

    Probes go out of an interface of this thread's namespace, from `mac` or the interface's own MAC. With `rivals`,
    a machine that probes for the same address at this moment counts as well, as it is about to take the address
    (RFC 5227, section 2.1.1). Raises OSError.
    """
    with _socket(reaper) as sock:
        socket_filter.attach(sock, _ARP_FOR_US)
        # all protocols: frames of a parent of subinterfaces do not reach sockets of one protocol
        sock.bind((device, ETH_P_ALL))
        asker = mac_bytes(mac) if mac else sock.getsockname()[4]
        if mac:  # the interface receives answers to this MAC without promiscuous mode
            member = struct.pack("=iHH8s", socket.if_nametoindex(device), PACKET_MR_UNICAST, len(asker), asker)
            sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        for _ in range(PROBES):
            sock.send(request(asker, NO_ADDRESS, address.packed))
            for frame in _frames(sock, time.monotonic() + ANSWER_WITHIN / PROBES):
                if _claims(frame, asker, address, rivals=rivals):
                    return frame[22:28].hex(":")
    return None


def _frames(sock: socket.socket, until: float) -> Iterator[bytes]:
    """Yield frames until a time (time.monotonic), and those that waited in the socket on a busy machine."""
    late = iter(range(LATE))
    while (left := until - time.monotonic()) > 0 or next(late, None) is not None:
        sock.settimeout(max(0.0, left))
        try:
            yield sock.recv(64)
        except (TimeoutError, BlockingIOError):
            return


@contextmanager
def _socket(reaper: Reaper) -> Iterator[socket.socket]:
    """Open a packet socket, and close it in another thread: that waits for an RCU grace period, about 15 ms."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        yield sock
    finally:
        reaper.run_later(sock.close)


def _claims(frame: bytes, asker: bytes, address: Address, *, rivals: bool) -> bool:
    """Return whether an ARP frame says that its sender has the address or, with `rivals`, is about to take it."""
    sender, has, wants = frame[22:28], frame[28:32], frame[38:42]
    if len(frame) < 42 or sender == asker:
        return False
    return has == address.packed or (rivals and has == NO_ADDRESS and wants == address.packed)
