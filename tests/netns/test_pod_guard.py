"""Pods against each other and their node: with real frames, in each mode that gives a pod a port on the node."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent.errors import CniError
from agent.host.cni_conf_dir import Confs
from agent.ipam.assign.add_times import AddTimes
from agent.ipam.attachments.attachment import link_name
from agent.kernel import fdb, hardening, ip_links, link_setup, netlink, netns, tc
from agent.kernel.bpf.loader import Loader
from agent.kernel.ip_links import Link, mac_bytes
from agent.model.marks import BPF_PINS
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan import maps as vxlan_maps
from agent.objects import pod_guard, pod_port_setup
from agent.objects.pod_port import PodPort
from tests.netns.frames import (
    ICMP,
    UDP,
    arp,
    checksum,
    echo,
    ethernet,
    extension,
    fragment6,
    icmp6,
    ipv4,
    ipv6,
    nd,
    option,
    udp,
)
from tests.netns.node import CONF, IPIP, MACVLAN, OBJECTS, VXLAN, Host, Pod, command
from tests.networks import parse_conf
from tests.support import eventually, ip

T = TypeVar("T")
MODES: dict[str, dict[str, Any]] = {
    "host-gw": CONF,
    "vxlan": VXLAN,
    "vxlan-kernel": {**VXLAN, "vxlanBackend": "kernel"},
    "ipip": IPIP,
}
ETH_P_ALL = 0x0003
ICMP6 = 58
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
MARKER = b"that is all"
LINK_PART = 26  # bytes that a router changes: MACs, TTL, checksum


def inside(pod: Pod, what: Callable[[], T]) -> T:
    """Do something in a pod, on a thread of its own."""
    found: list[T] = []

    def enter() -> None:
        netns._setns(pod.fd)
        found.append(what())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return found[0]


def wire(device: str) -> socket.socket:
    """All that comes by a device of this thread's namespace."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind((device, ETH_P_ALL))
    return opened


@dataclass
class Node:
    """A node with two pods, of which the first one is hostile."""

    host: Host
    pods: list[Pod]
    answers: list[dict[str, Any]]

    @property
    def hop(self) -> str:
        """The MAC of the node towards the hostile pod."""
        return str(self.answers[0]["interfaces"][0]["mac"])

    def mac(self, number: int) -> str:
        return str(self.answers[number]["interfaces"][-1]["mac"])

    def address(self, number: int) -> str:
        return str(self.answers[number]["ips"][0]["address"]).split("/")[0]

    def end(self, number: int = 0) -> Link:
        found = ip_links.link(netlink.host(), link_name(self.pods[number].container_id, "eth0"))
        assert found
        return found

    def heard(self, frames: Sequence[bytes], device: str = "eth0") -> list[bytes]:
        """Return the frames that reach the second pod, if the first sends them and then a good packet."""
        wanted = {frame[LINK_PART:] for frame in frames}
        last = ipv4(self.address(0), self.address(1), UDP, udp(1, 9, MARKER))
        listener, sender = inside(self.pods[1], lambda: wire("eth0")), inside(self.pods[0], lambda: wire(device))
        with listener, sender:
            for frame in (*frames, ethernet(self.hop, self.mac(0), last)):
                sender.send(frame)
            found: list[bytes] = []
            end = time.monotonic() + 10
            while time.monotonic() < end:
                if select.select([listener], [], [], 0.2)[0]:
                    frame, where = listener.recvfrom(4096)
                    if where[2] == socket.PACKET_OUTGOING:
                        continue
                    if MARKER in frame:
                        return found
                    if frame[LINK_PART:] in wanted:
                        found.append(frame)
            raise AssertionError(f"the good packet did not come; heard {found}")


def ready(tmp_path: Path, conf: dict[str, Any], pods: int = 2) -> Node:
    host = Host(tmp_path, conf=conf)
    host.confs.publish(Confs(frozenset({parse_conf(conf).network})))
    made = [Pod(f"c{number}") for number in range(pods)]
    answers = [host.add(pod) for pod in made]
    for number, pod in enumerate(made[1:], 1):  # knows the way back
        assert pod.reaches(answers[0]["ips"][0]["address"].split("/")[0]), number
    return Node(host, made, answers)


