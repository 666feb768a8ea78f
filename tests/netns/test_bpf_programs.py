"""Packets of pods in the eBPF programs: verdict, bytes and counters of every branch."""

from __future__ import annotations

import os
from ipaddress import IPv4Address

import pytest

from agent.kernel.bpf.map_entries import Count
from agent.kernel.ip_links import mac_bytes
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.maps import Config
from tests.netns import frames
from tests.netns.bench import (
    FAR,
    GATEWAY,
    HERE_NONE,
    HOST,
    LSRR,
    MAC,
    MORE,
    NOBODY,
    NODE,
    OURS,
    OUTSIDE,
    PEER,
    SENDER,
    SERVICE,
    TUNNEL,
    VTEP,
    A,
    B,
    Bench,
)
from tests.netns.frames import DROP, ICMP, PASS, REDIRECT, SCTP, TCP, UDP, arp, echo, ethernet, ipv4, tcp, udp


def test_to_a_pod_of_this_node() -> None:
    bench = Bench()
    packet = ipv4(A, B, UDP, udp(1000, 53))
    ran = bench.pod(packet)
    assert ran.verdict == REDIRECT
    assert ran.data == ethernet(MAC[B], HOST[B], packet)
    assert ran.mark == 0
    assert bench.counted() == {"forwarded_local": 1}


def test_to_a_pod_of_another_node() -> None:
    bench = Bench()
    packet = ipv4(A, FAR, TCP, tcp(1000, 80))
    ran = bench.pod(packet)
    assert ran.verdict == REDIRECT
    assert ran.data == ethernet(TUNNEL, SENDER, packet)
    assert ran.mark == OURS
    assert bench.counted() == {"forwarded_remote": 1}


@pytest.mark.parametrize(
    "destination", [OUTSIDE, SERVICE, NODE, PEER, VTEP, HERE_NONE, "224.0.0.1", "255.255.255.255"]
)
def test_everything_else_is_the_stacks(destination: str) -> None:
    bench = Bench()
    packet = ipv4(A, destination, UDP, udp(1000, 53))
    ran = bench.pod(packet)
    assert (ran.verdict, ran.data, ran.mark) == (PASS, ethernet(HOST[A], MAC[A], packet), 0)
    assert bench.counted() == {"to_stack": 1}


@pytest.mark.parametrize(
    ("source", "mac", "reason"),
    [
        (B, MAC[A], "drop_spoofed_ip"),
        (B, MAC[B], "drop_spoofed_ip"),
        (FAR, MAC[A], "drop_spoofed_ip"),
        (NODE, MAC[A], "drop_spoofed_ip"),
        (NOBODY, MAC[A], "drop_spoofed_ip"),
        (A, MAC[B], "drop_spoofed_mac"),
        (A, HOST[A], "drop_spoofed_mac"),
        (A, "0b:58:0a:f4:01:02", "drop_spoofed_mac"),
        (A, "0a:58:0a:f4:01:03", "drop_spoofed_mac"),
    ],
)
@pytest.mark.parametrize("destination", [B, FAR, OUTSIDE])
def test_a_pod_speaks_as_itself_only(source: str, mac: str, reason: str, destination: str) -> None:
    bench = Bench()
    ran = bench.frame(ethernet(HOST[A], mac, ipv4(source, destination, UDP, udp(1, 2))))
    assert ran.verdict == DROP
    assert bench.counted() == {reason: 1}


def test_arp_for_the_gateway_is_answered() -> None:
    bench = Bench()
    ran = bench.frame(ethernet("ff:ff:ff:ff:ff:ff", MAC[A], arp(MAC[A], A, GATEWAY), 0x0806))
    assert ran.verdict == REDIRECT
    assert ran.data == ethernet(MAC[A], HOST[A], arp(HOST[A], GATEWAY, A, 2, MAC[A]), 0x0806)
    assert bench.counted() == {"answered_arp": 1}


@pytest.mark.parametrize(
    ("mac", "message", "verdict", "reason"),
    [
        (MAC[A], arp(MAC[A], A, NODE), PASS, "to_stack"),
        (MAC[A], arp(MAC[A], A, GATEWAY, 2), PASS, "to_stack"),
        (MAC[A], arp(MAC[A], NOBODY, A), PASS, "to_stack"),
        (MAC[A], arp(MAC[A], B, GATEWAY), DROP, "drop_spoofed_ip"),
        (MAC[A], arp(MAC[A], GATEWAY, GATEWAY), DROP, "drop_spoofed_ip"),
        (MAC[A], arp(MAC[B], A, GATEWAY), DROP, "drop_spoofed_mac"),
        (MAC[B], arp(MAC[A], A, GATEWAY), DROP, "drop_spoofed_mac"),
        (MAC[A], arp(MAC[A], A, GATEWAY)[:27], DROP, "drop_malformed"),
        (MAC[A], arp(MAC[A], A, GATEWAY)[:6], DROP, "drop_malformed"),
    ],
)
def test_other_arp(mac: str, message: bytes, verdict: int, reason: str) -> None:
    bench = Bench()
    assert bench.frame(ethernet(HOST[A], mac, message, 0x0806)).verdict == verdict
    assert bench.counted() == {reason: 1}


