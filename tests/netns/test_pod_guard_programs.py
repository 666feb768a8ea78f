"""Packets that the program pod_guard lets a pod send: verdict and counters of every branch."""

from __future__ import annotations

import socket
import struct

import pytest

from agent.kernel.bpf.loader import Loader
from agent.model.marks import BPF_PINS
from agent.objects import pod_guard
from agent.objects.pod_guard import GuardedPort
from tests.netns import frames
from tests.netns.bench import LSRR, MORE, NOBODY, NODE, OUTSIDE, PEER, A, B
from tests.netns.frames import (
    DROP,
    ICMP,
    PASS,
    TCP,
    UDP,
    arp,
    echo,
    ethernet,
    extension,
    fragment6,
    icmp6,
    ipv4,
    ipv6,
    nd,
    option,
    tcp,
    udp,
)
from tests.netns.node import OBJECTS, command, private_bpffs
from tests.support import ip

MAC, OTHER, HOST = "0a:58:0a:f4:01:02", "0a:58:0a:f4:01:03", "ee:00:00:00:00:0a"
A6, B6, NONE6, NODE6 = "fd00::2", "fd00::3", "::", "fd00::1"
LINK, OTHER_LINK = "fe80::858:aff:fef4:102", "fe80::858:aff:fef4:103"
SECOND = "10.245.1.2"  # of another interface of the pod
ICMP6, NO_NEXT = 58, 59
ARP, IPV4, IPV6, TAG, QINQ = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8
ALL = "ff02::1"


class Port:
    """The port of a pod with two interfaces, of which the other one's addresses are known too."""

    def __init__(self, *, checked: bool = True, tunnel: int = 8472) -> None:
        private_bpffs()
        command("ip", "link", "add", "pod", "type", "veth", "peer", "name", "end")
        self.device = socket.if_nametoindex("pod")
        self.loaded = Loader(OBJECTS, BPF_PINS).load(pod_guard.GUARD)
        pod_guard.set_tunnels(self.loaded.maps, [tunnel])
        pod_guard.put(self.loaded.maps, self.device, GuardedPort("c1", MAC, (ip(A), ip(A6)), checked))
        pod_guard.put(self.loaded.maps, self.device + 1, GuardedPort("c1", OTHER, (ip(SECOND),)))
        pod_guard.put(self.loaded.maps, self.device + 2, GuardedPort("c2", OTHER, (ip(B), ip(B6))))

    def sends(self, packet: bytes, kind: int = IPV4, mac: str = MAC) -> str:
        """Why a frame is dropped; empty: it passes, as it is."""
        before = pod_guard.counters(self.loaded.maps)
        frame = ethernet(HOST, mac, packet, kind)
        ran = frames.run(self.loaded.programs["pod_guard"], frame, self.device)
        assert ran.data == frame
        after = pod_guard.counters(self.loaded.maps)
        counted = [reason for reason, count in after.items() if count != before[reason]]
        assert (ran.verdict, len(counted)) in ((PASS, 0), (DROP, 1))
        return "".join(counted).removeprefix("drop_")


