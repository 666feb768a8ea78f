"""Nodes whose InternalIPs are on lo or a link to nowhere, as where the host speaks BGP with its router."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab, LabNode, conf_of, lab
from tests.lab.talk import TARGET, Servers, ask
from tests.support import eventually

UNDERLAY_MTU = 1400
OVERHEAD = {"vxlan": 50, "ipip": 20, "vxlan-kernel": 50}


def loopback(node: LabNode) -> str:
    return f"10.255.0.{node.number}"


@pytest.fixture(scope="module", params=[(mode, where) for mode in OVERHEAD for where in ("lo", "loop0")])
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[str, Lab]]:
    """Three nodes on a segment whose MTU is small, each with an InternalIP that a route leads to."""
    mode, where = request.param
    conf = json.loads(str(conf_of(mode.partition("-")[0])))
    if "kernel" in mode:
        conf["vxlanBackend"] = "kernel"
    with lab(3, conf=conf, agents=False) as it:
        for node in it.nodes:
            others = [other for other in it.nodes if other is not node]
            node.space.batch([
                *(["link add loop0 type bridge", "link set loop0 up"] if where == "loop0" else []),
                f"address add {loopback(node)}/32 dev {where}",
                f"link set eth0 mtu {UNDERLAY_MTU}",
                *(f"route add {loopback(o)}/32 via {o.address} dev eth0 src {loopback(node)}" for o in others),
            ])  # fmt: skip
            it.put_node(node, internal=[loopback(node)])
        it.each(lambda node: node.start_agent())
        it.each(LabNode.wait_ready)
        if mode == "ipip":
            it.wait_converged()
        yield mode, it


def test_pods_of_nodes_with_internal_ips_on_a_loopback_reach_each_other(nodes: tuple[str, Lab]) -> None:
    """Also by packets as large as the underlay takes; nobody reports anything."""
    mode, it = nodes
    with Servers() as servers:
        pods = [node.add_pod(f"pod{node.number}") for node in it.nodes]
        for pod in pods:
            servers.start(pod)
        for pod in pods:
            link = json.loads(pod.exec("ip", "-j", "link", "show", "eth0").stdout)[0]
            assert link["mtu"] == UNDERLAY_MTU - OVERHEAD[mode]
        pairs = [(a, b) for a in pods for b in pods if a is not b]
        eventually(lambda: all(ask(a, "tcp", b.address, TARGET) == a.address for a, b in pairs), every=0.2)
        size = UNDERLAY_MTU - OVERHEAD[mode] - 28
        for a, b in pairs:
            a.exec("ping", "-c1", "-W2", "-M", "do", "-s", str(size), b.address)
        for node in it.nodes:
            assert not node.problems()
    it.tidy()


def test_an_underlay_that_does_not_forward_is_reported_by_its_name(nodes: tuple[str, Lab]) -> None:
    """Not lo, whose switch means nothing to packets from outside."""
    one = nodes[1].nodes[0]
    one.space.exec("sysctl", "-qw", "net.ipv4.conf.eth0.forwarding=0")
    one.stop_agent()
    one.start_agent()
    eventually(lambda: any(p.startswith("interface eth0: net.ipv4.conf.eth0.fo") for p in one.problems()))
    one.space.exec("sysctl", "-qw", "net.ipv4.conf.eth0.forwarding=1")
    one.stop_agent()
    one.start_agent()
    one.wait_ready()
