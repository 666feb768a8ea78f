"""Flows through the node's stack in both directions, as the eBPF programs see them."""

from __future__ import annotations

import pytest

from tests.netns import frames
from tests.netns.bench import (
    FAR,
    HERE_NONE,
    HOST,
    MAC,
    MORE,
    NODE,
    OURS,
    OUTSIDE,
    SENDER,
    SERVICE,
    TUNNEL,
    VTEP,
    A,
    B,
    Bench,
)
from tests.netns.frames import DROP, ICMP, PASS, TCP, UDP, echo, ethernet, ipv4, tcp, udp


def test_replies_of_what_the_stack_sent_to_a_pod_return_to_it() -> None:
    bench = Bench()
    bench.delivered(ipv4(A, B, TCP, tcp(1000, 80)), B)
    bench.pod(ipv4(B, A, TCP, tcp(80, 1000)), B)
    assert bench.counted() == {"to_stack": 1}
    bench.pod(ipv4(B, A, TCP, tcp(80, 1001)), B)
    bench.pod(ipv4(B, A, UDP, udp(80, 1000)), B)
    assert bench.counted() == {"forwarded_local": 2}


@pytest.mark.parametrize("high_first", [True, False])
def test_either_address_may_be_the_lower(high_first: bool) -> None:
    bench = Bench()
    client, server = (B, A) if high_first else (A, B)
    bench.delivered(ipv4(client, server, TCP, tcp(1000, 80)), server)
    bench.pod(ipv4(server, client, TCP, tcp(80, 1000)), server)
    assert bench.counted() == {"to_stack": 1}


def test_replies_of_what_came_from_another_node_through_the_stack_return_to_it() -> None:
    bench = Bench()
    bench.delivered(ipv4(FAR, A, TCP, tcp(1000, 80)), A)
    bench.pod(ipv4(A, FAR, TCP, tcp(80, 1000)))
    assert bench.counted() == {"to_stack": 1}


def test_a_flow_that_is_direct_now_is_forgotten() -> None:
    bench = Bench()
    bench.delivered(ipv4(A, B, TCP, tcp(1000, 80)), B)
    bench.pod(ipv4(A, B, TCP, tcp(1000, 80, 2)))
    bench.pod(ipv4(B, A, TCP, tcp(80, 1000, 18)), B)
    assert bench.counted() == {"forwarded_local": 2}


@pytest.mark.parametrize("source", [OUTSIDE, NODE, SERVICE, VTEP])
def test_only_flows_between_pods_are_remembered(source: str) -> None:
    bench = Bench()
    bench.delivered(ipv4(source, A, TCP, tcp(1000, 80)), A)
    bench.tunnelled(ipv4(source, FAR, TCP, tcp(1000, 80)))
    assert bench.flows() == 0


def test_errors_go_the_way_of_the_replies() -> None:
    bench = Bench()
    sent = ipv4(A, B, UDP, udp(1000, 53))
    bench.pod(ipv4(B, A, ICMP, frames.unreachable(sent)), B)
    assert bench.counted() == {"forwarded_local": 1}
    bench.delivered(sent, B)
    bench.pod(ipv4(B, A, ICMP, frames.unreachable(sent)), B)
    assert bench.counted() == {"to_stack": 1}
    bench.pod(ipv4(B, A, ICMP, frames.unreachable(ipv4(A, B, UDP, udp(1001, 53)))), B)
    bench.pod(ipv4(B, A, ICMP, frames.unreachable(sent)[:20]), B)
    assert bench.counted() == {"forwarded_local": 2}
    before = bench.flows()
    bench.delivered(ipv4(B, A, ICMP, frames.unreachable(sent)), A)
    assert bench.flows() == before


def test_pings_are_flows_by_their_identifier() -> None:
    bench = Bench()
    bench.delivered(ipv4(A, B, ICMP, echo(7)), B)
    bench.pod(ipv4(B, A, ICMP, echo(7, 0)), B)
    assert bench.counted() == {"to_stack": 1}
    bench.pod(ipv4(B, A, ICMP, echo(8, 0)), B)
    assert bench.counted() == {"forwarded_local": 1}


def test_fragments_go_one_way_in_all_their_pieces() -> None:
    bench = Bench()
    pieces = [ipv4(B, A, UDP, udp(53, 1000), fragment=MORE), ipv4(B, A, UDP, bytes(16), fragment=2)]
    for piece in pieces:
        bench.pod(piece, B)
    assert bench.counted() == {"forwarded_local": 2}
    bench.delivered(ipv4(A, B, UDP, udp(1000, 53)), B)
    for piece in pieces:
        bench.pod(piece, B)
    assert bench.counted() == {"to_stack": 2}
    bench.pod(ipv4(A, B, UDP, bytes(16), fragment=2))
    for piece in pieces:
        bench.pod(piece, B)
    assert bench.counted() == {"to_stack": 3}, "a piece says nothing of its flow"


def test_what_a_pod_sends_passes_the_tunnel_with_its_mark_gone() -> None:
    bench = Bench()
    packet = ipv4(A, FAR, TCP, tcp(1000, 80))
    ran = bench.tunnelled(packet, OURS)
    assert (ran.verdict, ran.mark, ran.data) == (PASS, 0, ethernet(TUNNEL, TUNNEL, packet))
    assert bench.counted() == {}
    assert bench.flows() == 0


def test_what_the_stack_sends_into_the_tunnel_is_addressed_and_remembered() -> None:
    bench = Bench()
    packet = ipv4(A, FAR, TCP, tcp(1000, 80))
    ran = bench.tunnelled(packet, mark=1)
    assert (ran.verdict, ran.mark, ran.data) == (PASS, 1, ethernet(TUNNEL, SENDER, packet))
    assert bench.counted() == {"from_stack": 1}
    assert bench.flows() == 2, "with its ports, and without for fragments"


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ipv4(NODE, OUTSIDE, UDP, udp(1, 2)), "drop_unknown_node"),
        (ipv4(NODE, HERE_NONE, UDP, udp(1, 2)), "drop_no_pod"),
        (ipv4(NODE, FAR, UDP, length=500), "drop_malformed"),
    ],
)
def test_what_has_no_place_in_the_tunnel(packet: bytes, reason: str) -> None:
    bench = Bench()
    assert bench.tunnelled(packet).verdict == DROP
    assert bench.counted() == {reason: 1}


def test_ipv6_of_the_stack_does_not_enter_the_tunnel() -> None:
    bench = Bench()
    frame = ethernet(TUNNEL, TUNNEL, b"\x60" + bytes(60), 0x86DD)
    assert frames.run(bench.programs["vxlan_egress"], frame, bench.vxlan).verdict == DROP
    assert bench.counted() == {"drop_not_ip": 1}


@pytest.mark.parametrize("kind", [0x0800, 0x0806, 0x86DD])
def test_what_the_stack_sends_to_a_pod_always_passes(kind: int) -> None:
    bench = Bench()
    frame = ethernet(MAC[A], HOST[A], bytes(40), kind)
    ran = frames.run(bench.programs["veth_egress"], frame, bench.device[A])
    assert (ran.verdict, ran.data) == (PASS, frame)
