"""ipip by eBPF: every branch on packets made by hand, and nodes that talk through it."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network

import pytest

from tests.netns.bpf_objects import Programs
from tests.netns.frames import DROP, PASS
from tests.netns.node import Pod, command, private_bpffs

NODE, PEER, FAR, STRANGER = "192.0.2.1", "192.0.2.2", "198.51.100.3", "203.0.113.9"
MINE, ITS, NEAR = "10.244.1.2", "10.244.2.2", "10.244.3.3"
BLOCKS = {
    IPv4Network("10.244.1.0/24"): (IPv4Address(NODE), True),
    IPv4Network("10.244.2.0/24"): (IPv4Address(PEER), True),
    IPv4Network("10.244.3.0/24"): (IPv4Address(FAR), False),
}
ETHERNET = bytes.fromhex("0a0000000002 0a0000000001 0800")
IPIP, UDP, OUTER = 4, 17, 20
PAYLOAD = b"x" * 40


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    source: str,
    target: str,
    payload: bytes = PAYLOAD,
    *,
    protocol: int = UDP,
    tos: int = 0,
    fragment: int = 0x4000,
    words: int = 5,
    version: int = 4,
    longer: int = 0,
    identification: int = 0,
) -> bytes:
    header = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | words,
        tos,
        words * 4 + len(payload) + longer,
        identification,
        fragment,
        64,
        protocol,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    ) + bytes(words * 4 - 20)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def wrapped(inner: bytes, source: str = PEER, target: str = NODE, **more: int) -> bytes:
    return ETHERNET + ipv4(source, target, inner, protocol=IPIP, **more)


def bench() -> Programs:
    private_bpffs()
    made = Programs("one")
    made.configure(IPv4Address(NODE), BLOCKS)
    return made


def test_to_another_nodes_pod() -> None:
    it = bench()
    inner = ipv4(MINE, ITS, tos=0xB9)
    ran = it.run("ipip_egress", ETHERNET + inner)
    assert ran.verdict == PASS
    assert ran.data == ETHERNET + ipv4(NODE, PEER, inner, protocol=IPIP, tos=0xB9)
    assert checksum(ran.data[14:34]) == 0
    assert it.counted() == {"sent": 1}
    assert it.run("ipip_ingress", wrapped(ipv4(ITS, MINE))).data == ETHERNET + ipv4(ITS, MINE)


def test_a_pods_answer_to_a_node() -> None:
    it = bench()
    inner = ipv4(MINE, PEER)
    assert it.run("ipip_egress", ETHERNET + inner).data == ETHERNET + ipv4(NODE, PEER, inner, protocol=IPIP)
    for source, target in ((NODE, PEER), (STRANGER, PEER), (MINE, NODE), (MINE, FAR)):
        frame = ETHERNET + ipv4(source, target)
        assert it.run("ipip_egress", frame).data == frame
    assert it.counted() == {"sent": 1}


@pytest.mark.parametrize("target", [NEAR, MINE, STRANGER, FAR])
def test_what_goes_elsewhere_goes_as_it_is(target: str) -> None:
    it = bench()
    frame = ETHERNET + ipv4(MINE, target)
    for program in ("ipip_egress", "ipip_ingress"):
        ran = it.run(program, frame)
        assert (ran.verdict, ran.data) == (PASS, frame)
    assert it.counted() == {}


@pytest.mark.parametrize(
    "frame",
    [ETHERNET[:12] + b"\x08\x06" + bytes(28), ETHERNET[:12] + b"\x86\xdd" + bytes(40)],
)
def test_what_is_not_ipv4_goes_as_it_is(frame: bytes) -> None:
    it = bench()
    for program in ("ipip_egress", "ipip_ingress"):
        ran = it.run(program, frame)
        assert (ran.verdict, ran.data) == (PASS, frame)


def test_before_the_agent_has_spoken_nothing_is_touched() -> None:
    private_bpffs()
    it = Programs("one")
    for program, frame in (
        ("ipip_egress", ETHERNET + ipv4(MINE, ITS)),
        ("ipip_ingress", wrapped(ipv4(ITS, MINE))),
    ):
        ran = it.run(program, frame)
        assert (ran.verdict, ran.data) == (PASS, frame)


@pytest.mark.parametrize(
    ("inner", "source"),
    [
        (ipv4(ITS, MINE), PEER),
        (ipv4(PEER, MINE), PEER),  # the node itself
        (ipv4(STRANGER, MINE), PEER),  # a client that the node passes on
        (ipv4(NEAR, MINE), FAR),  # whether we would encapsulate does not count
    ],
)
def test_from_another_node(inner: bytes, source: str) -> None:
    it = bench()
    ran = it.run("ipip_ingress", wrapped(inner, source))
    assert (ran.verdict, ran.data) == (PASS, ETHERNET + inner)
    assert it.counted() == {"received": 1}


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (wrapped(ipv4(ITS, MINE), STRANGER), "drop_unknown_node"),
        (wrapped(ipv4(ITS, MINE), FAR), "drop_spoofed"),
        (wrapped(ipv4("10.244.1.9", MINE), PEER), "drop_spoofed"),
        (wrapped(ipv4(NODE, MINE), PEER), "drop_spoofed"),
        (wrapped(ipv4(ITS, MINE), words=6), "drop_malformed"),
        (wrapped(ipv4(ITS, MINE), fragment=0x2000), "drop_malformed"),
        (wrapped(ipv4(ITS, MINE), fragment=1), "drop_malformed"),
        (wrapped(ipv4(ITS, MINE, version=6)), "drop_malformed"),
        (wrapped(ipv4(ITS, MINE, longer=1)), "drop_malformed"),
        (wrapped(b"\x45" + bytes(10)), "drop_malformed"),
    ],
)
def test_drops(frame: bytes, reason: str) -> None:
    it = bench()
    assert it.run("ipip_ingress", frame).verdict == DROP
    assert it.counted() == {reason: 1}


def test_ipip_to_others_is_nobodys_business() -> None:
    it = bench()
    frame = wrapped(ipv4(ITS, MINE), STRANGER, ITS)
    ran = it.run("ipip_ingress", frame)
    assert (ran.verdict, ran.data) == (PASS, frame)


def test_congestion_on_the_way_is_told_to_who_understands_it() -> None:
    it = bench()
    ran = it.run("ipip_ingress", wrapped(ipv4(ITS, MINE, tos=2), tos=3))
    assert ran.data == ETHERNET + ipv4(ITS, MINE, tos=3)
    plain = ipv4(ITS, MINE, tos=0)
    assert it.run("ipip_ingress", wrapped(plain, tos=3)).data == ETHERNET + plain


class Node:
    """A node with one pod, whose underlay device encapsulates."""

    def __init__(self, number: int, peer: int) -> None:
        self.netns, self.pod = Pod(f"node{number}"), Pod(f"pod{number}")
        run, inside = self.netns.run, self.pod.run
        command(
            "ip", "link", "add", f"n{number}", "type", "veth", "peer", "name", "eth0", "netns", self.netns.path
        )
        command("ip", "link", "set", f"n{number}", "master", "switch", "up")
        self.address, self.pod_address = f"192.0.2.{number}", f"10.244.{number}.2"
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "set", "eth0", "up")
        run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=1")
        run("ip", "link", "add", "pod", "type", "veth", "peer", "name", "eth0", "netns", self.pod.path)
        run("ip", "link", "set", "pod", "up")
        run("ip", "address", "add", "169.254.1.1/32", "dev", "pod")
        run("ip", "route", "add", f"{self.pod_address}/32", "dev", "pod")
        inside("ip", "link", "set", "eth0", "mtu", "1480", "up")
        inside("ip", "address", "add", f"{self.pod_address}/32", "dev", "eth0")
        inside("ip", "route", "add", "169.254.1.1", "dev", "eth0")
        inside("ip", "route", "add", "default", "via", "169.254.1.1")
        route = (f"10.244.{peer}.0/24", "via", f"192.0.2.{peer}", "dev", "eth0", "onlink", "mtu", "1480")
        run("ip", "route", "add", *route)
        self.ipip = Programs(f"node{number}")
        blocks = {IPv4Network(f"10.244.{n}.0/24"): (IPv4Address(f"192.0.2.{n}"), True) for n in (number, peer)}
        self.ipip.configure(IPv4Address(self.address), blocks)
        self.ipip.attach(self.netns, "eth0")


SERVE = """
import hashlib, socket
with socket.create_server(("", 7000)) as server:
    print("ready", flush=True)
    connection = server.accept()[0]
    digest = hashlib.sha256()
    while data := connection.recv(65536):
        digest.update(data)
