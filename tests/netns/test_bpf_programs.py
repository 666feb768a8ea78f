"""Every branch of the eBPF programs, on packets made by hand: verdict, bytes and counters."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.datapath import bpf, overlay
from agent.datapath.overlay import Config, Count, Endpoint
from agent.datapath.rtnl import mac_bytes
from tests.netns import frames
from tests.netns.frames import DROP, ICMP, PASS, REDIRECT, SCTP, TCP, UDP, Ran, arp, echo, ethernet, ipv4, tcp, udp
from tests.netns.node import OBJECTS, command, private_bpffs

A, B, HERE_NONE, VTEP = "10.244.1.2", "10.244.1.3", "10.244.1.99", "10.244.1.0"
FAR, FARTHER = "10.244.2.2", "10.244.3.3"
NODE, PEER, OUTSIDE, SERVICE = "172.18.0.2", "172.18.0.3", "203.0.113.1", "10.96.0.1"
MAC = {A: "0a:58:0a:f4:01:02", B: "0a:58:0a:f4:01:03"}
HOST = {A: "ee:00:00:00:00:0a", B: "ee:00:00:00:00:0b"}
TUNNEL = "0e:76:78:6c:61:6e"
SENDER = "0a:76:78:6c:61:6e"
GATEWAY = "169.254.1.1"
NOBODY = "0.0.0.0"  # noqa: S104
OURS = 0x7E57C41
LSRR = bytes([131, 3, 4, 0])
MORE = 0x2000


class Bench:
    """The programs on a node with the pods A and B, with counters that begin at 0."""

    def __init__(self) -> None:
        private_bpffs()
        for pod in ("pod-a", "pod-b"):
            command("ip", "link", "add", pod, "type", "veth", "peer", "name", f"{pod}-end")
        command("ip", "link", "add", "vx", "mtu", "1450", "type", "vxlan", "external", "dstport", "8472")
        loaded = bpf.load(OBJECTS)
        self.programs, self.maps = loaded.programs, loaded.maps
        self.device = {A: socket.if_nametoindex("pod-a"), B: socket.if_nametoindex("pod-b")}
        self.vxlan = socket.if_nametoindex("vx")
        overlay.configure(self.maps, Config(IPv4Address(NODE), 7, 8472, self.vxlan, sample=0))
        for pod in (A, B):
            overlay.put_pod(self.maps, IPv4Address(pod), Endpoint(self.device[pod], MAC[pod], HOST[pod]))
        blocks = {"10.244.1.0/24": NODE, "10.244.2.0/24": PEER, "10.244.3.0/24": "172.18.0.4"}
        overlay.sync_nodes(
            self.maps,
            {IPv4Network(block): IPv4Address(node) for block, node in blocks.items()},
            [IPv4Address(node) for node in blocks.values()],
        )
        self._before = overlay.counters(self.maps)

    def pod(self, packet: bytes, source: str = A, **more: int) -> Ran:
        """Pod `source` sends an IP packet."""
        return self.frame(ethernet(HOST[source], MAC[source], packet), source, **more)

    def frame(self, frame: bytes, source: str = A, **more: int) -> Ran:
        return frames.run(self.programs["veth_ingress"], frame, self.device[source], **more)

    def delivered(self, packet: bytes, to: str) -> Ran:
        """The stack sends an IP packet to a pod."""
        frame = ethernet(MAC[to], HOST[to], packet)
        return frames.run(self.programs["veth_egress"], frame, self.device[to])

    def tunnelled(self, packet: bytes, mark: int = 0) -> Ran:
        """The stack, or with our mark a pod, sends an IP packet to the vxlan device."""
        return frames.run(self.programs["vxlan_egress"], ethernet(TUNNEL, TUNNEL, packet), self.vxlan, mark=mark)

    def counted(self) -> dict[str, int]:
        """What the counters say of packets since the last call."""
        before, self._before = self._before, overlay.counters(self.maps)
        none = Count(0, 0)
        return {
            reason: more
            for reason, count in self._before.items()
            if (more := count.packets - before.get(reason, none).packets)
        }

    def flows(self) -> int:
        return len(self.maps["flows"].items())


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
    bench.pod(ipv4(A, PEER, UDP, udp(1000, 8472), options=LSRR, fragment=1))
    assert bench.counted() == {"to_stack": 3}
    bench.pod(ipv4(A, FAR, UDP, udp(1000, 8472)))
    assert bench.counted() == {"forwarded_remote": 1}


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


def test_without_a_config_nothing_is_carried() -> None:
    bench = Bench()
    overlay.configure(bench.maps, Config(IPv4Address(NODE), 7, 8472, 0, sample=0))
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
    assert overlay.counters(bench.maps)["forwarded_local"] == Count(2, 2 * len(frame))


def test_a_drop_is_told_in_an_event() -> None:
    bench = Bench()
    bench.frame(ethernet(HOST[A], MAC[B], ipv4(A, FAR, UDP, udp(1000, 53))))
    bench.frame(ethernet(HOST[A], MAC[A], b"\x60" + bytes(60), 0x86DD))
    first, second = frames.events(bench.maps["events"].fd)
    assert first[1:] == (
        overlay.REASONS.index("drop_spoofed_mac"), bench.device[A], IPv4Address(A).packed, IPv4Address(FAR).packed,
        bytes(4), 1000, 53, 0x0800, UDP, mac_bytes(MAC[B]),
    )  # fmt: skip
    assert second[1:3] == (overlay.REASONS.index("drop_not_ip"), bench.device[A])
    assert second[8] == 0x86DD


def test_few_of_many_drops_are_told() -> None:
    bench = Bench()
    overlay.configure(bench.maps, Config(IPv4Address(NODE), 7, 8472, bench.vxlan, sample=63))
    for _ in range(130):
        bench.frame(ethernet(HOST[A], MAC[A], bytes(40), 0x88CC))
    assert 3 <= len(frames.events(bench.maps["events"].fd)) <= 6, "on each CPU the first, 65th, 129th"


def test_the_structures_are_as_long_as_python_thinks() -> None:
    bench = Bench()
    assert {name: (held.key, held.value) for name, held in bench.maps.items()} == {
        "config": (4, 24),
        "blocks": (8, 4),
        "nodes": (4, 4),
        "pods": (4, 16),
        "flows": (16, 4),
        "counters": (4, 16),
        "events": (0, 0),
    }
