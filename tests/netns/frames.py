"""Packets by hand, and programs run on them by the kernel (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from agent.kernel.bpf import syscall
from agent.kernel.bpf.ring_buffer import RingBuffer
from agent.kernel.bpf.syscall import Map, Program
from agent.kernel.ip_links import mac_bytes

PASS, DROP, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
PROG_TEST_RUN = 10
TEST_RUN = struct.Struct("=IIIIQQIIIIQQIII4x")
SKB = 192  # bytes of struct __sk_buff
MARK, IFINDEX, GSO_SEGS, GSO_SIZE = 8, 40, 164, 176  # offsets there
EVENT = struct.Struct("=QII4s4s4sHHHB6s3x")
ICMP, TCP, UDP, SCTP = 1, 6, 17, 132


@dataclass(frozen=True)
class Ran:
    verdict: int
    data: bytes
    mark: int


def run(program: Program, frame: bytes, device: int, *, mark: int = 0, gso: int = 0) -> Ran:
    """Return what a program does with a frame that comes or goes by a device."""
    context = ctypes.create_string_buffer(SKB)
    struct.pack_into("=I", context, MARK, mark)
    struct.pack_into("=I", context, IFINDEX, device)
    if gso:
        struct.pack_into("=I", context, GSO_SIZE, gso)
        struct.pack_into("=I", context, GSO_SEGS, -(-len(frame) // gso))
    data, out = ctypes.create_string_buffer(frame, len(frame)), ctypes.create_string_buffer(len(frame) + 256)
    after = ctypes.create_string_buffer(SKB)
    attr = ctypes.create_string_buffer(
        TEST_RUN.pack(
            program.fd, 0, len(frame), len(out), ctypes.addressof(data), ctypes.addressof(out), 1, 0,
            SKB, SKB, ctypes.addressof(context), ctypes.addressof(after), 0, 0, 0,
        ), TEST_RUN.size,
    )  # fmt: skip
    syscall.call(PROG_TEST_RUN, attr, f"run {program.name}")
    _fd, verdict, _in, size = TEST_RUN.unpack(attr.raw)[:4]
    return Ran(verdict, out.raw[:size], struct.unpack_from("=I", after, MARK)[0])


def events(ring: Map) -> list[tuple[Any, ...]]:
    """Return what is in the ring buffer, each as struct event of ebpf/maps.h."""
    with contextlib.closing(RingBuffer(ring, Path(__file__))) as reader:
        found = [EVENT.unpack_from(data) for data in reader.wait(0)]
    return [(*e[:6], *map(socket.ntohs, e[6:9]), *e[9:]) for e in found]


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(destination: str, source: str, payload: bytes, kind: int = 0x0800) -> bytes:
    return mac_bytes(destination) + mac_bytes(source) + struct.pack("!H", kind) + payload


def ipv4(
    source: str, destination: str, protocol: int, payload: bytes = b"", *, options: bytes = b"", fragment: int = 0,
    length: int | None = None, version: int = 4, words: int | None = None,
) -> bytes:  # fmt: skip
    words = 5 + len(options) // 4 if words is None else words
    total = 20 + len(options) + len(payload) if length is None else length
    header = struct.pack(
        "!BBHHHBBH4s4s", version << 4 | words, 0, total, 1, fragment, 64, protocol, 0,
        IPv4Address(source).packed, IPv4Address(destination).packed,
    ) + options  # fmt: skip
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def udp(source: int, destination: int, payload: bytes = b"hello") -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def tcp(source: int, destination: int, flags: int = 0x10) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 1, 5 << 4, flags, 1000, 0, 0)


def echo(identifier: int = 7, kind: int = 8) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, identifier, 1)


def unreachable(about: bytes) -> bytes:
    return struct.pack("!BBHI", 3, 3, 0, 0) + about[:28]


def arp(
    source_mac: str, source: str, target: str, operation: int = 1, target_mac: str = "00:00:00:00:00:00"
) -> bytes:
    return (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        + mac_bytes(source_mac) + IPv4Address(source).packed + mac_bytes(target_mac) + IPv4Address(target).packed
    )  # fmt: skip


def vxlan(vni: int, frame: bytes) -> bytes:
    """The payload of a UDP packet (RFC 7348, section 5)."""
    return struct.pack("!II", 0x08000000, vni << 8) + frame


def ipv6(
    source: str, destination: str, protocol: int, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    total = len(payload) if length is None else length
    header = struct.pack("!IHBB", 6 << 28, total, protocol, 255)
    return header + IPv6Address(source).packed + IPv6Address(destination).packed + payload


def icmp6(kind: int, rest: bytes = b"", code: int = 0) -> bytes:
    """A message of ICMPv6 with a checksum of 0, as only the kernel's stack looks at it."""
    return struct.pack("!BBH", kind, code, 0) + rest


def nd(kind: int, target: str, *options: bytes) -> bytes:
    """A solicitation (135) or advertisement (136) of a neighbour (RFC 4861)."""
    return icmp6(kind, bytes(4) + IPv6Address(target).packed + b"".join(options))


def option(kind: int, mac: str) -> bytes:
    """The link-layer address of a source (1) or target (2) in neighbour discovery."""
    return struct.pack("!BB", kind, 1) + mac_bytes(mac)


def extension(following: int, rest: bytes = bytes(6), words: int = 0) -> bytes:
    """An extension header of IPv6 with `words` of 8 bytes after its first 8 (RFC 8200)."""
    return struct.pack("!BB", following, words) + rest


def fragment6(following: int, offset: int = 0, *, more: bool = True) -> bytes:
    """A fragment header of IPv6; `offset` in 8 bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, 1)
