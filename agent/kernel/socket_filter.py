"""Classic BPF filters of sockets: which packets or notifications a socket receives (networking/filter.rst).

A filter loads parts of a packet in big-endian order, whatever the byte order of the part is.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Mapping

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
LOAD_WORD, LOAD_HALF, LOAD_BYTE, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x28, 0x30, 0x15, 0x45, 0x06
AUXILIARY = 0xFFFFF000  # SKF_AD_OFF: from here on are not bytes of the packet, but what the kernel knows of it
PACKET_TYPE, VLAN_TAG_PRESENT = AUXILIARY + 4, AUXILIARY + 48
WHOLE = 0xFFFFFFFF

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter of linux/filter.h

Filter = Mapping[str, tuple[int, str, str, int]]
"""Instructions by label: operation, label of the next one if its test holds and if not, operand.

An empty label is the instruction that follows.
"""


def big_endian(value: int, form: str = "=H") -> int:
    """Return a number in the kernel's byte order as a filter loads it; `form` is its format in `struct`."""
    return int.from_bytes(struct.pack(form, value), "big")


def assemble(instructions: Filter) -> bytes:
    """Return the code of a filter, an array of struct sock_filter."""
    lines = {label: number for number, label in enumerate(instructions)}
    return b"".join(
        _INSTRUCTION.pack(operation, *(lines[to] - lines[label] - 1 if to else 0 for to in (yes, no)), operand)
        for label, (operation, yes, no, operand) in instructions.items()
    )


def attach(sock: socket.socket, code: bytes) -> None:
    """Let a socket receive only what the filter keeps. Raises OSError."""
    room = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(code) // _INSTRUCTION.size, ctypes.addressof(room))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