def hostile(node: Node) -> dict[str, bytes]:
    """Return what no pod may send, by what is wrong with it; all of it is for the second pod."""
    own, other, mac = node.address(0), node.address(1), node.mac(0)
    payload = udp(1, 2)

    def frame(packet: bytes, source: str = mac) -> bytes:
        return ethernet(node.hop, source, packet)

    return {
        "an address that nobody has": frame(ipv4("10.244.1.99", other, UDP, payload)),
        "another node's pod": frame(ipv4("10.244.9.9", other, UDP, payload)),
        "somebody outside": frame(ipv4("203.0.113.9", other, UDP, payload)),
        "another MAC": frame(ipv4(own, other, UDP, payload), node.mac(1)),
        **never(node),
    }


def never(node: Node) -> dict[str, bytes]:
    """Return what no pod may send, whatever the netconf says."""
    own, other, mac = node.address(0), node.address(1), node.mac(0)
    return {
        "ipip": ethernet(node.hop, mac, ipv4(own, other, 4, ipv4("192.0.2.1", other, UDP, udp(1, 2)))),
        "6in4": ethernet(node.hop, mac, ipv4(own, other, 41, ipv6("::1", "::2", 59))),
        "a redirect": ethernet(node.hop, mac, ipv4(own, other, ICMP, echo(kind=5))),
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_pod_speaks_as_itself_only(tmp_path: Path, mode: str) -> None:
    node = ready(tmp_path, MODES[mode])
    for what, frame in hostile(node).items():
        assert node.heard([frame]) == [], what


@pytest.mark.parametrize("mode", ["host-gw", "vxlan-kernel", "ipip"])
def test_without_spoof_check_a_pod_speaks_as_anybody_but_sends_no_tunnel_packets(
    tmp_path: Path, mode: str
) -> None:
    node = ready(tmp_path, {**MODES[mode], "spoofCheck": False})
    for what, frame in never(node).items():
        assert node.heard([frame]) == [], what
    assert len(node.heard([hostile(node)["an address that nobody has"]])) == 1


def test_a_pod_is_not_taken_for_another_by_arp(tmp_path: Path) -> None:
    node = ready(tmp_path, CONF)
    own, other, mac = node.address(0), node.address(1), node.mac(0)
    everybody = "ff:ff:ff:ff:ff:ff"
    lies = [
        ethernet(node.mac(1), mac, arp(mac, "10.244.1.1", other, 2, node.mac(1)), 0x0806),
        ethernet(everybody, mac, arp(mac, "10.244.1.1", "10.244.1.1"), 0x0806),
        ethernet(everybody, mac, arp("0a:58:00:00:00:99", own, own), 0x0806),
        ethernet(node.hop, mac, arp(mac, other, "10.244.1.1", 2, node.hop), 0x0806),
    ]
    assert node.heard(lies) == []
    assert [line.split()[4] for line in command("ip", "neigh", "show", other).splitlines()] in ([], [node.mac(1)])
    assert node.pods[1].reaches("10.244.1.1")


def entries(port: Link) -> list[str]:
    """MACs that the bridge has behind a port, but the port's own."""
    lines = command("bridge", "fdb", "show", "brport", port.name).splitlines()
    return sorted({line.split()[0] for line in lines} - {port.mac, "33:33:00:00:00:01", "01:00:5e:00:00:01"})


def test_a_pod_makes_no_forwarding_entries_and_gets_no_frames_of_others(tmp_path: Path) -> None:
    node = ready(tmp_path, CONF)
    packet = ipv4(node.address(0), node.address(1), UDP, udp(1, 2))
    macs = [f"0a:58:99:{number:02x}:00:01" for number in range(100)]
    assert node.heard([ethernet(node.mac(1), mac, packet) for mac in (*macs, node.mac(1), node.hop)]) == []
    assert entries(node.end(0)) == [node.mac(0)]
    assert entries(node.end(1)) == [node.mac(1)]
    assert node.pods[1].reaches("10.244.1.1")
    three = Pod("c9")
    node.host.add(three)
    listener = inside(three, lambda: wire("eth0"))
    with listener:  # what is for a MAC that nobody has goes to nobody
        node.heard([ethernet("0a:58:99:99:99:99", node.mac(0), packet)])
        while select.select([listener], [], [], 0)[0]:
            assert mac_bytes("0a:58:99:99:99:99") not in listener.recv(4096)


def in_two(source: str, destination: str, rest: bytes) -> list[bytes]:
    """A packet in two fragments: its chain of headers ends in the second; padding of the first seems to end it."""
    chain = extension(60, bytes([0x1E, 12]) + bytes(12), 1) + extension(ICMP6, bytes([1, 4, 0, 0, 0, 0])) + rest
    return [
        ipv6(source, destination, 44, fragment6(60) + chain[:8]) + bytes(8) + extension(59),
        ipv6(source, destination, 44, fragment6(60, 1, more=False) + chain[8:]),
    ]


def test_a_pod_is_not_taken_for_another_by_an_advertisement_in_fragments(tmp_path: Path) -> None:
    """A bridge joins them where anything of the node uses connection tracking, as kube-proxy does."""
    conf = {key: value for key, value in CONF.items() if key != "subnet"}
    host = Host(tmp_path, blocks=("10.244.1.0/24", "fd00:1::/64"), conf=conf)
    host.confs.publish(Confs(frozenset({parse_conf(conf).network})))
    pods = [Pod(f"c{number}") for number in range(2)]
    answers = [host.add(pod) for pod in pods]
    own, other = (next(str(i["address"]).split("/")[0] for i in a["ips"] if ":" in i["address"]) for a in answers)
    hop, mac, other_mac = (str(i["mac"]) for i in (*answers[0]["interfaces"][::2], answers[1]["interfaces"][-1]))
    rules = "add table ip6 kube; add chain ip6 kube f { type filter hook forward priority 0; };"
    command("nft", rules + "add rule ip6 kube f ct state established accept")
    eventually(lambda: pods[1].reaches("fd00:1::1"))
    message = nd(136, "fd00:1::1", option(2, mac))[8:]
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + message  # overrides
    pseudo = IPv6Address(own).packed + IPv6Address(other).packed + struct.pack("!II", len(body), ICMP6)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    last = ipv6(own, other, UDP, udp(1, 9, MARKER))
    with inside(pods[1], lambda: wire("eth0")) as listener, inside(pods[0], lambda: wire("eth0")) as sender:
        listener.settimeout(10)
        for packet in (*in_two(own, other, body), last):
            sender.send(ethernet(other_mac, mac, packet, 0x86DD))
        eventually(lambda: MARKER in listener.recv(4096))
    assert hop in pods[1].run("ip", "-6", "neigh", "show", "fd00:1::1")
    assert mac not in pods[1].run("ip", "-6", "neigh", "show", "fd00:1::1")


def advertisement(source: str, mac: str) -> bytes:
    """A router advertisement with a prefix, as a router sends it to all (RFC 4861, 4.2)."""
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + IPv6Address("2001:db8:bad::").packed
    rest = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + option(1, mac) + prefix
    message = icmp6(134, rest)
    pseudo = IPv6Address(source).packed + IPv6Address(ALL_NODES).packed + struct.pack("!II", len(message), ICMP6)
    message = message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]
    return ethernet(ALL_NODES_MAC, mac, ipv6(source, ALL_NODES, ICMP6, message), 0x86DD)


