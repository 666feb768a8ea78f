"""Nodes that get another podCIDR while their pods run on: each pod is reached until it is gone, and is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.lab.lab import Lab, LabNode, Pod, conf_of
from tests.lab.reserved_addresses import STICKY, add, converge, describe, reservations, staying
from tests.lab.talk import TARGET, Servers, ask
from tests.support import eventually

NEW = "10.244.77.0/24"
OUTSIDE = "addresses of pods are in none of its blocks"


@pytest.fixture(params=["host-gw", "vxlan", "ipip"])
def recreated(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Three nodes with a pod each; podCIDRs may lie anywhere, as in the manifests."""
    conf = json.loads(str(conf_of(request.param)))
    del conf["subnet"]
    with staying(3, conf=conf) as it:
        it.each(lambda node: node.add_pod(f"pod{node.number}"))
        converge(it, 20)
        yield it


def used(node: LabNode) -> int:
    return int(node.ask()["networks"][0]["addresses"]["ipv4"]["used"])


def recreate(it: Lab, node: LabNode, block: str) -> None:
    """As `kubectl delete node` does, kubelet, and who allocates podCIDRs."""
    pod = next(iter(node.pods.values()))
    it.delete_node(node)
    eventually(lambda: "has no Node object" in str(node.problems()))
    it.put_node(node, block=block)
    eventually(lambda: pod.address in reservations(it))


def seen_as_itself(pods: list[Pod]) -> bool:
    pairs = ((a, b) for a in pods for b in pods if a is not b)
    return all(ask(a, "udp", b.address, TARGET) == a.address for a, b in pairs)


def test_pods_are_reached_until_they_are_gone_though_their_node_has_another_podcidr(recreated: Lab) -> None:
    one, two, three = recreated.nodes
    old = one.pods["pod1"]
    recreate(recreated, one, NEW)
    converge(recreated, 20)
    assert reservations(recreated)[old.address]["keep"] == "Pod"
    late = one.add_pod("late")
    assert late.address.startswith("10.244.77.")
    converge(recreated, 20)
    with Servers() as servers:
        pods = [old, late, two.pods["pod2"], three.pods["pod3"]]
        for pod in pods:
            servers.start(pod)
        eventually(lambda: seen_as_itself(pods), every=0.2)
    words = f"{OUTSIDE}: pod1; delete"
    eventually(lambda: [words in problem for problem in one.problems()] == [True])
    eventually(lambda: [node.problems() for node in (two, three)] == [[], []])
    assert used(one) == 2
    one.stop_agent()
    one.start_agent("--pod-annotations", "on")
    one.wait_ready()
    converge(recreated, 20)
    eventually(lambda: reservations(recreated).keys() == {old.address})
    one.delete_pod(old)
    eventually(lambda: not reservations(recreated) and not one.problems())
    assert used(one) == 1


def test_a_range_that_is_another_nodes_by_now(recreated: Lab) -> None:
    """Its node gives nobody the addresses of the pods that are elsewhere, and reaches them."""
    one, two, three = recreated.nodes
    old = one.pods["pod1"]
    recreate(recreated, one, NEW)
    recreate(recreated, three, one.block)
    assert reservations(recreated).keys() == {old.address, three.pods["pod3"].address}
    converge(recreated, 20)
    late = three.add_pod("late")
    assert late.address.startswith("10.244.1.")
    assert late.address != old.address
    if (
        one.ask()["networks"][0]["mode"] == "host-gw"
    ):  # node1's bridge has the old block as long as its pod is there
        eventually(lambda: any("pods here have addresses of it" in problem for problem in one.problems()))
        one.delete_pod(old)
    converge(recreated, 20)
    assert two.problems() == []
    eventually(lambda: all(OUTSIDE in problem for problem in (*one.problems(), *three.problems())))


def test_a_node_that_is_recreated_as_it_was(recreated: Lab) -> None:
    one = recreated.nodes[0]
    recreated.delete_node(one)
    eventually(lambda: "has no Node object" in str(one.problems()))
    recreated.put_node(one)
    converge(recreated, 20)
    eventually(lambda: not one.problems())
    assert not reservations(recreated)


def test_what_stays_and_what_a_person_reserved_is_reached_wherever_it_is(recreated: Lab) -> None:
    """A sticky pod whose home block is of no node now, and a pod without annotations of another node's block."""
    one, two, three = recreated.nodes
    describe(recreated, "web-0", STICKY, "StatefulSet/web")
    sticky = add(one, "web-0")
    one.delete_pod(sticky)
    recreate(recreated, one, NEW)
    one.delete_pod(one.pods["pod1"])
    reserved = str(ip_address(three.block.partition("/")[0]) + 50)
    name = reserved.replace(".", "-")
    spec = {"address": reserved, "owner": "default/db"}
    doc = {"apiVersion": "testcni.io/v1", "kind": "IPReservation", "metadata": {"name": name}, "spec": spec}
    recreated.put(f"ipreservation-{name}", doc)
    eventually(lambda: all(reserved in known(node) for node in recreated.nodes))
    for node in (two, one):
        pods = [add(node, "web-0"), add(node, "db")]
        assert [pod.address for pod in pods] == [sticky.address, reserved]
        converge(recreated, 20)
        for pod in pods:
            node.delete_pod(pod)
        eventually(lambda: all("released" in held for held in reservations(recreated).values()))
    assert reservations(recreated)[reserved]["keep"] == "Always"
    assert [node.problems() for node in recreated.nodes] == [[], [], []]


def known(node: LabNode) -> str:
    """The reservations that a node's agent has read."""
    path = node.path("/run/testcni/reservations.json")
    return path.read_text() if path.exists() else ""


def test_an_address_that_another_pod_has_by_now_is_a_problem_of_its_pod(recreated: Lab) -> None:
    """While the node was away its range was given to another, whose pod came first."""
    one, two, _three = recreated.nodes
    old = one.pods["pod1"]
    recreated.delete_node(one)
    eventually(lambda: "has no Node object" in str(one.problems()))
    one.stop_agent()  # it can reserve nothing
    recreated.put_node(one, block=NEW)
    recreated.put_node(two, block=one.block)
    eventually(lambda: one.block in str(two.ask()["networks"]), 90)
    describe(recreated, "taker", {"testcni.io/ip": old.address})
    taker = two.add_pod("taker", args=f"IgnoreUnknown=1;IP={old.address}")
    assert taker.address == old.address
    one.start_agent("--pod-annotations", "on")
    one.wait_ready()
    words = f"its address {old.address} is in none of this node's blocks, and taker on node node2 has it"
    eventually(lambda: any(words in problem for problem in one.problems()))
    two.delete_pod(taker)
    eventually(lambda: not any(words in problem for problem in one.problems()))
    converge(recreated, 20)