CASES4 = [
    (ipv4(A, B, UDP, udp(1, 53)), ""),
    (ipv4(SECOND, B, UDP, udp(1, 53)), ""),
    (ipv4(A, "255.255.255.255", UDP, udp(1, 67)), ""),
    (ipv4(A, OUTSIDE, TCP, tcp(1, 80), options=LSRR), ""),
    (ipv4(A, OUTSIDE, 47), ""),
    (ipv4(B, A, UDP, udp(1, 53)), "spoofed_ip"),
    (ipv4(NODE, B, UDP, udp(1, 53)), "spoofed_ip"),
    (ipv4(NOBODY, B, UDP, udp(68, 67)), "spoofed_ip"),
    (ipv4("127.0.0.1", B, UDP, udp(68, 67)), "spoofed_ip"),
    (ipv4(A, PEER, 4, ipv4(NODE, B, UDP, udp(1, 2))), "pod_tunnel"),
    (ipv4(A, PEER, 41, ipv6(A6, B6, NO_NEXT)), "pod_tunnel"),
    (ipv4(A, PEER, 4, bytes(8), fragment=1), "pod_tunnel"),
    (ipv4(A, PEER, 4, options=LSRR), "pod_tunnel"),
    (ipv4(A, PEER, UDP, udp(1, 8472)), "pod_tunnel"),
    (ipv4(A, PEER, UDP, udp(1, 8472), options=LSRR), "pod_tunnel"),
    (ipv4(A, PEER, UDP, udp(1, 8472), fragment=MORE), "pod_tunnel"),
    (ipv4(A, PEER, UDP, udp(1, 8472), fragment=2), ""),
    (ipv4(A, PEER, UDP, udp(1, 8472), fragment=1), "malformed"),
    (ipv4(A, PEER, TCP, tcp(1, 8472), fragment=2), "malformed"),
    (ipv4(A, PEER, TCP, tcp(1, 8472), fragment=3), ""),
    (ipv4(A, PEER, 47, bytes(8), fragment=1), ""),
    (ipv4(A, PEER, UDP, udp(1, 53), fragment=MORE, length=20), "malformed"),
    (ipv4(A, PEER, UDP, udp(1, 53), fragment=MORE, length=24), "malformed"),
    (ipv4(A, PEER, UDP, udp(1, 53), fragment=MORE, length=28), ""),
    (ipv4(A, PEER, UDP, udp(1, 53), options=LSRR, fragment=MORE, length=28), "malformed"),
    (ipv4(A, PEER, TCP, tcp(1, 80), fragment=MORE, length=36), "malformed"),
    (ipv4(A, PEER, ICMP, echo(), fragment=MORE, length=20), "malformed"),
    (ipv4(A, PEER, UDP, udp(1, 53), length=60), "malformed"),
    (ipv4(A, PEER, UDP, udp(1, 53), length=12), "malformed"),
    (ipv4(A, PEER, UDP, udp(1, 53), length=0), "malformed"),
    (ipv4(A, PEER, UDP, udp(1, 53)) + bytes(20), ""),
    (ipv4(A, PEER, UDP, udp(8472, 1)), ""),
    (ipv4(A, PEER, TCP, tcp(1, 8472)), ""),
    (ipv4(A, PEER, ICMP, echo()), ""),
    (ipv4(A, PEER, ICMP, echo(kind=5)), "pod_router"),
    (ipv4(A, PEER, ICMP, echo(kind=5), options=LSRR), "pod_router"),
    (ipv4(A, PEER, ICMP, echo(kind=5), fragment=MORE), "pod_router"),
    (ipv4(A, PEER, ICMP, echo(kind=5), fragment=1), "malformed"),
    (ipv4(A, PEER, ICMP, echo(kind=5), fragment=2), ""),
    (ipv4(A, B, UDP, udp(1, 2), version=6), "malformed"),
    (ipv4(A, B, UDP, udp(1, 2), words=4), "malformed"),
]


def test_a_pod_sends_ipv4_from_its_own_addresses_and_no_tunnels_or_redirects() -> None:
    port = Port()
    assert [port.sends(packet) for packet, _reason in CASES4] == [reason for _packet, reason in CASES4]


def test_the_tunnels_port_is_any_port_on_a_node_without_tunnel() -> None:
    port = Port(tunnel=0)
    assert [port.sends(ipv4(A, PEER, UDP, udp(1, number))) for number in (8472, 4789, 0)] == ["", "", ""]
    assert port.sends(ipv4(A, PEER, 4)) == "pod_tunnel"


def test_a_pod_sends_arp_for_its_own_address_and_mac() -> None:
    port = Port()
    cases = [
        (arp(MAC, A, B), ""),
        (arp(MAC, SECOND, B), ""),
        (arp(MAC, A, A), ""),
        (arp(MAC, A, B, 2, OTHER), ""),
        (arp(MAC, NOBODY, A), ""),
        (arp(MAC, NOBODY, A, 2), "spoofed_ip"),
        (arp(MAC, B, A), "spoofed_ip"),
        (arp(MAC, B, A, 2, OTHER), "spoofed_ip"),
        (arp(OTHER, A, B), "spoofed_mac"),
        (arp(OTHER, B, A, 2), "spoofed_mac"),
        (arp(MAC, A, B)[:20], "malformed"),
        (arp(MAC, A, B)[:4] + b"\x08\x04" + arp(MAC, A, B)[6:], "malformed"),
    ]
    assert [port.sends(message, ARP) for message, _reason in cases] == [reason for _message, reason in cases]