def link_local(mac: str) -> str:
    raw = mac_bytes(mac)
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]))


@pytest.mark.parametrize("guarded", [True, False], ids=["", "without the program"])
@pytest.mark.parametrize("mode", MODES)
def test_a_router_advertisement_of_a_pod_changes_no_routes(tmp_path: Path, mode: str, guarded: bool) -> None:
    """The class of CVE-2020-10749; also where somebody took the program away, nobody believes it."""
    node = ready(tmp_path, MODES[mode])
    node.host.close()
    if not guarded:
        command("tc", "qdisc", "del", "dev", node.end().name, "clsact")
    rogue = advertisement(link_local(node.mac(0)), node.mac(0))
    heard = node.heard([rogue]) if guarded or mode != "vxlan" else []
    assert heard == [] or not guarded
    for routes in (command("ip", "-6", "route"), node.pods[1].run("ip", "-6", "route")):
        assert "default" not in routes
        assert "2001:db8:bad" not in routes


@pytest.mark.parametrize("mode", [*MODES, "macvlan"])
def test_nothing_that_is_made_listens_to_routers(tmp_path: Path, mode: str) -> None:
    conf = MACVLAN if mode == "macvlan" else MODES[mode]
    host, pod = Host(tmp_path, conf=conf), Pod("c1")
    host.confs.publish(Confs(frozenset({parse_conf(conf).network})))
    host.add(pod)
    made = {
        "host-gw": "testcni0",
        "vxlan": "testcni-vxlan",
        "vxlan-kernel": "testcni-vxlan",
        "ipip": "testcni-ipip",
    }
    names = [made[mode]] if mode in made else []
    names += [link_name("c1", "eth0")] if mode != "host-gw" else []  # a bridge's port takes no packets itself
    for name in names:
        eventually(lambda name=name: [on(name), on(name, pod)] == [[], []])
    assert on("eth0", pod) == []


