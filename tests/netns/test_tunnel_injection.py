"""A node of vxlan takes only packets of nodes from the tunnel, and its pods can send none: with real frames."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent.host.cni_conf_dir import Confs
from agent.kernel import ip_links, netlink
from agent.model.cluster import IPReservation, Node
from agent.modes.hostgw import HOST_GW
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.maps import tunnel_mac
from agent.modes.vxlan.options import VXLAN
from agent.objects import pod_guard
from tests.netns.frames import UDP, ethernet, ipv4, udp, vxlan
from tests.netns.node import CONF, Host, Pod, command
from tests.netns.node import VXLAN as VXLAN_CONF
from tests.netns.test_pod_guard import Node as Guarded
from tests.netns.test_pod_guard import ready
from tests.networks import changed, parse_conf
from tests.support import eventually, ip, net

ME, PEER, PEERS_SECOND, OTHER, FLOATING = "192.0.2.1", "192.0.2.2", "192.0.2.22", "192.0.2.3", "192.0.2.44"
SENDER = "0a:76:78:6c:61:6e"


def peer(name: str, block: str, *addresses: str, modes: tuple[str, ...] = (VXLAN,)) -> Node:
    return Node(name, tuple(map(ip, addresses)), (net(block),), accepted_modes=(("testcni", modes),))


@dataclass
class Tunnel:
    """A node with a pod, and the wire that its tunnel's packets come by."""

    host: Host
    pod: str

    def fate(self, source: str, remote: str, tag: bytes = b"") -> str:
        """Return what becomes of a packet of a pod, tagged or not, that comes out of the tunnel from a node."""
        held = self.host.maps()
        assert held
        before = vxlan_maps.counters(held)
        packet = tag + ipv4(source, self.pod, UDP, udp(1, 9))
        frame = ethernet(tunnel_mac(IPv4Address(ME)), SENDER, packet, 0x8100 if tag else 0x0800)
        eth0 = ip_links.link(netlink.host(), "eth0")
        assert eth0
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
            wire.bind(("wire", 0))
            outer = ipv4(remote, ME, UDP, udp(40000, 8472, vxlan(1, frame)))
            wire.send(ethernet(eth0.mac, SENDER, outer))

        def counted() -> list[str]:
            after = vxlan_maps.counters(held)
            return [reason for reason, count in after.items() if count.packets > before[reason].packets]

        return "".join(eventually(counted))


def begun(tmp_path: Path) -> Tunnel:
    host, pod = Host(tmp_path, conf=VXLAN_CONF), Pod("c1")
    host.confs.publish(Confs(frozenset({parse_conf(VXLAN_CONF).network})))
    answer = host.add(pod)
    pod.run(
        "nft",
        "add table inet quiet; add chain inet quiet out { type filter hook output priority 0; policy drop; }",
    )
    pod.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    host.put(peer("two", "10.244.2.0/24", PEER, PEERS_SECOND), peer("three", "10.244.3.0/24", OTHER, FLOATING))
    host.put(peer("four", "10.244.4.0/24", "192.0.2.4", FLOATING, modes=(HOST_GW,)))
    it = Tunnel(host, answer["ips"][0]["address"].split("/")[0])
    eventually(lambda: it.fate("10.244.2.2", PEER) == "forwarded_local")
    eventually(lambda: it.fate("10.244.3.2", OTHER) == "forwarded_local")
    eventually(lambda: it.fate("203.0.113.1", "192.0.2.4") == "to_stack")
    return it


def test_a_node_sends_as_its_own_pods_and_as_others_outside_but_as_no_other_nodes_pod(tmp_path: Path) -> None:
    tunnel = begun(tmp_path)
    fates = {
        (PEER, "10.244.2.9"): "forwarded_local",
        (PEER, "10.244.3.9"): "drop_spoofed_node",
        (PEER, "10.244.1.9"): "drop_spoofed_node",  # a pod of this very node
        (PEER, "203.0.113.1"): "to_stack",  # a client outside, whose packets a node passes on
        (PEER, PEER): "to_stack",
        (PEER, "10.244.4.9"): "to_stack",  # of a node without tunnel
        (PEERS_SECOND, "10.244.2.9"): "to_stack",  # a node of several addresses may send from any
        (PEERS_SECOND, "10.244.3.9"): "drop_spoofed_node",
        (FLOATING, "10.244.2.9"): "to_stack",  # several nodes have it: whose it is can't be told
        ("192.0.2.4", "10.244.2.9"): "drop_spoofed_node",  # a node that is in no tunnel
        ("192.0.2.77", "10.244.2.9"): "drop_unknown_node",
    }
    assert {case: tunnel.fate(case[1], case[0]) for case in fates} == fates
    for source in ("10.244.2.9", "10.244.3.9"):
        assert tunnel.fate(source, PEER, tag=b"\0\1\x08\0") == "drop_not_ip"


