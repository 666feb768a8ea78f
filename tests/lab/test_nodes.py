"""Node objects that say odd things while pods talk: addresses that are elsewhere, of several nodes, or missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.lab import Lab, LabNode, Pod, conf_of, lab
from tests.lab.segment import GATEWAY
from tests.lab.talk import TARGET, Flow, Servers, ask
from tests.support import eventually

GHOST, VIP = "172.18.77.1", "172.18.88.1"


@pytest.fixture(scope="module", params=["host-gw", "vxlan", "ipip"])
def nodes(request: pytest.FixtureRequest) -> Iterator[Lab]:
    conf = json.loads(str(conf_of(request.param)))
    del conf["subnet"]  # podCIDRs may lie anywhere
    with lab(3, conf=conf) as it:
        if request.param == "ipip":
            it.wait_converged()
        yield it


@pytest.fixture
def pods(nodes: Lab) -> Iterator[list[Pod]]:
    """A pod on each node, with a server; the Node objects are as they were in the end."""
    with Servers() as servers:
        found = [node.add_pod(f"pod{node.number}") for node in nodes.nodes]
        for pod in found:
            servers.start(pod)
        yield found
        for node in nodes.nodes:
            nodes.put_node(node)
    nodes.tidy()
    eventually(lambda: not any(node.problems() for node in nodes.nodes))


def talk(pods: list[Pod]) -> bool:
    """Return whether each pod reaches each other one, and is seen as itself."""
    pairs = ((a, b) for a in pods for b in pods if a is not b)
    return all(ask(a, "udp", b.address, TARGET) == a.address for a, b in pairs)


def reports(node: LabNode, words: str) -> bool:
    return any(words in problem for problem in node.problems())


def test_pods_are_reached_though_the_first_internal_ip_is_on_no_interface(nodes: Lab, pods: list[Pod]) -> None:
    for node in nodes.nodes[:2]:
        nodes.put_node(node, internal=[f"172.18.77.{node.number}", node.address])
    for node in nodes.nodes[:2]:
        eventually(lambda node=node: reports(node, f"its InternalIP 172.18.77.{node.number} is on no"))
    eventually(lambda: talk(pods), every=0.2)


def test_pods_are_reached_though_a_floating_address_is_listed_first_on_two_nodes(
    nodes: Lab, pods: list[Pod]
) -> None:
    one, two, three = nodes.nodes
    one.space.batch([f"address add {VIP}/32 dev eth0"])
    try:
        for node in (one, two):
            nodes.put_node(node, internal=[VIP, node.address])
        for node in nodes.nodes:
            eventually(lambda node=node: reports(node, f"InternalIP {VIP}: is one of several nodes"))
        eventually(lambda: talk(pods), every=0.2)
        assert not reports(three, "has this node's own address")
    finally:
        one.space.batch([f"address del {VIP}/32 dev eth0"])


def test_nodes_that_list_each_others_addresses_are_reached_where_they_are(nodes: Lab, pods: list[Pod]) -> None:
    """In pairs and in a circle, each other's first; and a Node that has another's address as its only one."""
    one, two, three = nodes.nodes
    for circle in ((one, two), (one, two, three)):
        for node, other in zip(circle, (*circle[1:], circle[0]), strict=True):
            nodes.put_node(node, internal=[other.address, node.address])
        for node in nodes.nodes:
            eventually(lambda node=node: reports(node, f"InternalIP {one.address}: is one of several nodes"))
        eventually(lambda: talk(pods), every=0.2)
        assert not any(reports(node, "has this node's own address") for node in nodes.nodes)
    for node in (one, three):
        nodes.put_node(node)
    nodes.put_node(two, internal=[two.address, GHOST])
    try:
        nodes.put("node-aaa", manifest("aaa", two.address, "10.244.99.0/24"))
        for node in nodes.nodes:
            eventually(lambda node=node: reports(node, f"InternalIP {two.address}: is one of several nodes"))
        eventually(lambda: talk(pods), every=0.2)
    finally:
        (nodes.datastore / "node-aaa.yaml").unlink(missing_ok=True)


def test_a_node_that_shows_a_hostname_only_for_a_moment_loses_no_packet(nodes: Lab, pods: list[Pod]) -> None:
    """Also over a restart of its agent, and while its object is deleted and created again."""
    one, two, _three = nodes.nodes
    eventually(lambda: talk(pods), every=0.2)
    flows = [Flow(pods[0], pods[1].address), Flow(pods[1], pods[0].address)]
    nodes.put_node(one, internal=[])
    for node in (one, two):
        eventually(lambda node=node: reports(node, f"the last known {one.address} stays in use"))
    one.add_pod("late")
    one.stop_agent()
    one.start_agent()
    one.wait_ready()
    eventually(lambda: reports(one, f"the last known {one.address} stays in use"))
    nodes.put_node(one)
    eventually(lambda: not any(node.problems() for node in (one, two)))
    results = [flow.end() for flow in flows]
    assert [lost for _sent, lost in results] == [0, 0], results
    assert min(sent for sent, _lost in results) > 0


def test_a_node_whose_object_is_deleted_for_a_moment_keeps_its_ways_out(nodes: Lab, pods: list[Pod]) -> None:
    one = nodes.nodes[0]
    before = node_state(one)
    nodes.delete_node(one)
    eventually(lambda: reports(one, "has no Node object"))
    assert node_state(one) == before
    nodes.put_node(one)
    eventually(lambda: not reports(one, "has no Node object"))
    eventually(lambda: talk(pods), every=0.2)


def test_a_pod_cidr_that_overlaps_the_nodes_network_leaves_the_node_reachable(nodes: Lab, pods: list[Pod]) -> None:
    """Its gateway's included; its pods go on, and it recovers with a podCIDR of its own."""
    one, two, three = nodes.nodes
    for block in ("172.18.255.0/24", "172.18.0.0/17"):
        nodes.put_node(three, block=block)
        for node in nodes.nodes:
            eventually(lambda node=node, block=block: reports(node, f"block {block} overlaps 172.18."))
        assert all(ask(node.space, "udp", pods[2].address, TARGET) for node in (one, two))
        for target in (GATEWAY, one.address):
            assert three.space.exec("ping", "-c1", "-W2", target, check=False).returncode == 0
        assert block not in three.space.exec("ip", "route").stdout
    nodes.put_node(three)
    eventually(lambda: not three.problems())
    eventually(lambda: talk(pods), every=0.2)