print(digest.hexdigest(), end="")
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000)) as connection:
    connection.sendall(bytes(range(256)) * (int(sys.argv[2]) // 256))
"""


@contextmanager
def server(pod: Pod, script: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a pod, once it has said that it is ready."""
    argv = ("nsenter", f"--net={pod.path}", sys.executable, "-c", script)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_nodes_talk_through_it() -> None:
    private_bpffs()
    command("ip", "link", "add", "switch", "type", "bridge")
    command("ip", "link", "set", "switch", "up")
    one, two = Node(1, 2), Node(2, 1)
    assert one.pod.reaches(two.pod_address)
    assert one.pod.reaches(two.address)
    full = ("ping", "-c", "3", "-i", "0.01", "-W", "1", "-q", "-M", "do", "-s", str(1480 - 28), two.pod_address)
    assert " 0% packet loss" in one.pod.run(*full)
    assert one.netns.reaches(two.pod_address), "from the node itself"
    data = bytes(range(256)) * 40_000  # 10 MB, in segments
    with server(two.pod, SERVE) as serving:
        one.pod.run(sys.executable, "-c", SEND, two.pod_address, str(len(data)))
        assert serving.communicate(timeout=20)[0] == hashlib.sha256(data).hexdigest()
    sent = one.ipip.counted()["sent"]
    assert 5 < sent < len(data) // 3000, "large segments stay large"
    assert one.ipip.counted()["received"] > 5
    assert not {"drop_failed", "drop_spoofed", "drop_malformed"} & set(one.ipip.counted() | two.ipip.counted())