def test_a_pod_sends_from_its_own_mac_without_tags_and_nothing_but_ip() -> None:
    port, packet = Port(), ipv4(A, B, UDP, udp(1, 2))
    assert port.sends(packet, mac=OTHER) == "spoofed_mac"
    assert port.sends(packet, mac=HOST) == "spoofed_mac"
    assert port.sends(packet, mac="0b:58:0a:f4:01:02") == "spoofed_mac"
    assert port.sends(bytes(40), 0x88CC) == "not_ip"
    assert port.sends(bytes(40), 0x0026) == "not_ip", "a length: a frame of 802.3, as those of spanning tree"
    for tag in (TAG, QINQ):
        assert port.sends(b"\0\0\x08\0" + packet, tag) == "not_ip"


ROUTER = icmp6(134, bytes(12))
HALF = extension(ICMP6, bytes([0x1E, 12, 0, 0, 0, 0]), 1)  # of a header of 16 bytes, the first 8
END = bytes(8) + extension(NO_NEXT)  # how the packet goes on, for who takes the padding for a part of it
CASES6 = [
    (ipv6(A6, B6, UDP, udp(1, 53)), ""),
    (ipv6(LINK, ALL, UDP, udp(1, 53)), ""),
    (ipv6(A6, B6, NO_NEXT), ""),
    (ipv6(B6, A6, UDP, udp(1, 53)), "spoofed_ip"),
    (ipv6(OTHER_LINK, ALL, UDP, udp(1, 53)), "spoofed_ip"),
    (ipv6("fe80:0:0:1:858:aff:fef4:102", ALL, UDP, udp(1, 53)), "spoofed_ip"),
    (ipv6(NONE6, B6, UDP, udp(1, 53)), "spoofed_ip"),
    (ipv6("::1", B6, UDP, udp(1, 53)), "spoofed_ip"),
    (ipv6(A6, B6, ICMP6, icmp6(128, bytes(4))), ""),
    (ipv6(NONE6, B6, ICMP6, icmp6(128, bytes(4))), "spoofed_ip"),
    (ipv6(A6, B6, 4, ipv4(A, B, UDP)), "pod_tunnel"),
    (ipv6(A6, B6, 41, ipv6(A6, B6, NO_NEXT)), "pod_tunnel"),
    (ipv6(A6, B6, UDP, udp(1, 8472)), "pod_tunnel"),
    (ipv6(LINK, ALL, ICMP6, ROUTER), "pod_router"),
    (ipv6(A6, ALL, ICMP6, ROUTER), "pod_router"),
    (ipv6(LINK, ALL, 0, extension(ICMP6) + ROUTER), "pod_router"),
    (ipv6(LINK, ALL, 60, extension(43, bytes(14), 1) + extension(ICMP6) + ROUTER), "pod_router"),
    (ipv6(LINK, ALL, 51, extension(ICMP6, bytes(14), 2) + ROUTER), "pod_router"),
    (ipv6(LINK, ALL, 44, fragment6(ICMP6) + ROUTER), "pod_router"),
    (ipv6(LINK, ALL, 0, extension(0) * 8 + extension(ICMP6) + ROUTER), "malformed"),
    (ipv6(LINK, ALL, 44, fragment6(60) + extension(ICMP6), length=10), "malformed"),
    (ipv6(LINK, ALL, 44, fragment6(60) + extension(ICMP6) + icmp6(128), length=16), "malformed"),
    (ipv6(A6, B6, 44, fragment6(60) + HALF) + END, "malformed"),
    (ipv6(A6, B6, 44, fragment6(60) + HALF), "malformed"),
    (ipv6(A6, B6, 44, fragment6(60)) + extension(NO_NEXT), "malformed"),
    (ipv6(A6, B6, 44, fragment6(51) + extension(ICMP6, bytes(6), 2)) + END, "malformed"),
    (ipv6(A6, B6, 60, HALF) + END, "malformed"),
    (ipv6(A6, B6, 60, b"") + extension(NO_NEXT), "malformed"),
    (ipv6(A6, B6, 60, b"") + extension(UDP) + udp(1, 53), "malformed"),
    (ipv6(A6, B6, 0, extension(UDP) + udp(1, 53), length=0), ""),
    (ipv6(A6, B6, 44, fragment6(44) + fragment6(60, 2) + bytes(8)), "malformed"),
    (ipv6(A6, B6, 44, fragment6(UDP), length=4), "malformed"),
    (ipv6(A6, B6, 44, fragment6(UDP) + udp(1, 53)[:4]) + udp(1, 53), "malformed"),
    (ipv6(A6, B6, 44, fragment6(TCP) + tcp(1, 80)[:16]) + bytes(4), "malformed"),
    (ipv6(A6, B6, 44, fragment6(UDP) + udp(1, 53)), ""),
    (ipv6(A6, B6, 44, fragment6(60) + extension(NO_NEXT)) + END, ""),
    (ipv6(A6, B6, UDP, udp(1, 53)) + bytes(20), ""),
    (ipv6(A6, B6, UDP, udp(1, 53), length=60), "malformed"),
    (ipv6(LINK, ALL, 44, fragment6(ICMP6, 2) + ROUTER), ""),
    (ipv6(NONE6, ALL, 44, fragment6(ICMP6, 2) + ROUTER), "spoofed_ip"),
    (ipv6(A6, B6, 44, fragment6(41, 2) + bytes(8)), "pod_tunnel"),
    (ipv6(A6, B6, 60, extension(4) + bytes(20)), "pod_tunnel"),
    (ipv6(A6, B6, 60, extension(UDP) + udp(1, 8472)), "pod_tunnel"),
    (ipv6(LINK, A6, ICMP6, icmp6(137, bytes(36))), "pod_router"),
    (b"\x45" + ipv6(A6, B6, UDP, udp(1, 2))[1:], "malformed"),
]