@pytest.mark.parametrize(
    ("packet", "kind", "reason"),
    [
        (b"\x60" + bytes(60), 0x86DD, "drop_not_ip"),
        (ipv4(A, B, UDP, udp(1, 2)), 0x88CC, "drop_not_ip"),
        (b"\0\1\x08\0" + ipv4(A, B, UDP, udp(1, 2)), 0x8100, "drop_not_ip"),
        (ipv4(A, B, UDP, udp(1, 2), version=6), 0x0800, "drop_malformed"),
        (ipv4(A, B, UDP, udp(1, 2), words=4), 0x0800, "drop_malformed"),
        (ipv4(A, B, UDP, udp(1, 2), length=19), 0x0800, "drop_malformed"),
        (ipv4(A, B, UDP, udp(1, 2), length=0), 0x0800, "drop_malformed"),
        (ipv4(A, B, UDP, udp(1, 2), length=500), 0x0800, "drop_malformed"),
        (ipv4(A, B, UDP, b"", words=15), 0x0800, "drop_malformed"),
    ],
)
def test_what_is_no_ipv4_is_dropped(packet: bytes, kind: int, reason: str) -> None:
    bench = Bench()
    assert bench.frame(ethernet(HOST[A], MAC[A], packet, kind)).verdict == DROP
    assert bench.counted() == {reason: 1}


@pytest.mark.parametrize("payload", [b"", b"\1", b"\1\2\3"])
@pytest.mark.parametrize("protocol", [ICMP, TCP, UDP, SCTP, 47, 255])
def test_a_packet_without_ports_is_carried(protocol: int, payload: bytes) -> None:
    bench = Bench()
    bench.pod(ipv4(A, B, protocol, payload))
    bench.pod(ipv4(A, FAR, protocol, payload))
    assert bench.counted() == {"forwarded_local": 1, "forwarded_remote": 1}


def test_padding_after_the_packet_does_no_harm() -> None:
    bench = Bench()
    bench.pod(ipv4(A, B, UDP, udp(1, 2, b"")) + bytes(18))
    assert bench.counted() == {"forwarded_local": 1}


@pytest.mark.parametrize("destination", [B, FAR])
def test_options_are_the_stacks_to_judge(destination: str) -> None:
    bench = Bench()
    assert bench.pod(ipv4(A, destination, UDP, udp(1, 2), options=LSRR)).verdict == PASS
    assert bench.counted() == {"to_stack": 1}


def test_a_pod_does_not_speak_to_tunnels() -> None:
    bench = Bench()
    for destination in (NODE, PEER, OUTSIDE):
        assert bench.pod(ipv4(A, destination, UDP, udp(1000, 8472))).verdict == DROP
    bench.pod(ipv4(A, PEER, UDP, udp(1000, 8472), fragment=MORE))
    assert bench.counted() == {"drop_pod_tunnel": 4}
    bench.pod(ipv4(A, PEER, UDP, udp(8472, 1000)))
    bench.pod(ipv4(A, PEER, TCP, tcp(1000, 8472)))
    bench.pod(ipv4(A, PEER, UDP, udp(1000, 8472), options=LSRR, fragment=2))
    assert bench.counted() == {"to_stack": 3}
    bench.pod(ipv4(A, FAR, UDP, udp(1000, 8472)))
    assert bench.counted() == {"forwarded_remote": 1}


def test_a_pod_hides_no_port_behind_or_between_fragments() -> None:
    bench = Bench()
    bench.pod(ipv4(A, PEER, UDP, udp(1000, 53), fragment=MORE, length=20))  # the ports are padding
    bench.pod(ipv4(A, PEER, UDP, udp(1000, 53), options=LSRR, fragment=MORE, length=28))
    bench.pod(ipv4(A, PEER, TCP, tcp(1000, 80), fragment=MORE, length=36))
    bench.pod(ipv4(A, PEER, ICMP, echo(), fragment=MORE, length=24))
    for destination in (B, FAR, PEER):
        bench.pod(ipv4(A, destination, UDP, udp(1000, 8472), fragment=1))
    bench.pod(ipv4(A, PEER, TCP, tcp(1000, 8472), fragment=2))
    assert bench.counted() == {"drop_malformed": 8}


