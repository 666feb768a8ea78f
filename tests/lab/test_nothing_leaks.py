"""A deleted pod leaves nothing, in every mode, neither on the node nor in its namespace."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.lab.burst import killed_amid_adds
from tests.lab.lab import Lab, LabNode
from tests.lab.paths import Way
from tests.lab.state import difference, fds, net_state


def links_in(node: LabNode, name: str) -> list[str]:
    """The links of a namespace; some kernels put tunnels into each."""
    return [link["ifname"] for link in json.loads(node.space.exec("ip", "-j", "-n", name, "link").stdout)]


def proxied(node: LabNode) -> str:
    """The addresses that the node answers ARP for."""
    return node.space.exec("ip", "neigh", "show", "proxy").stdout


def test_a_del_leaves_nothing_neither_here_nor_in_the_pod(three: Lab, way: Way) -> None:
    node = three.nodes[0]
    node.add_netns("c1")
    empty, before, proxies = links_in(node, "c1"), net_state(node), proxied(node)
    for _ in range(2):
        node.runner.add(node.conf(), "c1", "/run/netns/c1")
        assert len(links_in(node, "c1")) == len(empty) + (2 if way.kind else 1), "a slave comes with a veth pair"
        node.runner.delete(node.conf(), "c1", "/run/netns/c1")
        assert links_in(node, "c1") == empty
    assert difference(before, net_state(node)) == []
    assert proxied(node) == proxies


def test_kill_9_amid_adds_then_gc_leaves_nothing(three: Lab) -> None:
    node = three.nodes[0]
    conf = replace(node.conf(), version="1.1.0")
    names = [f"p{number}" for number in range(60)]
    node.space.batch([f"netns add {name}" for name in names])
    empty, before, proxies = links_in(node, names[0]), net_state(node), proxied(node)
    descriptors = fds(node.agent_pid)
    killed_amid_adds(node, conf, names, workers=6, after=15)
    node.runner.collect(conf, [])
    assert difference(before, net_state(node)) == []
    assert [name for name in names if links_in(node, name) != empty] == []
    assert proxied(node) == proxies
    assert fds(node.agent_pid) <= descriptors + 40, "reapers and callers keep a socket each, 16 of either at most"