def test_a_pod_cidr_of_link_local_loopback_or_multicast_addresses_takes_nothing_from_any_node(
    nodes: Lab, pods: list[Pod]
) -> None:
    """The cloud's metadata address stays where it was, on the node itself and on its peers."""
    three = nodes.nodes[2]
    for block in ("169.254.0.0/16", "127.0.0.0/24", "224.0.0.0/24"):
        before = [node.space.exec("ip", "route", "get", "169.254.169.254").stdout for node in nodes.nodes]
        nodes.put_node(three, block=block)
        for node in nodes.nodes:
            what = f"node node3: block {block} overlaps {block.partition('.')[0]}."
            eventually(lambda node=node, what=what: reports(node, what))
            assert (
                block not in node.space.exec("ip", "route").stdout + node.space.exec("ip", "-br", "address").stdout
            )
            assert node.space.exec("ping", "-c1", "-W2", "127.0.0.1", check=False).returncode == 0
        assert [node.space.exec("ip", "route", "get", "169.254.169.254").stdout for node in nodes.nodes] == before
    nodes.put_node(three)
    eventually(lambda: not three.problems())
    eventually(lambda: talk(pods), every=0.2)


def test_a_new_node_takes_no_blocks_of_others_over_a_restart_either(nodes: Lab, pods: list[Pod]) -> None:
    one, two, _three = nodes.nodes
    eventually(lambda: talk(pods), every=0.2)
    rogue = manifest("aaa", "172.18.66.6", two.block, two.block.replace("/24", "/25"), "10.244.0.0/16")
    try:
        nodes.put("node-aaa", rogue)
        for node in nodes.nodes:
            eventually(lambda node=node: reports(node, "node aaa: block"))
        assert talk(pods)
        one.stop_agent()
        one.start_agent()
        one.wait_ready()
        eventually(lambda: reports(one, "node aaa: block"))
        assert talk(pods)
    finally:
        (nodes.datastore / "node-aaa.yaml").unlink()


@pytest.mark.parametrize("lost", ["podCIDR", "Node object"])
def test_a_node_whose_pod_cidr_or_object_is_missing_for_a_moment_keeps_its_block(
    nodes: Lab, pods: list[Pod], lost: str
) -> None:
    """A younger Node claims it meanwhile, and a peer's agent restarts: each node says so, and routes as before."""
    one, two, three = nodes.nodes
    eventually(lambda: talk(pods), every=0.2)
    try:
        if lost == "podCIDR":
            nodes.put(f"node-{two.name}", manifest(two.name, two.address))
        else:
            nodes.delete_node(two)
        nodes.put("node-aaa", manifest("aaa", "172.18.66.6", two.block))
        for node in nodes.nodes:
            eventually(lambda node=node: reports(node, f"node aaa: block {two.block} is that of node node2 too"))
        for node in (one, three):
            assert reports(node, "node node2: its "), node.problems()
        one.stop_agent()
        one.start_agent()
        eventually(lambda: reports(one, f"node aaa: block {two.block} is that of node node2 too"))
        if lost == "podCIDR":
            assert talk(pods)
        nodes.put_node(two)
        eventually(lambda: not any(reports(node, "node node2: ") for node in (one, three)))
        for node in nodes.nodes:
            eventually(lambda node=node: reports(node, "node aaa: block"))
        eventually(lambda: talk(pods), every=0.2)
    finally:
        (nodes.datastore / "node-aaa.yaml").unlink(missing_ok=True)


def manifest(name: str, internal: str, *blocks: str) -> dict[str, Any]:
    """A Node, as Kubernetes has it."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": [*blocks]},
        "status": {"addresses": [{"type": "InternalIP", "address": internal}]},
    }


def node_state(node: LabNode) -> tuple[str, ...]:
    """Return what a node must not lose: masquerade, the devices that pods hang on, and their addresses."""
    devices = node.space.exec("ip", "-br", "address").stdout
    return (
        node.space.exec("nft", "list", "table", "inet", "testcni").stdout.partition("chain")[0],
        *sorted(line for line in devices.splitlines() if line.startswith("testcni")),
    )
