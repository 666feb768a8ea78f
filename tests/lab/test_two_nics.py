"""Nodes with a second network, whose interface came first: pods' packets go by that of the InternalIP."""

from __future__ import annotations

import shutil

import pytest

from tests.lab.lab import Lab, LabNode, conf_of, lab
from tests.lab.talk import TARGET, Servers, ask
from tests.support import eventually

SECOND = "br1"


def add_nic(it: Lab, node: LabNode, address: str) -> None:
    """A mgmt0 on a switch of its own, with a lower index than eth0, and the older route."""
    it.unplug(node.space)
    it.switch.batch([
        f"link add {node.name}-m type veth peer name mgmt0 netns {node.space.inner}",
        f"link set {node.name}-m master {SECOND} up",
    ])  # fmt: skip
    node.space.batch(["link set mgmt0 up", f"address add {address} dev mgmt0"])
    it.plug(node.space, node.address)


def index(node: LabNode, device: str) -> int:
    return int(node.space.exec("cat", f"/sys/class/net/{device}/ifindex").stdout)


def carried(node: LabNode) -> int:
    """Return how many packets about pods came by the second network, in tunnels or not."""
    out = node.space.exec("nft", "list", "counter", "netdev", "heard", "pods").stdout
    return int(out.split("packets ")[1].split()[0])


def listen(node: LabNode) -> None:
    node.space.exec("nft", "-f", "-", stdin="""
        table netdev heard {
          counter pods { }
          chain mgmt { type filter hook ingress device mgmt0 priority 0;
            ip daddr 10.244.0.0/16 counter name pods
            udp dport 8472 counter name pods
            ip protocol 4 counter name pods
          }
        }""")  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "network"),
    [
        ("host-gw", "172.16.0.{}/12"),  # holds the nodes' network
        ("host-gw", "172.18.77.{}/16"),  # the very same network
        ("host-gw", "192.0.2.{}/24"),
        ("vxlan", "172.16.0.{}/12"),
        ("ipip", "172.16.0.{}/12"),
    ],
)
def test_pods_of_nodes_with_a_second_network_reach_each_other_by_that_of_the_internal_ip(
    mode: str, network: str
) -> None:
    if mode == "ipip" and not shutil.which("bird"):
        pytest.skip("BIRD is not installed (Debian: bird2)")
    with lab(2, conf=conf_of(mode), agents=False) as it, Servers() as servers:
        it.switch.batch([f"link add {SECOND} type bridge stp_state 0", f"link set {SECOND} up"])
        for node in it.nodes:
            add_nic(it, node, network.format(node.number + 1))
            listen(node)
            assert index(node, "mgmt0") < index(node, "eth0")
        it.each(lambda node: node.start_agent())
        it.each(LabNode.wait_ready)
        pods = [node.add_pod(f"pod{node.number}") for node in it.nodes]
        servers.start(pods[1])
        eventually(lambda: ask(pods[0], "tcp", pods[1].address, TARGET) == pods[0].address)
        assert ask(pods[0], "udp", pods[1].address, TARGET) == pods[0].address
        assert [carried(node) for node in it.nodes] == [0, 0]
        if mode == "host-gw":
            for node, other in zip(it.nodes, reversed(it.nodes), strict=True):
                route = node.space.exec("ip", "route", "show", other.block).stdout
                assert f"via {other.address} dev eth0" in route
        assert [node.problems() for node in it.nodes] == [[], []]