def on(device: str, pod: Pod | None = None) -> list[str]:
    """The switches of a device that are on; none where there is no such device."""
    names = [f"ipv6/conf/{device}/{name}" for name in hardening.IPV6] + [f"ipv4/conf/{device}/accept_redirects"]
    paths = [Path("/proc/sys/net", name) for name in names]

    def look() -> list[str]:
        return [str(path) for path in paths if path.exists() and path.read_text().strip() != "0"]

    return inside(pod, look) if pod else look()


@pytest.mark.parametrize("mode", ["host-gw", "vxlan-kernel", "ipip"])
def test_what_guards_a_pod_is_repaired(tmp_path: Path, mode: str) -> None:
    """So a pod of a version that had none of it gets it, too."""
    node = ready(tmp_path, MODES[mode])
    node.host.close()
    end, nl = node.end(), netlink.host()
    held = node.host.maps(pod_guard.GUARD)
    wanted = port_of(node, 0)
    harm: dict[str, Callable[[], object]] = {
        "program": lambda: command("tc", "qdisc", "del", "dev", end.name, "clsact"),
        "another's program": lambda: tc.attach(
            nl, end.index, {"ingress": Loader(OBJECTS, BPF_PINS).load(vxlan_maps.FAMILY).programs["veth_egress"]}
        ),
        "entry": lambda: held["guard_ports"].remove(end.index.to_bytes(4, "little")),
        "address": lambda: [held["guard_addresses"].remove(key) for key in held["guard_addresses"].items()],
        "redirects": lambda: Path(f"/proc/sys/net/ipv4/conf/{end.name}/accept_redirects").write_text("1"),
    }
    if mode != "host-gw":
        harm["switch"] = lambda: Path(f"/proc/sys/net/ipv6/conf/{end.name}/accept_ra").write_text("2")
    else:
        harm |= {
            "forwarding entry": lambda: command("bridge", "fdb", "del", node.mac(0), "dev", end.name, "master"),
            "learning": lambda: command("bridge", "link", "set", "dev", end.name, "learning", "on", "flood", "on"),
        }
    for what, do in harm.items():
        do()
        assert pod_port_setup.differs(nl, node.host.kernel, wanted), what
        node.host.reconciler.drifted()
        node.host.reconciler.once()
        assert pod_port_setup.differs(nl, node.host.kernel, wanted) == "", what
    assert node.heard([hostile(node)["an address that nobody has"]]) == []


def port_of(node: Node, number: int) -> PodPort:
    attachment = node.host.attachments.get(node.pods[number].container_id, "eth0")
    assert attachment
    return BUILT_IN[attachment.network.mode].port(attachment)


