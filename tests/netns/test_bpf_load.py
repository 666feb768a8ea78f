"""Loading, adopting and replacing eBPF objects; maps of many entries; filters at devices."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from agent.kernel import netlink, tc
from agent.kernel.bpf import syscall
from agent.kernel.bpf.loader import LAYOUT, Loader
from agent.kernel.bpf.syscall import BpfError
from agent.model.marks import BPF_PINS
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.maps import Config, Endpoint
from tests.lab.state import fds
from tests.netns.node import OBJECTS, command, private_bpffs

MANY = 5000
FAMILY = vxlan_maps.FAMILY


def loader(objects: Path) -> Loader:
    """The loader of an agent that has just started."""
    return Loader(objects, BPF_PINS)


def blocks(count: int, first: int = 0) -> dict[IPv4Network, IPv4Address]:
    base = int(IPv4Address("10.0.0.0"))
    return {
        IPv4Network((base + 256 * n, 24)): IPv4Address(int(IPv4Address("172.16.0.1")) + n)
        for n in range(first, first + count)
    }


def synced(maps: dict[str, syscall.Map], wanted: dict[IPv4Network, IPv4Address]) -> tuple[tuple[int, int], float]:
    began = time.monotonic()
    put = vxlan_maps.put_nodes(maps, wanted, wanted.values())
    removed = vxlan_maps.remove_other_nodes(maps, wanted, wanted.values())
    return (put, removed), time.monotonic() - began


def test_programs_are_adopted_after_a_restart() -> None:
    private_bpffs()
    first = loader(OBJECTS).load(FAMILY)
    again = loader(OBJECTS).load(FAMILY)
    assert (first.adopted, again.adopted) == (False, True)
    assert {p.id for p in first.programs.values()} == {p.id for p in again.programs.values()}
    vxlan_maps.put_pod(
        first.maps, IPv4Address("10.244.1.2"), Endpoint(7, "0a:58:0a:f4:01:02", "ee:00:00:00:00:01")
    )
    known = Endpoint(7, "0a:58:0a:f4:01:02", "ee:00:00:00:00:01")
    assert vxlan_maps.pods(again.maps) == {IPv4Address("10.244.1.2"): known}


def test_threads_that_ask_at_once_open_each_descriptor_once() -> None:
    """As the calls do that come when an agent starts: a set for each of them stayed open."""
    private_bpffs()
    loader(OBJECTS).load(FAMILY)
    again, before = loader(OBJECTS), fds(os.getpid())
    barrier = threading.Barrier(16)

    def ask(number: int) -> object:
        barrier.wait()
        return again.maps(FAMILY) if number % 2 else again.adopt(FAMILY)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(16)))
    assert fds(os.getpid()) == before + len(FAMILY.programs) + len(FAMILY.maps)


def test_a_load_does_not_go_on_with_maps_whose_pins_were_removed() -> None:
    private_bpffs()
    loader(OBJECTS).load(FAMILY)
    again = loader(OBJECTS)
    assert again.maps(FAMILY)  # of the earlier agent
    shutil.rmtree(BPF_PINS)
    loaded = again.load(FAMILY)
    pinned = loader(OBJECTS).maps(FAMILY)
    assert pinned
    known = Endpoint(7, "0a:58:0a:f4:01:02", "ee:00:00:00:00:01")
    vxlan_maps.put_pod(loaded.maps, IPv4Address("10.244.1.2"), known)
    assert vxlan_maps.pods(pinned) == {IPv4Address("10.244.1.2"): known}


def test_a_load_that_died_half_way_is_taken_up(tmp_path: Path) -> None:
    private_bpffs()
    loader(OBJECTS).load(FAMILY)
    home = next((BPF_PINS / LAYOUT).glob("programs-*"))
    (home / "veth_egress").unlink()
    assert not loader(OBJECTS).load(FAMILY).adopted
    assert loader(OBJECTS).load(FAMILY).adopted


def test_newer_objects_share_the_maps_and_the_old_ones_go(tmp_path: Path) -> None:
    private_bpffs()
    old = loader(OBJECTS).load(FAMILY)
    vxlan_maps.configure(old.maps, Config(IPv4Address("192.0.2.1"), 1, 8472, 1))
    for name in FAMILY.programs:
        (tmp_path / f"{name}.o").write_bytes((OBJECTS / f"{name}.o").read_bytes() + b"\0")
    new = loader(tmp_path).load(FAMILY)
    assert not {p.id for p in old.programs.values()} & {p.id for p in new.programs.values()}
    assert not vxlan_maps.configure(new.maps, Config(IPv4Address("192.0.2.1"), 1, 8472, 1)), "it is there already"
    assert len(loader(tmp_path).retire(FAMILY)) == 1
    assert loader(tmp_path).load(FAMILY).adopted
    assert not loader(OBJECTS).load(FAMILY).adopted


def test_maps_that_only_an_earlier_version_had_go_when_its_programs_do() -> None:
    private_bpffs()
    root = BPF_PINS / LAYOUT
    loaded = loader(OBJECTS).load(FAMILY)
    (former,) = FAMILY.former
    syscall.pin(loaded.maps["nodes"].fd, root / former)
    assert loader(OBJECTS).load(FAMILY).adopted
    assert loader(OBJECTS).retire(FAMILY) == [root / former]
    assert loader(OBJECTS).retire(FAMILY) == []
    syscall.pin(loaded.maps["nodes"].fd, root / former)
    assert loader(OBJECTS).drop(FAMILY)
    assert list(root.iterdir()) == []


@pytest.mark.alone
def test_five_thousand_nodes() -> None:
    private_bpffs()
    maps = dict(loader(OBJECTS).load(FAMILY).maps)
    wanted = blocks(MANY)
    done, took = synced(maps, wanted)
    assert done == (2 * MANY, 0)
    assert took < 1
    assert synced(maps, wanted)[0] == (0, 0)
    moved = {**wanted, IPv4Network("10.0.7.0/24"): IPv4Address("172.31.0.1")}
    assert synced(maps, moved)[0] == (2, 1), "a block and a node; the old node goes"
    assert synced(maps, blocks(10, MANY))[0] == (20, 2 * MANY)


def test_a_map_is_emptied_and_dumped_in_any_size() -> None:
    private_bpffs()
    maps = dict(loader(OBJECTS).load(FAMILY).maps)
    for count in (0, 1, syscall.BATCH - 1, syscall.BATCH, syscall.BATCH + 1, 0):
        wanted = blocks(count)
        synced(maps, wanted)
        assert len(maps["blocks"].items()) == len(maps["nodes"].items()) == count


def test_kernels_without_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    private_bpffs()
    maps = dict(loader(OBJECTS).load(FAMILY).maps)
    call = syscall.call

    def old(number: int, *more: object) -> int:
        if number in (syscall.LOOKUP_BATCH, syscall.UPDATE_BATCH, syscall.DELETE_BATCH):
            raise BpfError(syscall.ENOTSUPP, "batch")
        return call(number, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(syscall, "call", old)
    assert synced(maps, blocks(100))[0] == (200, 0)
    assert synced(maps, blocks(50))[0] == (0, 100)
    assert len(maps["blocks"].items()) == 50


def test_a_full_map_is_told() -> None:
    private_bpffs()
    maps = loader(OBJECTS).load(FAMILY).maps
    with pytest.raises(BpfError, match="map pods: update") as caught:
        maps["pods"].put_all({n.to_bytes(4, "big"): bytes(16) for n in range(16385)})
    assert "max_entries" in caught.value.remedy


def test_filters_are_attached_kept_and_replaced(tmp_path: Path) -> None:
    private_bpffs()
    command("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    device, nl, loaded = socket.if_nametoindex("v0"), netlink.host(), loader(OBJECTS).load(FAMILY)
    programs: dict[tc.Hook, syscall.Program] = {
        "ingress": loaded.programs["veth_ingress"],
        "egress": loaded.programs["veth_egress"],
    }
    assert tc.attached(nl, device, "ingress") == 0
    assert tc.ensure(nl, device, programs)
    assert not tc.ensure(nl, device, programs)
    assert tc.attached(nl, device, "egress") == programs["egress"].id
    other = command("tc", "filter", "show", "dev", "v0", "ingress")
    assert "pref 84 bpf" in other
    assert "veth_ingress direct-action" in other
    foreign = next(BPF_PINS.rglob("vxlan_egress"))
    command("tc", "filter", "add", "dev", "v0", "ingress", "pref", "1", "bpf", "da", "pinned", str(foreign))
    assert tc.attached(nl, device, "ingress") == programs["ingress"].id
    assert tc.ensure(nl, device, {"ingress": loaded.programs["vxlan_ingress"]})
    assert tc.attached(nl, device, "ingress") == loaded.programs["vxlan_ingress"].id
    assert "pref 1 bpf" in command("tc", "filter", "show", "dev", "v0", "ingress"), "others' filters stay"


@pytest.mark.alone
def test_attaching_takes_little_time() -> None:
    private_bpffs()
    nl, loaded = netlink.host(), loader(OBJECTS).load(FAMILY)
    programs: dict[tc.Hook, syscall.Program] = {
        "ingress": loaded.programs["veth_ingress"],
        "egress": loaded.programs["veth_egress"],
    }
    times = []
    for number in range(20):
        command("ip", "link", "add", f"v{number}", "type", "veth", "peer", "name", f"w{number}")
        device = socket.if_nametoindex(f"v{number}")
        began = time.perf_counter()
        tc.attach(nl, device, programs)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.002, "0.1 ms on an idle machine"


def _no_bpffs() -> None:
    command("mount", "-t", "tmpfs", "none", "/sys/fs/bpf")


def _no_libbpf() -> None:
    monkey = pytest.MonkeyPatch()
    monkey.setattr(ctypes, "CDLL", _refuse)


def _refuse(*_: object, **__: object) -> None:
    raise OSError("libbpf.so.1: cannot open shared object file")


def _no_rights() -> None:
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # _LINUX_CAPABILITY_VERSION_3, capset(2)
    assert ctypes.CDLL(None).capset(header, none) == 0


@pytest.mark.parametrize(
    ("spoil", "message", "remedy"),
    [
        (_no_bpffs, "is not a BPF file system", "mount -t bpf bpf /sys/fs/bpf"),
        (_no_libbpf, "no libbpf 1.x: libbpf.so.1", "libbpf1"),
        (_no_rights, "Operation not permitted", "run the agent privileged"),
    ],
)
def test_what_hinders_is_told(spoil: Callable[[], None], message: str, remedy: str) -> None:
    private_bpffs()
    spoil()
    with pytest.raises(BpfError, match=message) as caught:
        loader(OBJECTS).load(FAMILY)
    assert remedy in caught.value.remedy


def test_a_program_that_the_verifier_refuses_is_quoted(tmp_path: Path) -> None:
    private_bpffs()
    source = tmp_path / "bad.c"
    source.write_text(
        '#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nchar l[] SEC("license") = "GPL";\n'
        'SEC("tc") int veth_ingress(struct __sk_buff *skb)'
        "{ return *(int *)(long)(skb->data + 4); }\n"
    )
    for name in FAMILY.programs:
        (tmp_path / f"{name}.o").write_bytes((OBJECTS / f"{name}.o").read_bytes())
    subprocess.run(
        [
            "clang", "-target", "bpf", "-O2", "-g", "-idirafter", "/usr/include/x86_64-linux-gnu",
            "-c", str(source), "-o", str(tmp_path / "veth_ingress.o"),
        ],
        check=True,
    )  # fmt: skip
    with pytest.raises(BpfError, match="pointer arithmetic") as caught:
        loader(tmp_path).load(FAMILY)
    assert caught.value.errno in (errno.EACCES, errno.EINVAL)
    assert not loader(OBJECTS).load(FAMILY).adopted, "nothing half loaded stays"
