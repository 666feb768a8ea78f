"""ipip as a whole without an ipip device: blocks by BIRD, packets by eBPF, a router that knows no pods."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from agent.modes.ipip.bird.types import Tunnel
from tests.lab.space import PYTHON
from tests.netns.birds import Node, flow, lost, needs_bird, wire
from tests.netns.bpf_objects import Programs
from tests.netns.node import Pod, command, private_bpffs
from tests.support import eventually

pytestmark = needs_bird

NEAR, AFAR = IPv4Network("192.0.2.0/24"), IPv4Network("198.51.100.0/24")


def router() -> Pod:
    """Between the two subnets; it has an address in each, and forwards."""
    pod = Pod("router")
    for switch, subnet in (("switch", NEAR), ("afar", AFAR)):
        command("ip", "link", "add", f"r-{switch}", "type", "veth", "peer", "name", switch, "netns", pod.path)
        command("ip", "link", "set", f"r-{switch}", "master", switch, "up")
        pod.run("ip", "link", "set", switch, "up")
        pod.run("ip", "address", "add", f"{subnet[254]}/24", "dev", switch)
    pod.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    return pod


def encapsulate(node: Node, nodes: list[Node]) -> Programs:
    """Put the programs at the node's device, and tell them of all nodes."""
    made = Programs(f"node{node.number}")  # bpffs takes no dots
    made.configure(IPv4Address(node.address), {other.block: (other.address, True) for other in nodes})
    made.attach(node.netns, "eth0")
    return made


def test_pods_talk_over_a_router_that_knows_none(tmp_path: Path) -> None:
    private_bpffs()
    with wire(tmp_path) as net:
        command("ip", "link", "add", "afar", "type", "bridge")
        command("ip", "link", "set", "afar", "up")
        between = router()
        one, two = net.add(1, 2)
        three = Node(tmp_path, 3, AFAR, "afar")
        net.nodes.append(three)
        nodes = [one, two, three]
        programs = []
        for node in nodes:
            gateway = (AFAR if node is three else NEAR)[254]
            node.ip("route", "add", "default", "via", str(gateway))
            programs.append(encapsulate(node, nodes))
            node.config = replace(node.config, tunnel=Tunnel("eth0", gateway, 1480))
        for node in nodes:
            node.want(nodes)
        began = time.monotonic()
        via = {one: ("192.0.2.2", "192.0.2.254"), three: ("198.51.100.254", "198.51.100.254")}
        eventually(lambda: set(one.routes().values()) == set(via[one]) and len(one.routes()) == 2)
        eventually(lambda: set(three.routes().values()) == set(via[three]) and len(three.routes()) == 2)
        eventually(lambda: len(two.routes()) == 2)
        print(f"three nodes in two subnets converge in {time.monotonic() - began:.2f} s")
        assert "mtu 1480" in one.ip("route", "show", "10.244.3.0/24")
        full = ("ping", "-c", "3", "-i", "0.01", "-W", "1", "-q", "-M", "do", "-s", str(1480 - 28))
        for source in nodes:
            for target in nodes:
                if source is not target:
                    words = source.netns.run(*full, "-I", str(source.block[2]), str(target.block[2]))
                    assert " 0% packet loss" in words, (source.name, target.name)
        assert "10.244" not in between.run("ip", "route")
        flows = [flow(one, three, 3), flow(three, two, 3)]
        time.sleep(0.5)
        os.kill(three.pid(), signal.SIGKILL)
        eventually(lambda: three.status().starts == 2 and len(three.established()) == 2)
        assert [lost(each) for each in flows] == [0, 0]
        for made in programs:
            assert set(made.counted()) == {"sent", "received"}
        stranger = Pod("stranger")
        command("ip", "link", "add", "s", "type", "veth", "peer", "name", "eth0", "netns", stranger.path)
        command("ip", "link", "set", "s", "master", "switch", "up")
        stranger.run("ip", "link", "set", "eth0", "up")
        stranger.run("ip", "address", "add", "192.0.2.66/24", "dev", "eth0")
        stranger.run("ping", "-c3", "-i0.2", "-W3", "192.0.2.1")
        spoof = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 4); "
            "s.sendto(bytes.fromhex('450000140000400040010000' '0af40202' '0af40102'), ('192.0.2.1', 0))"
        )
        stranger.run(*PYTHON, spoof)
        eventually(lambda: programs[0].counted().get("drop_unknown_node") == 1)
