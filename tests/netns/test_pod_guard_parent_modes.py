"""Pods of macvlan and ipvlan against their node: with real frames, on the veth pair, which is their way to it."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.host.cni_conf_dir import Confs
from agent.ipam.attachments.attachment import link_name
from agent.model.cluster import Node
from agent.modes.vxlan.options import VXLAN
from agent.objects import pod_guard
from tests.lab.paths import lacks
from tests.lab.space import PYTHON
from tests.netns.frames import ICMP, UDP, arp, echo, ethernet, ipv4, ipv6, udp
from tests.netns.node import CONF, MACVLAN, Host, Pod, command
from tests.netns.test_pod_guard import advertisement, inside, link_local, wire
from tests.networks import parse_conf
from tests.support import eventually, ip, net

GOOD, EVIL = b"a good packet", b"an evil packet"
PEER, PEER_MAC, FAR = "192.0.2.2", "02:00:00:00:00:02", "198.51.100.7"
SHARED = {
    "macvlan": MACVLAN,
    **{f"ipvlan-{mode}": {**MACVLAN, "mode": "ipvlan", "linkMode": mode} for mode in ("l2", "l3s")},
}
L3: dict[str, Any] = {**CONF, "mode": "ipvlan", "linkMode": "l3"}
WAYS: dict[str, dict[str, Any]] = {**SHARED, "ipvlan-l3": L3}


@dataclass
class Slave:
    """A hostile pod on its node, whose underlay's other end is `wire`; peers have tunnels of vxlan and ipip."""

    host: Host
    pod: Pod
    address: str
    hop: str
    """The MAC of the node at the veth pair."""

    @property
    def veth(self) -> str:
        return link_name(self.pod.container_id, "eth0")

    @property
    def mac(self) -> str:
        return str(self.pod.json("link", "show", self.veth)[0]["address"])

    def frame(self, protocol: int, payload: bytes, *, source: str = "", mac: str = "", to: str = PEER) -> bytes:
        return ethernet(self.hop, mac or self.mac, ipv4(source or self.address, to, protocol, payload))

    @contextmanager
    def sender(self) -> Iterator[socket.socket]:
        with inside(self.pod, lambda: wire(self.veth)) as opened:
            yield opened

    def passes(self, *frames: bytes) -> bool:
        """Return whether the node passes any of the frames on to its underlay, from any address."""
        with wire("wire") as listener, self.sender() as sender:
            for frame in (*frames, self.frame(UDP, udp(1, 9, GOOD))):
                sender.send(frame)
            evil, end = False, time.monotonic() + 10
            while time.monotonic() < end:
                if select.select([listener], [], [], 0.2)[0]:
                    heard = listener.recv(4096)
                    evil |= EVIL in heard
                    if GOOD in heard:
                        return evil
        raise AssertionError("the good packet did not come")


def ready(tmp_path: Path, way: str, **more: Any) -> Slave:
    kind = way.split("-", maxsplit=1)[0]
    if why := lacks(kind):
        pytest.skip(why)
    conf = {**WAYS[way], **more}
    host = Host(tmp_path, conf=conf)
    network = parse_conf(conf).network
    host.confs.publish(Confs(frozenset({network}), chosen={network.name: network}))
    host.put(Node("two", (ip(PEER),), (net("10.244.2.0/24"),), accepted_modes=(("pods", (VXLAN,)),)))
    for address in (PEER, FAR):
        command("ip", "neigh", "replace", address, "lladdr", PEER_MAC, "dev", "eth0", "nud", "permanent")
    command("ip", "route", "add", f"{FAR}/32", "dev", "eth0")
    pod = Pod("c1")
    answer = host.add(pod)
    wanted = socket.htons(8472).to_bytes(2, "little")
    eventually(lambda: wanted in (host.maps(pod_guard.GUARD)["guard_config"].get(bytes(4)) or b""))
    return Slave(host, pod, answer["ips"][0]["address"].split("/")[0], answer["interfaces"][0]["mac"])


