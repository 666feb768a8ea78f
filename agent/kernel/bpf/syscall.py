"""Call bpf(2): maps, programs and pins by descriptor. Structures are those of union bpf_attr in linux/bpf.h.

No library: one would cost 11 MiB of memory and know TCX only in newer versions than distributions have.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSCALL: Mapping[str, int] = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
LOOKUP, UPDATE, DELETE, NEXT_KEY, OBJ_PIN, OBJ_GET, PROG_ATTACH, PROG_DETACH = 1, 2, 3, 4, 6, 7, 8, 9
PROG_FD_BY_ID, INFO_BY_FD, PROG_QUERY, LOOKUP_BATCH, UPDATE_BATCH, DELETE_BATCH = 13, 15, 16, 24, 26, 27
PER_CPU = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH
ENOTSUPP = 524  # the kernel's own: this map type has no batches
BATCH = 4096
NAME = 16  # BPF_OBJ_NAME_LEN

ELEMENT = struct.Struct("=IxxxxQQQ")  # map, key, value or next key, flags
BATCHES = struct.Struct("=QQQQIIQQ")  # in, out, keys, values, count, map, element flags, flags

_libc = ctypes.CDLL(None, use_errno=True)


class BpfError(OSError):
    """bpf(2) or libbpf failed: what was tried, why, and in `remedy` how to fix it."""

    def __init__(self, number: int, what: str, remedy: str = "") -> None:
        super().__init__(number, what)
        self.remedy = remedy or REMEDIES.get(number, "see the kernel's log (dmesg)")

    def __str__(self) -> str:
        return str(self.strerror)


REMEDIES: Mapping[int, str] = {
    errno.EPERM: "run the agent privileged (CAP_BPF, CAP_NET_ADMIN); see /sys/kernel/security/lockdown too",
    errno.ENOSYS: "use a kernel with CONFIG_BPF_SYSCALL, 5.15 or newer",
    errno.ENOSPC: "the map is full: see its max_entries in ebpf/maps.h",
    errno.E2BIG: "the map is full: see its max_entries in ebpf/maps.h",
    errno.ENOMEM: "free memory, or raise the limit of locked memory (ulimit -l)",
}


def call(command: int, attr: bytes | ctypes.Array[ctypes.c_char], what: str) -> int:
    """Make the system call; the kernel may write into a buffer `attr`. Raises BpfError."""
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise BpfError(errno.ENOSYS, f"bpf(2) has no known number on {platform.machine()}")
    result: int = _libc.syscall(number, command, attr, len(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise BpfError(code, f"{what}: {os.strerror(code)}")
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _buffer(data: bytes | int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, data if isinstance(data, int) else len(data))


@dataclass(frozen=True, slots=True)
class Map:
    """A map of a descriptor; keys and values are bytes in the layout of the programs."""

    fd: int
    name: str
    kind: int
    key: int
    """Size of a key in bytes."""
    value: int
    """Size of a value in bytes, of one CPU in a per-CPU map."""
    entries: int = 0
    """Maximum number of entries; of a ring buffer its size in bytes."""

    def get(self, key: bytes) -> bytes | None:
        """Return a value, or None; of a per-CPU map all CPUs' values, each padded to 8 bytes. Raises BpfError."""
        size = (self.value + 7 & ~7) * possible_cpus() if self.kind in PER_CPU else self.value
        held, value = _buffer(key), _buffer(size)
        try:
            call(LOOKUP, ELEMENT.pack(self.fd, _address(held), _address(value), 0), f"map {self.name}: look up")
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key. Raises BpfError."""
        held, new = _buffer(key), _buffer(value)
        call(UPDATE, ELEMENT.pack(self.fd, _address(held), _address(new), 0), f"map {self.name}: update")

    def remove(self, key: bytes) -> bool:
        """Delete a key; return whether it existed. Raises BpfError."""
        held = _buffer(key)
        try:
            call(DELETE, ELEMENT.pack(self.fd, _address(held), 0, 0), f"map {self.name}: delete")
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def items(self) -> dict[bytes, bytes]:
        """Return all entries. Raises BpfError."""
        found: dict[bytes, bytes] = {}
        count, token, after = BATCH, _buffer(max(self.key, 8)), _buffer(max(self.key, 8))
        resumed = 0
        while True:
            keys, values = _buffer(count * self.key), _buffer(count * self.value)
            attr = _buffer(
                BATCHES.pack(resumed, _address(after), _address(keys), _address(values), count, self.fd, 0, 0)
            )
            ended = False
            try:
                call(LOOKUP_BATCH, attr, f"map {self.name}: dump")
            except BpfError as error:
                if error.errno == errno.ENOSPC:  # a hash bucket larger than the room for it
                    count *= 2
                    continue
                if error.errno == ENOTSUPP:
                    return dict(self._one_by_one())
                if error.errno != errno.ENOENT:
                    raise
                ended = True
            got = BATCHES.unpack(attr.raw)[4]
            found.update(zip(_split(keys.raw, self.key, got), _split(values.raw, self.value, got), strict=True))
            if ended:
                return found
            token, after = after, token
            resumed = _address(token)

    def put_all(self, items: Mapping[bytes, bytes]) -> None:
        """Set many values. Raises BpfError."""
        pairs = list(items.items())
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            try:
                self._batch(UPDATE_BATCH, [key for key, _ in part], b"".join(value for _, value in part), "update")
            except BpfError as error:
                if error.errno != ENOTSUPP:
                    raise
                for key, value in part:
                    self.put(key, value)

    def remove_all(self, keys: Sequence[bytes]) -> None:
        """Delete many keys; missing ones are ignored. Raises BpfError."""
        for start in range(0, len(keys), BATCH):
            part = keys[start : start + BATCH]
            try:
                self._batch(DELETE_BATCH, part, b"", "delete")
            except BpfError as error:
                if error.errno not in (ENOTSUPP, errno.ENOENT):
                    raise
                for key in part:
                    self.remove(key)

    def _batch(self, command: int, keys: Sequence[bytes], values: bytes, verb: str) -> None:
        held, new = _buffer(b"".join(keys)), _buffer(values)
        attr = BATCHES.pack(0, 0, _address(held), _address(new) if values else 0, len(keys), self.fd, 0, 0)
        call(command, _buffer(attr), f"map {self.name}: {verb} {len(keys)} entries")

    def _one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        key, following = 0, _buffer(self.key)
        while True:
            try:
                attr = ELEMENT.pack(self.fd, key, _address(following), 0)
                call(NEXT_KEY, attr, f"map {self.name}: dump")
            except BpfError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            if (value := self.get(following.raw)) is not None:
                yield following.raw, value
            held = _buffer(following.raw)
            key = _address(held)


def _split(data: bytes, size: int, count: int) -> Iterator[bytes]:
    return (data[size * i : size * (i + 1)] for i in range(count))


@functools.cache
def possible_cpus() -> int:
    """Return the number of values of an entry of a per-CPU map."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().replace(",", "-").split("-")[-1]) + 1


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program of a descriptor."""

    fd: int
    name: str
    id: int
    verified: int
    """Instructions that the verifier processed; 0 if unknown (Linux before 5.16)."""
    size: int
    """Size of its instructions in bytes, 8 for each."""


def _info(fd: int, size: int) -> bytes:
    info = _buffer(size)
    call(INFO_BY_FD, _buffer(struct.pack("=IIQ", fd, size, _address(info))), "look at a BPF object")
    return info.raw


def program(fd: int) -> Program:
    """Return the information of a program (struct bpf_prog_info). Raises BpfError."""
    info = _info(fd, 232)
    name = info[64 : 64 + NAME].rstrip(b"\0").decode(errors="replace")
    identity, size, verified = (struct.unpack_from("=I", info, offset)[0] for offset in (4, 20, 216))
    return Program(fd, name, identity, verified, size)


def map_of(fd: int) -> Map:
    """Return the information of a map (struct bpf_map_info). Raises BpfError."""
    kind, _id, key, value, entries = struct.unpack_from("=IIIII", (info := _info(fd, 88)))
    return Map(fd, info[24 : 24 + NAME].rstrip(b"\0").decode(errors="replace"), kind, key, value, entries)


def pinned(path: Path) -> int:
    """Return a descriptor of what is pinned at a path. Raises BpfError."""
    name = _buffer(os.fsencode(path) + b"\0")
    return call(OBJ_GET, struct.pack("=QII", _address(name), 0, 0), f"open {path}")


def pin(fd: int, path: Path) -> None:
    """Pin a map or program: it exists as long as the file does. Raises BpfError."""
    name = _buffer(os.fsencode(path) + b"\0")
    call(OBJ_PIN, struct.pack("=QII", _address(name), fd, 0), f"pin {path}")


def by_id(identity: int) -> int:
    """Return a descriptor of the program of an id. Raises BpfError."""
    return call(PROG_FD_BY_ID, struct.pack("=III", identity, 0, 0), f"open program {identity}")