def test_a_pod_sends_ipv6_from_its_own_addresses_and_is_no_router() -> None:
    port = Port()
    assert [port.sends(packet, IPV6) for packet, _reason in CASES6] == [reason for _packet, reason in CASES6]


def test_a_pod_discovers_its_neighbours_and_is_found_as_itself_only() -> None:
    port = Port()
    nonce = bytes([14, 1]) + bytes(6)
    cases = [
        (LINK, nd(135, B6, option(1, MAC)), ""),
        (A6, nd(135, B6), ""),
        (A6, nd(135, B6, option(1, OTHER)), "spoofed_mac"),
        (A6, nd(135, B6, nonce, option(1, OTHER)), "spoofed_mac"),
        (B6, nd(135, A6, option(1, MAC)), "spoofed_ip"),
        (NONE6, nd(135, A6, nonce), ""),
        (NONE6, nd(135, LINK), ""),
        (NONE6, nd(135, B6), "spoofed_ip"),
        (NONE6, nd(135, NODE6), "spoofed_ip"),
        (A6, nd(136, A6, option(2, MAC)), ""),
        (A6, nd(136, LINK, option(2, MAC)), ""),
        (A6, nd(136, B6, option(2, MAC)), "spoofed_ip"),
        (A6, nd(136, OTHER_LINK, option(2, MAC)), "spoofed_ip"),
        (A6, nd(136, NODE6, option(2, MAC)), "spoofed_ip"),
        (A6, nd(136, A6, option(2, OTHER)), "spoofed_mac"),
        (A6, nd(136, A6, b"\2\0" + bytes(6)), "malformed"),
        (A6, nd(136, A6, nonce, nonce, nonce, nonce), ""),
        (A6, nd(136, A6, nonce, nonce, nonce, nonce, option(2, OTHER)), "malformed"),
        (A6, nd(136, A6)[:20], "malformed"),
        (LINK, icmp6(133, bytes(4) + option(1, MAC)), ""),
        (NONE6, icmp6(133, bytes(4)), ""),
        (LINK, icmp6(133, bytes(4) + option(1, OTHER)), "spoofed_mac"),
    ]
    sent = [port.sends(ipv6(source, ALL, ICMP6, message), IPV6) for source, message, _reason in cases]
    assert sent == [reason for _source, _message, reason in cases]