@pytest.mark.parametrize("mode", ["host-gw", "ipip"])
def test_no_pod_is_connected_without_the_check_unless_its_netconf_says_so(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = MODES[mode]
    objects = tmp_path / "objects"
    objects.mkdir()
    for path in OBJECTS.glob("[!p]*.o"):
        (objects / path.name).symlink_to(path)
    # without pod_guard, as where eBPF is not to be had
    host = Host(tmp_path, conf=conf, objects=objects, times=AddTimes(prepared=4.0, demand=0.2))
    host.confs.publish(Confs(frozenset({parse_conf(conf).network})))
    with pytest.raises(CniError) as refused:
        host.add(Pod("c1"))
    assert '"spoofCheck": false' in str(refused.value) + str(refused.value.details)
    with pytest.raises(CniError):
        host.call("STATUS")
    free = {**conf, "spoofCheck": False}
    host.confs.publish(Confs(frozenset({parse_conf(free).network})))
    eventually(lambda: parse_conf(conf).network not in host.reconciler.status.get().blocks)
    pods = [Pod("c2"), Pod("c3")]
    answers = [host.add(pod, free) for pod in pods]
    assert pods[0].reaches(answers[1]["ips"][0]["address"].split("/")[0])
    (problem,) = [str(p) for p in host.reconciler.status.get().problems]
    assert "pods may send router advertisements and tunnel packets" in problem
    host.delete(pods[0])


def test_a_pod_with_two_interfaces_answers_by_either(tmp_path: Path) -> None:
    """Its routes decide by which; both are the same pod's."""
    node = ready(tmp_path, CONF)
    second = {**CONF, "name": "second", "bridge": "testcni1", "subnet": "10.245.0.0/16"}
    host = node.host
    host.put(type(host.me)("one", host.me.addresses, (*host.me.blocks, parse_conf(second).network.subnet)))  # type: ignore[arg-type]
    node.pods[0].ifname = "net1"
    address = host.add(node.pods[0], second)["ips"][0]["address"].split("/")[0]
    packet = ethernet(node.hop, node.mac(0), ipv4(address, node.address(1), UDP, udp(1, 2)))
    assert len(node.heard([packet])) == 1
    host.delete(node.pods[0], second)
    assert node.heard([packet]) == []


def test_a_pod_gets_no_mac_of_another_by_asking_for_it(tmp_path: Path) -> None:
    node = ready(tmp_path, CONF)
    third = Pod("c9")
    asked = {"runtimeConfig": {"mac": "02:00:00:00:00:07"}}
    assert node.host.add(Pod("c8"), {**CONF, **asked})["interfaces"][2]["mac"] == "02:00:00:00:00:07"
    for mac in (node.mac(1), "02:00:00:00:00:07", node.hop, "0a:58:0a:f4:01:99"):
        with pytest.raises(CniError, match="mac"):
            node.host.add(third, {**CONF, "runtimeConfig": {"mac": mac}})
    assert node.pods[1].reaches("10.244.1.1")


def test_a_pods_entries_go_with_it(tmp_path: Path) -> None:
    node = ready(tmp_path, CONF)
    held = node.host.maps(pod_guard.GUARD)
    before = pod_guard.known(held)
    assert (len(before.ports), len(before.addresses)) == (2, 2)
    node.host.delete(node.pods[0])
    after = pod_guard.known(held)
    assert (len(after.ports), len(after.addresses)) == (1, 1)
    pod_guard.put(held, 99999, pod_guard.GuardedPort("gone", "0a:58:00:00:00:01", (ip("10.244.1.77"),)))
    node.host.reconciler.drifted()
    eventually(lambda: pod_guard.known(held) == after)


def test_a_flood_of_random_frames_ends_in_counters(tmp_path: Path) -> None:
    node, randoms = ready(tmp_path, CONF), random.Random(1)
    frames = [bytes(randoms.randrange(256) for _ in range(randoms.randrange(14, 120))) for _ in range(300)]
    assert node.heard(frames) == []
    assert sum(count.packets for count in pod_guard.counters(node.host.maps(pod_guard.GUARD)).values()) >= 300
    assert link_setup.port_flag(node.end(), link_setup.IFLA_BRPORT_LEARNING) == 0
    assert (node.end().index, node.mac(0)) in fdb.stations(netlink.host())