@pytest.mark.parametrize("destination", [B, FAR, NODE, PEER, OUTSIDE])
def test_a_pod_is_no_node_and_no_router(destination: str) -> None:
    bench = Bench()
    for protocol in (4, 41):
        bench.pod(ipv4(A, destination, protocol, ipv4(NODE, B, UDP, udp(1, 2))))
        bench.pod(ipv4(A, destination, protocol, bytes(8), fragment=1))
    assert bench.counted() == {"drop_pod_tunnel": 4}
    bench.pod(ipv4(A, destination, ICMP, echo(kind=5)))
    bench.pod(ipv4(A, destination, ICMP, echo(kind=5), options=LSRR, fragment=MORE))
    assert bench.counted() == {"drop_spoofed_ip": 2}


def test_what_is_too_large_for_the_tunnel_goes_to_the_stack() -> None:
    bench = Bench()
    bench.pod(ipv4(A, FAR, UDP, udp(1, 2, bytes(1450 - 28))))
    assert bench.counted() == {"forwarded_remote": 1}
    ran = bench.pod(ipv4(A, FAR, UDP, udp(1, 2, bytes(1450 - 27))))
    assert ran.verdict == PASS
    assert ran.mark == 0
    assert bench.counted() == {"to_stack": 1}
    bench.pod(ipv4(A, B, UDP, udp(1, 2, bytes(1450 - 27))))
    assert bench.counted() == {"forwarded_local": 1}


def test_without_a_config_nothing_is_carried() -> None:
    bench = Bench()
    vxlan_maps.configure(bench.maps, Config(IPv4Address(NODE), 7, 8472, 0, sample=0))
    packet = ipv4(A, B, UDP, udp(1, 2))
    assert bench.pod(packet).verdict == DROP
    assert bench.tunnelled(packet).verdict == DROP
    assert (
        frames.run(bench.programs["vxlan_ingress"], ethernet(TUNNEL, SENDER, packet), bench.vxlan).verdict == DROP
    )
    assert bench.counted() == {"drop_failed": 3}
    assert bench.delivered(packet, B).verdict == PASS


def test_the_counters_sum_bytes() -> None:
    bench = Bench()
    frame = ethernet(HOST[A], MAC[A], ipv4(A, B, UDP, udp(1, 2)))
    bench.frame(frame)
    bench.frame(frame)
    assert vxlan_maps.counters(bench.maps)["forwarded_local"] == Count(2, 2 * len(frame))


def test_a_drop_is_told_in_an_event() -> None:
    bench = Bench()
    bench.frame(ethernet(HOST[A], MAC[B], ipv4(A, FAR, UDP, udp(1000, 53))))
    bench.frame(ethernet(HOST[A], MAC[A], b"\x60" + bytes(60), 0x86DD))
    first, second = frames.events(bench.maps["events"])
    assert first[1:] == (
        vxlan_maps.REASONS.index("drop_spoofed_mac"), bench.device[A], IPv4Address(A).packed,
        IPv4Address(FAR).packed, bytes(4), 1000, 53, 0x0800, UDP, mac_bytes(MAC[B]),
    )  # fmt: skip
    assert second[1:3] == (vxlan_maps.REASONS.index("drop_not_ip"), bench.device[A])
    assert second[8] == 0x86DD


def test_the_ring_goes_round_without_a_loss() -> None:
    bench = Bench()
    frame = ethernet(HOST[A], MAC[A], bytes(40), 0x88CC)
    told = 0
    while told < 5000:  # the ring has room for 4681
        for _ in range(1000):
            bench.frame(frame)
        told += len(frames.events(bench.maps["events"]))
        assert told % 1000 == 0


def test_few_of_many_drops_are_told() -> None:
    bench = Bench()
    vxlan_maps.configure(bench.maps, Config(IPv4Address(NODE), 7, 8472, bench.vxlan, sample=63))
    for _ in range(130):
        bench.frame(ethernet(HOST[A], MAC[A], bytes(40), 0x88CC))
    assert 3 <= len(frames.events(bench.maps["events"])) <= 2 + (os.cpu_count() or 1), (
        "on each CPU the first, 65th, 129th"
    )


def test_the_structures_are_as_long_as_python_thinks() -> None:
    bench = Bench()
    assert {name: (held.key, held.value) for name, held in bench.maps.items()} == {
        "config": (4, 24),
        "blocks": (8, 4),
        "nodes": (4, 4),
        "pods": (4, 16),
        "flows": (16, 4),
        "reason_counters": (4, 16),
        "events": (0, 0),
    }