def test_a_pod_discovers_its_neighbours_by_whole_packets_and_padding_is_no_part_of_them() -> None:
    port = Port()
    good, bad = nd(136, A6, option(2, MAC)), nd(136, A6, option(2, OTHER))
    cases = [
        (ipv6(A6, ALL, ICMP6, good) + bytes(6), ""),
        (ipv6(A6, ALL, ICMP6, bad, length=len(bad) - 4) + bytes(4), "malformed"),
        (ipv6(A6, ALL, ICMP6, good[:20]) + good[20:], "malformed"),
        (ipv6(A6, ALL, ICMP6, nd(136, A6, bytes([14, 9]) + bytes(6))), "malformed"),
        (ipv6(A6, ALL, 44, fragment6(ICMP6) + good), "malformed"),  # RFC 6980
        (ipv6(A6, ALL, 44, fragment6(ICMP6) + nd(135, B6)), "malformed"),
        (ipv6(A6, ALL, 44, fragment6(ICMP6) + icmp6(133, bytes(4))), "malformed"),
        (ipv6(A6, ALL, 44, fragment6(ICMP6) + icmp6(128, bytes(4))), ""),
    ]
    assert [port.sends(packet, IPV6) for packet, _reason in cases] == [reason for _packet, reason in cases]


@pytest.mark.parametrize("kind", [131, 132, 143])
def test_a_pod_without_address_joins_multicast_groups(kind: int) -> None:
    alert = extension(ICMP6, struct.pack("!BBHBB", 5, 2, 0, 1, 0))
    assert Port().sends(ipv6(NONE6, "ff02::16", 0, alert + icmp6(kind, bytes(24))), IPV6) == ""


def test_without_the_check_a_pod_speaks_as_anybody_but_not_as_a_router_or_node() -> None:
    port = Port(checked=False)
    packet = ipv4(B, A, UDP, udp(1, 2))
    assert [port.sends(packet, mac=mac) for mac in (MAC, OTHER)] == ["", ""]
    assert port.sends(arp(OTHER, B, A, 2), ARP, OTHER) == ""
    assert port.sends(bytes(40), 0x88CC) == ""
    assert port.sends(ipv6(NONE6, ALL, ICMP6, nd(136, B6, option(2, OTHER))), IPV6) == ""
    assert port.sends(b"\0\0\x08\0" + packet, TAG) == "not_ip", "a tag in a tag: the kernel takes off both"
    for cases, kind in ((CASES4, IPV4), (CASES6, IPV6)):
        for frame, reason in cases:
            wanted = reason if reason in ("pod_tunnel", "pod_router", "malformed") else ""
            assert port.sends(frame, kind, OTHER) == wanted


def test_a_port_that_is_not_known_lets_nothing_pass() -> None:
    port = Port()
    pod_guard.remove(port.loaded.maps, port.device, GuardedPort("c1", MAC, (ip(A), ip(A6))))
    assert port.sends(ipv4(A, B, UDP, udp(1, 2))) == "failed"


def test_one_pods_addresses_are_no_others() -> None:
    """Pods of networks that do not know of each other may have one address; the end of one is not the other's."""
    port = Port()
    same = GuardedPort("c3", OTHER, (ip(A),))
    pod_guard.put(port.loaded.maps, port.device + 3, same)
    pod_guard.remove(port.loaded.maps, port.device + 3, same)
    assert port.sends(ipv4(A, B, UDP, udp(1, 2))) == ""
    assert pod_guard.knows(port.loaded.maps, port.device, GuardedPort("c1", MAC, (ip(A), ip(A6))))
    assert not pod_guard.knows(port.loaded.maps, port.device + 3, same)


def test_the_guards_structures_are_as_long_as_python_thinks() -> None:
    held = Port().loaded.maps
    assert {name: (one.key, one.value) for name, one in held.items()} == {
        "guard_config": (4, 4),
        "guard_ports": (4, 16),
        "guard_addresses": (24, 4),
        "guard_counters": (4, 16),
    }


def test_a_pod_sends_to_no_tunnel_of_this_node_or_of_others() -> None:
    port = Port()
    assert pod_guard.set_tunnels(port.loaded.maps, [4790, 8472])
    assert not pod_guard.set_tunnels(port.loaded.maps, [4790, 8472])
    sent = [port.sends(ipv4(A, PEER, UDP, udp(1, number))) for number in (4790, 8472, 4789, 0)]
    assert sent == ["pod_tunnel", "pod_tunnel", "", ""]
    sent6 = [port.sends(ipv6(A6, B6, UDP, udp(1, number)), IPV6) for number in (4790, 8472, 4789)]
    assert sent6 == ["pod_tunnel", "pod_tunnel", ""]
