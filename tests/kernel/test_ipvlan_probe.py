"""The guest's kernel forwards as a real one: pods' kinds of devices reach each other, by plain `ip` alone."""

from __future__ import annotations

import pytest

from tests.kernel.nets import Nets, ip


@pytest.mark.parametrize("wanted", ["ipvlan mode l2", "ipvlan mode l3", "ipvlan mode l3s", "macvlan mode bridge"])
def test_two_on_one_parent_reach_each_other(nets: Nets, wanted: str) -> None:
    nets.add("node", "pod1", "pod2")
    ip("-n", "node", "link", "add", "parent", "type", "dummy")
    ip("-n", "node", "link", "set", "parent", "up")
    for number in (1, 2):
        ip("-n", "node", "link", "add", f"it{number}", "link", "parent", "type", *wanted.split())
        join(f"it{number}", f"pod{number}", f"192.0.2.{number}/24")
    assert nets.reaches("pod1", "192.0.2.2")
    assert nets.reaches("pod2", "192.0.2.1")
    assert not nets.reaches("pod1", "192.0.2.3")


def join(device: str, pod: str, address: str) -> None:
    ip("-n", "node", "link", "set", device, "netns", pod, "name", "eth0")
    ip("-n", pod, "address", "add", address, "dev", "eth0")
    ip("-n", pod, "link", "set", "eth0", "up")


def wire(nets: Nets) -> None:
    """Two nodes on one cable, by address 198.51.100.1 and .2."""
    nets.add("node1", "node2")
    ip("-n", "node1", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", "node2")
    for number in (1, 2):
        ip("-n", f"node{number}", "address", "add", f"198.51.100.{number}/24", "dev", "eth0")
        ip("-n", f"node{number}", "link", "set", "eth0", "up")


@pytest.mark.parametrize("wanted", ["ipvlan mode l2", "macvlan mode bridge"])
def test_two_on_two_nodes_reach_each_other(nets: Nets, wanted: str) -> None:
    wire(nets)
    for number in (1, 2):
        nets.add(f"pod{number}")
        ip("-n", f"node{number}", "link", "add", "it", "link", "eth0", "type", *wanted.split())
        ip("-n", f"node{number}", "link", "set", "it", "netns", f"pod{number}", "name", "eth0")
        ip("-n", f"pod{number}", "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
        ip("-n", f"pod{number}", "link", "set", "eth0", "up")
    assert nets.reaches("pod1", "192.0.2.2")


def test_tunl0_carries_from_node_to_node(nets: Nets) -> None:
    wire(nets)
    for number, peer in ((1, 2), (2, 1)):
        node = f"node{number}"
        ip("-n", node, "address", "add", f"192.0.2.{number}/32", "dev", "tunl0")
        ip("-n", node, "link", "set", "tunl0", "up")
        route = f"192.0.2.{peer} via 198.51.100.{peer} dev tunl0 onlink src 192.0.2.{number}"
        ip("-n", node, "route", "add", *route.split())
    assert nets.reaches("node1", "192.0.2.2")