def never(slave: Slave) -> dict[str, bytes]:
    """Return what no pod may send, whatever the netconf says."""
    inner = ipv4("203.0.113.1", "10.244.2.2", UDP, udp(1, 2, EVIL))
    return {
        "ipip": slave.frame(4, inner),
        "6in4": slave.frame(41, ipv6("::1", "::2", 59, EVIL)),
        "vxlan": slave.frame(UDP, udp(1, 8472, EVIL)),
        "a redirect": slave.frame(ICMP, echo(kind=5) + EVIL),
        "vxlan, tagged": ethernet(
            slave.hop, slave.mac, b"\0\1\x08\0" + ipv4(slave.address, PEER, UDP, udp(1, 8472, EVIL)), 0x8100
        ),
    }


def as_others(slave: Slave) -> dict[str, bytes]:
    payload = udp(1, 2, EVIL)
    return {
        "another pod": slave.frame(UDP, payload, source="192.0.2.99"),
        "another node": slave.frame(UDP, payload, source=PEER),
        "its node": slave.frame(UDP, payload, source="192.0.2.1"),
        "somebody outside": slave.frame(UDP, payload, source="203.0.113.9"),
        "another MAC": slave.frame(UDP, payload, mac="0a:58:00:00:00:99"),
    }


@pytest.mark.parametrize("way", WAYS)
def test_a_pod_speaks_to_its_node_as_itself_only_and_sends_no_tunnel_packets(tmp_path: Path, way: str) -> None:
    slave = ready(tmp_path, way)
    for what, frame in {**as_others(slave), **never(slave)}.items():
        assert not slave.passes(frame), what
    everybody = "ff:ff:ff:ff:ff:ff"
    lie = ethernet(everybody, slave.mac, arp(slave.mac, PEER, "192.0.2.1"), 0x0806)
    assert not slave.passes(lie)
    assert slave.mac not in command("ip", "neigh", "show", PEER)


@pytest.mark.parametrize("way", WAYS)
def test_without_spoof_check_a_pod_still_sends_its_node_no_tunnel_packets(tmp_path: Path, way: str) -> None:
    slave = ready(tmp_path, way, spoofCheck=False)
    for what, frame in never(slave).items():
        assert not slave.passes(frame), what
    assert slave.passes(as_others(slave)["somebody outside"])


@pytest.mark.parametrize("guarded", [True, False], ids=["", "without the program"])
@pytest.mark.parametrize("way", WAYS)
def test_a_router_advertisement_of_a_pod_changes_no_routes_of_its_node(
    tmp_path: Path, way: str, guarded: bool
) -> None:
    slave = ready(tmp_path, way)
    slave.host.close()
    if not guarded:
        command("tc", "qdisc", "del", "dev", slave.veth, "clsact")
    assert not slave.passes(advertisement(link_local(slave.mac), slave.mac))
    routes = command("ip", "-6", "route")
    assert "default" not in routes
    assert "2001:db8:bad" not in routes


SEND = """
import socket, sys
kind, protocol, port = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
s = socket.socket(socket.AF_INET, kind, protocol)
for one in sys.argv[5:]:
    s.sendto(one.encode(), (sys.argv[3], port))
"""


def test_a_pod_of_ipvlan_l3_sends_no_tunnel_packets_past_its_port(tmp_path: Path) -> None:
    """Its slave leads to the node's stack, which makes the node's address of its own outside of the cluster."""
    slave = ready(tmp_path, "ipvlan-l3")

    def heard(kind: int, protocol: int, port: int) -> list[str]:
        """Return who sent what came by the wire."""
        with wire("wire") as listener:
            for what, to in ((EVIL, (kind, protocol, port)), (GOOD, (socket.SOCK_DGRAM, 0, 9))):
                sent = (str(to[0]), str(to[1]), FAR, str(to[2]), what.decode())
                slave.pod.run(*PYTHON, SEND, *sent)
            found: list[str] = []
            while True:
                assert select.select([listener], [], [], 10)[0], found
                frame = listener.recv(4096)
                if EVIL in frame or GOOD in frame:
                    found.append(("evil " if EVIL in frame else "good ") + socket.inet_ntoa(frame[26:30]))
                if GOOD in frame:
                    return found

    assert heard(socket.SOCK_DGRAM, 0, 10) == ["evil 192.0.2.1", "good 192.0.2.1"], "masquerade is at work"
    for kind, protocol, port in ((socket.SOCK_DGRAM, 0, 8472), (socket.SOCK_RAW, 4, 0), (socket.SOCK_RAW, 41, 0)):
        assert heard(kind, protocol, port) == ["good 192.0.2.1"]
