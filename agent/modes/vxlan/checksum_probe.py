"""Test if datagrams that the NIC checksums reach peers through the tunnel; if not, the kernel can checksum them.

Some NICs claim to checksum packets within vxlan packets and corrupt them. The receiver drops such a packet without
a word; one that is whole, for a UDP port where nobody listens, it answers (ICMP port unreachable). A datagram
without a checksum, which UDP over IPv4 may have, tells a corrupted one from a peer that does not answer at all.
"""

from __future__ import annotations

import array
import fcntl
import random
import socket
import struct
from ipaddress import IPv4Address

SO_NO_CHECK, SIOCETHTOOL, ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 11, 0x8946, 0x16, 0x17
PORTS = range(61000, 65536)  # neither ephemeral ports of Linux nor well-known ones
TRIES, PATIENCE = 3, 0.5  # seconds; a peer sends one such error a second to whom it sent many


def corrupted(peer: IPv4Address) -> bool | None:
    """Return whether datagrams arrive at an address of a peer only without a checksum; None where none does."""
    if _answered(peer, checksum=True):
        return False
    if not _answered(peer, checksum=False):
        return None
    return not _answered(peer, checksum=True)


def checksums(device: str) -> bool:
    """Return whether checksums of packets out of a device are left to whatever is below it. Raises OSError."""
    return bool(_ethtool(device, ETHTOOL_GTXCSUM, 0))


def leave_checksums(device: str, *, below: bool) -> None:
    """Leave the checksums to whatever is below the device, or let the kernel make them. Raises OSError."""
    _ethtool(device, ETHTOOL_STXCSUM, int(below))


def _answered(peer: IPv4Address, *, checksum: bool) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(PATIENCE)
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, int(not checksum))
            probe.connect((str(peer), random.choice(PORTS)))  # noqa: S311 - no secret
            for _ in range(TRIES):
                probe.send(b"testcni")
                try:
                    return not probe.recv(1)  # somebody listens there: that says nothing of checksums
                except TimeoutError:
                    continue
        except ConnectionRefusedError:
            return True
        except OSError:  # no route, or a firewall of this node
            return False
    return False


def _ethtool(device: str, command: int, value: int) -> int:
    """SIOCETHTOOL with struct ethtool_value (linux/ethtool.h)."""
    data = array.array("I", [command, value])
    request = struct.pack("=16sQ16x", device.encode(), data.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)
    return data[1]
