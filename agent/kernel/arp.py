"""ARP by hand: to tell who has an address that the kernel answers for without having it, and to ask (RFC 5227).

Asked is by probes, which name no sender's address, so that nobody's cache changes.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from agent.ip import Address
from agent.kernel import link_operations
from agent.kernel.ip_links import mac_bytes

ETH_P_ARP, ETH_P_ALL, REQUEST = 0x0806, 0x0003, 1
BROADCAST, NO_MAC, NO_ADDRESS = b"\xff" * 6, bytes(6), bytes(4)
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_UNICAST, SO_ATTACH_FILTER = 263, 1, 3, 26
PROBES, PATIENCE = 3, 0.05  # seconds for all of them: the answer of a neighbour takes less than a millisecond
LATE = 64  # frames that are read after that: a flood has no end

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter of linux/filter.h
_ARP_FOR_US = b"".join(
    _INSTRUCTION.pack(*line)
    for line in (
        (0x20, 0, 0, 0xFFFFF004),  # A = type of the packet
        (0x15, 5, 0, 4),  # ours (PACKET_OUTGOING): drop
        (0x20, 0, 0, 0xFFFFF030),  # A = whether it has a VLAN tag
        (0x15, 0, 3, 0),  # it has, so it is for another device: drop
        (0x28, 0, 0, 12),  # A = EtherType
        (0x15, 0, 1, ETH_P_ARP),
        (0x06, 0, 0, 64),  # take it
        (0x06, 0, 0, 0),  # drop it
    )
)
_filter = ctypes.create_string_buffer(_ARP_FOR_US, len(_ARP_FOR_US))


def request(mac: bytes, sender: bytes, target: bytes) -> bytes:
    """The frame of an ARP request to everybody."""
    ethernet = BROADCAST + mac + struct.pack("!H", ETH_P_ARP)
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, REQUEST)  # Ethernet, IPv4, lengths of their addresses
    return ethernet + header + mac + sender + NO_MAC + target


def announcement(mac: str, address: Address) -> bytes:
    """The frame that tells everybody that `mac` has `address` (RFC 5227, 2.3)."""
    return request(mac_bytes(mac), address.packed, address.packed)


def announce(device: str, mac: str, address: Address) -> None:
    """Send it by an interface of this thread's namespace. Raises OSError."""
    with _socket() as sock:
        sock.bind((device, 0))
        sock.send(announcement(mac, address))


def who_has(device: str, address: Address, *, mac: str | None = None, rivals: bool = False) -> str | None:
    """The MAC of who says within PATIENCE that an IPv4 address is its own; None: nobody does.

    Asked by an interface of this thread's namespace, from `mac`, or the interface's own. With `rivals` whoever
    asks for the same address at this moment counts too: it is about to take it (RFC 5227, 2.1.1). Raises OSError.
    """
    with _socket() as sock:
        program = struct.pack("HP", len(_ARP_FOR_US) // _INSTRUCTION.size, ctypes.addressof(_filter))
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        # all protocols, as a slave's frames don't come as far as those who want one
        sock.bind((device, ETH_P_ALL))
        asker = mac_bytes(mac) if mac else sock.getsockname()[4]
        if mac:  # the interface need not be promiscuous to hear answers to this one
            member = struct.pack("=iHH8s", socket.if_nametoindex(device), PACKET_MR_UNICAST, len(asker), asker)
            sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        for _ in range(PROBES):
            sock.send(request(asker, NO_ADDRESS, address.packed))
            for frame in _heard(sock, time.monotonic() + PATIENCE / PROBES):
                if _tells(frame, asker, address, rivals=rivals):
                    return frame[22:28].hex(":")
    return None


def _heard(sock: socket.socket, until: float) -> Iterator[bytes]:
    """What comes until then, and what has come by then when a busy machine did not let us look."""
    late = iter(range(LATE))
    while (left := until - time.monotonic()) > 0 or next(late, None) is not None:
        sock.settimeout(max(0.0, left))
        try:
            yield sock.recv(64)
        except (TimeoutError, BlockingIOError):
            return


@contextmanager
def _socket() -> Iterator[socket.socket]:
    """A packet socket; closing one waits for an RCU grace period, about 15 ms, so another thread does it."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        yield sock
    finally:
        link_operations.run_later(sock.close)


def _tells(frame: bytes, asker: bytes, address: Address, *, rivals: bool) -> bool:
    """Whether an ARP frame says that its sender has the address, or wants it."""
    sender, has, wants = frame[22:28], frame[28:32], frame[38:42]
    if len(frame) < 42 or sender == asker:
        return False
    return has == address.packed or (rivals and has == NO_ADDRESS and wants == address.packed)