def test_a_pod_that_moves_with_its_address_is_heard_from_where_it_is(tmp_path: Path) -> None:
    tunnel = begun(tmp_path)
    guest = IPReservation(ip("10.244.2.9"), "o", "ns/pod", "three", "testcni", datetime.now(UTC))
    tunnel.host.snapshot.update(lambda s: replace(s, reservations={guest.name: guest}))
    eventually(lambda: tunnel.fate("10.244.2.9", OTHER) == "forwarded_local")
    assert tunnel.fate("10.244.2.9", PEER) == "drop_spoofed_node"
    moved = replace(guest, node="four")  # where there is no tunnel yet
    tunnel.host.snapshot.update(lambda s: replace(s, reservations={guest.name: moved}))
    eventually(lambda: tunnel.fate("10.244.2.9", "192.0.2.4") == "to_stack")
    assert tunnel.fate("10.244.2.9", OTHER) == "drop_spoofed_node"
    tunnel.host.snapshot.update(lambda s: replace(s, reservations={}))
    eventually(lambda: tunnel.fate("10.244.2.9", "192.0.2.4") == "drop_spoofed_node")
    assert tunnel.fate("10.244.2.9", PEER) == "forwarded_local"


def test_entries_of_a_version_without_the_check_let_all_nodes_send_until_they_are_replaced(tmp_path: Path) -> None:
    tunnel = begun(tmp_path)
    held = tunnel.host.maps()
    assert held
    tunnel.host.close()
    for key in held["nodes"].items():
        held["nodes"].put(key, vxlan_maps._KEY.pack(vxlan_maps.UNKNOWN))
    assert tunnel.fate("10.244.3.9", PEER) == "to_stack"
    tunnel.host.reconciler.drifted()
    tunnel.host.reconciler.once()
    assert tunnel.fate("10.244.3.9", PEER) == "drop_spoofed_node"


def passes(node: Guarded, port: int) -> bool:
    packet = ipv4(node.address(0), node.address(1), UDP, udp(1, port, b"to a tunnel"))
    return bool(node.heard([ethernet(node.hop, node.mac(0), packet)]))


@pytest.mark.parametrize("port", [8472, 4790])
def test_a_node_without_tunnel_closes_the_port_of_its_peers_tunnels(tmp_path: Path, port: int) -> None:
    node = ready(tmp_path, conf := {**CONF, "port": port})
    network = parse_conf(conf).network
    node.host.confs.publish(Confs(frozenset({network}), chosen={network.name: network}))
    node.host.put(peer("two", "10.244.2.0/24", PEER, modes=(HOST_GW,)))
    eventually(lambda: "10.244.2.0" in command("ip", "route"))
    assert passes(node, port), "no node has a tunnel"
    assert "chain forward" not in command("nft", "list", "ruleset")
    node.host.put(peer("two", "10.244.2.0/24", PEER, modes=(VXLAN, HOST_GW)))
    held = node.host.maps(pod_guard.GUARD)["guard_config"]
    eventually(lambda: socket.htons(port).to_bytes(2, "little") in (held.get(bytes(4)) or b""))
    assert not passes(node, port)
    assert passes(node, port + 1)
    node.host.put(peer("two", "10.244.2.0/24", PEER, modes=(HOST_GW,)))
    eventually(lambda: "10.244.2.0" in command("ip", "route"))
    assert not passes(node, port), "its tunnel is there for a while"


def test_a_third_port_of_tunnels_is_a_problem(tmp_path: Path) -> None:
    node = ready(tmp_path, CONF)
    chosen = {n: changed(parse_conf(CONF).network, name=n, port=p) for n, p in (("a", 1111), ("b", 2222))}
    node.host.confs.publish(Confs(frozenset({parse_conf(CONF).network}), chosen=chosen))
    said = tuple((name, (VXLAN,)) for name in ("a", "b", "c"))
    node.host.put(replace(peer("two", "10.244.2.0/24", PEER), accepted_modes=said))
    eventually(lambda: any("UDP port 8472" in str(p) for p in node.host.reconciler.status.get().problems))
    assert [passes(node, port) for port in (1111, 2222, 8472)] == [False, False, True]
