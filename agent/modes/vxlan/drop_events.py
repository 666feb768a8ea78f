"""The events of single packets from the programs: a ring buffer of sampled drops, and the map of flows."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from agent.kernel.bpf.ring_buffer import RingBuffer
from agent.kernel.bpf.syscall import Map
from agent.modes.vxlan.maps import REASONS

_EVENT = struct.Struct("=QII4s4s4sHHHB6s3x")  # struct event in ebpf/maps.h
_FLOW = struct.Struct("=4s4sHHB3x")
PROTOCOLS: Mapping[int, str] = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}


@dataclass(frozen=True, slots=True)
class Flow:
    """The two ends that speak; ports are 0 where there are none.

    Of what is not IPv4 only the EtherType is known.
    """

    source: IPv4Address
    destination: IPv4Address
    source_port: int
    destination_port: int
    protocol: str

    def __str__(self) -> str:
        return f"{self.source}:{self.source_port} → {self.destination}:{self.destination_port} {self.protocol}"


@dataclass(frozen=True, slots=True)
class Drop:
    """A dropped packet."""

    time: float
    """Seconds of CLOCK_MONOTONIC."""
    reason: str
    device: int
    """Index of the device that it came from or would have left by."""
    flow: Flow
    remote: IPv4Address | None
    """The node that it came from through the tunnel."""
    mac: str
    """It came from this one."""


class Drops:
    """The sampled drops. Each is read once, by one reader only."""

    def __init__(self, events: Map, turns: Path) -> None:
        """`turns`: what all readers lock, see RingBuffer. Raises OSError."""
        self._ring = RingBuffer(events, turns)

    def wait(self, seconds: float) -> list[Drop]:
        """Return the drops that there are, as soon as there is one or the time is over. Raises OSError."""
        return [drop(data) for data in self._ring.wait(seconds) if len(data) >= _EVENT.size]


def drop(data: bytes) -> Drop:
    """An event as the programs write it."""
    nanoseconds, reason, device, source, destination, remote, *rest = _EVENT.unpack_from(data)
    source_port, destination_port, ethertype, protocol, mac = rest
    kind = socket.ntohs(ethertype)
    name = PROTOCOLS.get(protocol, str(protocol)) if kind == 0x0800 else f"ethertype {kind:#06x}"
    ends = IPv4Address(source), IPv4Address(destination)
    flow = Flow(*ends, socket.ntohs(source_port), socket.ntohs(destination_port), name)
    what = REASONS[reason] if reason < len(REASONS) else str(reason)
    return Drop(nanoseconds / 1e9, what, device, flow, IPv4Address(remote) if any(remote) else None, mac.hex(":"))


def flows(maps: Mapping[str, Map]) -> set[Flow]:
    """The flows between pods that the node's stack carried, in the direction that it did. Raises BpfError."""
    found = set()
    for key, value in maps["flows"].items().items():
        low, high, low_port, high_port, protocol = _FLOW.unpack(key)
        ends = [(IPv4Address(low), socket.ntohs(low_port)), (IPv4Address(high), socket.ntohs(high_port))]
        (source, source_port), (destination, destination_port) = ends if value == low else reversed(ends)
        name = PROTOCOLS.get(protocol, str(protocol))
        found.add(Flow(source, destination, source_port, destination_port, name))
    return found
