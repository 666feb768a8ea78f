"""Gratuitous ARP (RFC 5227, 2.3) for an address that the kernel answers for without having it."""

from __future__ import annotations

import socket
import struct

from agent.datapath.rtnl import mac_bytes
from agent.model import Address

ETH_P_ARP, REQUEST = 0x0806, 1
BROADCAST = b"\xff" * 6


def announcement(mac: str, address: Address) -> bytes:
    """The frame that tells everybody that `mac` has `address`."""
    sender = mac_bytes(mac)
    ethernet = BROADCAST + sender + struct.pack("!H", ETH_P_ARP)
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, REQUEST)  # Ethernet, IPv4, lengths of their addresses
    return ethernet + header + sender + address.packed + bytes(6) + address.packed


def announce(device: str, mac: str, address: Address) -> None:
    """Send it by an interface of this thread's namespace. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as sock:
        sock.bind((device, 0))
        sock.send(announcement(mac, address))
