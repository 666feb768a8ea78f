"""eBPF objects for tests by ctypes on libbpf: built, loaded, run on packets made by hand, pinned for tc."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from tests.netns.node import command

SOURCES = Path(__file__).parents[2] / "ebpf"
CLONE_NEWNS = 0x20000
PASS, SHOT = 0xFFFFFFFF, 2
REASONS = ("sent", "received", "unknown_node", "spoofed", "malformed", "failed")

needs_clang = pytest.mark.skipif(not shutil.which("clang"), reason="clang is not installed")


class Run(ctypes.Structure):
    """struct bpf_test_run_opts of bpf/bpf.h."""

    _fields_ = (
        ("sz", c_size_t), ("data_in", c_char_p), ("data_out", c_void_p),
        ("data_size_in", c_uint32), ("data_size_out", c_uint32), ("ctx_in", c_char_p), ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32), ("ctx_size_out", c_uint32), ("retval", c_uint32), ("repeat", c_int),
        ("duration", c_uint32), ("flags", c_uint32), ("cpu", c_uint32), ("batch_size", c_uint32),
    )  # fmt: skip


def _libbpf() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        pytest.skip("libbpf is not installed")
    for name, result, arguments in (
        ("bpf_object__open_file", c_void_p, (c_char_p, c_void_p)),
        ("bpf_object__load", c_int, (c_void_p,)),
        ("bpf_object__find_program_by_name", c_void_p, (c_void_p, c_char_p)),
        ("bpf_object__find_map_by_name", c_void_p, (c_void_p, c_char_p)),
        ("bpf_map__set_pin_path", c_int, (c_void_p, c_char_p)),
        ("bpf_program__fd", c_int, (c_void_p,)),
        ("bpf_program__pin", c_int, (c_void_p, c_char_p)),
        ("bpf_map__fd", c_int, (c_void_p,)),
        ("bpf_map_update_elem", c_int, (c_int, c_char_p, c_char_p, c_uint64)),
        ("bpf_map_lookup_elem", c_int, (c_int, c_char_p, c_void_p)),
        ("bpf_prog_test_run_opts", c_int, (c_int, ctypes.POINTER(Run))),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def private_bpffs(folder: Path) -> Path:
    """A bpf file system that only this test's process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    command("mount", "--make-rprivate", "/")
    folder.mkdir()
    command("mount", "-t", "bpf", "bpf", str(folder))
    return folder


def build(folder: Path, name: str) -> Path:
    """The object of a program, compiled as the image has it."""
    made = folder / f"{name}.o"
    machine = command("gcc", "-print-multiarch").strip()
    flags = ("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror")
    include = ("-Wno-address-of-packed-member", "-idirafter", f"/usr/include/{machine}")
    subprocess.run(["clang", *flags, *include, "-c", SOURCES / f"{name}.c", "-o", made], check=True)
    return made


@dataclass(frozen=True)
class Ran:
    verdict: int
    data: bytes


class Ipip:
    """Both programs of one node, with maps of its own."""

    MAPS = ("ipip_node", "ipip_blocks", "ipip_nodes", "ipip_counters")

    def __init__(self, objects: Mapping[str, Path], pins: Path) -> None:
        self._bpf = _libbpf()
        self.pins = pins
        pins.mkdir()
        self._programs: dict[str, int] = {}
        self._maps: dict[str, int] = {}
        for name, path in objects.items():
            held = self._bpf.bpf_object__open_file(os.fsencode(path), None)
            assert held, f"{path} can't be opened"
            maps = {m: self._bpf.bpf_object__find_map_by_name(held, m.encode()) for m in self.MAPS}
            for one, handle in maps.items():
                assert not handle or not self._bpf.bpf_map__set_pin_path(handle, os.fsencode(pins / one))
            assert self._bpf.bpf_object__load(held) == 0, "the verifier's words are above"
            program = self._bpf.bpf_object__find_program_by_name(held, name.encode())
            self._programs[name] = self._bpf.bpf_program__fd(program)
            assert self._bpf.bpf_program__pin(program, os.fsencode(pins / name)) == 0
            self._maps |= {one: self._bpf.bpf_map__fd(handle) for one, handle in maps.items() if handle}

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        assert self._bpf.bpf_map_update_elem(self._maps[name], key, value, 0) == 0

    def configure(self, node: IPv4Address, blocks: Mapping[IPv4Network, tuple[IPv4Address, bool]]) -> None:
        """This node's address, and all nodes' blocks: whose, and whether packets there are encapsulated."""
        self._put("ipip_node", bytes(4), node.packed)
        for block, (owner, encapsulate) in blocks.items():
            key = struct.pack("=I", block.prefixlen) + block.network_address.packed
            self._put("ipip_blocks", key, owner.packed + struct.pack("=I", encapsulate))
            self._put("ipip_nodes", owner.packed, bytes(4))

    def counted(self) -> dict[str, int]:
        """Packets by what became of them."""
        cpus = int(Path("/sys/devices/system/cpu/possible").read_text().strip().split("-")[-1]) + 1
        found = {}
        for number, reason in enumerate(REASONS):
            values = ctypes.create_string_buffer(16 * cpus)
            key = struct.pack("=I", number)
            assert self._bpf.bpf_map_lookup_elem(self._maps["ipip_counters"], key, values) == 0
            packets = sum(struct.unpack_from("=Q", values, 16 * cpu)[0] for cpu in range(cpus))
            if packets:
                found[reason] = packets
        return found

    def run(self, program: str, frame: bytes) -> Ran:
        """What a program does with a frame."""
        out = ctypes.create_string_buffer(len(frame) + 256)
        opts = Run(
            sz=ctypes.sizeof(Run), data_in=frame, data_size_in=len(frame), data_out=ctypes.addressof(out),
            data_size_out=len(out), repeat=1,
        )  # fmt: skip
        result = self._bpf.bpf_prog_test_run_opts(self._programs[program], ctypes.byref(opts))
        assert result == 0, os.strerror(-result)
        return Ran(opts.retval, out.raw[: opts.data_size_out])
