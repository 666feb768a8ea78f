"""Addresses that stay in the lab: sticky and fixed ones, claims of others, expiry, and what may fail meanwhile."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.lab import Lab, LabNode, conf_of, lab
from tests.lab.paths import lacks
from tests.lab.reserved_addresses import STICKY, add, converge, describe, reservations, start_agents, staying
from tests.lab.runner import Conf, RunnerError
from tests.lab.state import difference, net_state
from tests.lab.test_mode_change import MODES, conf, put, takes
from tests.support import eventually

MOVES = 6  # each node is left, and taken up, twice
WITHIN = 1.0  # seconds


@pytest.mark.parametrize("mode", ["host-gw", "vxlan", "ipip", "macvlan"])
def test_a_sticky_pod_keeps_its_address_wherever_it_goes(mode: str) -> None:
    if mode == "macvlan" and (why := lacks(mode)):
        pytest.skip(why)
    with staying(3, conf=conf_of(mode)) as it:
        if mode == "ipip":
            it.wait_converged()
        it.each(lambda node: node.add_pod(f"pod{node.number}"))
        converge(it, 5)
        describe(it, "web-0", STICKY, "StatefulSet/web")
        took = []
        address, pod = "", None
        for move in range(MOVES):
            if pod:
                pod.node.delete_pod(pod)
            pod = add(it.nodes[move % 3], "web-0")
            address = address or pod.address
            assert pod.address == address
            took.append(converge(it, WITHIN))
        print(f"{mode}: {MOVES} moves of {address}, reached from everywhere after {max(took):.2f} s at most")
        assert [node.problems() for node in it.nodes] == [[]] * 3


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(MODES, 2)))
def test_a_sticky_pod_moves_between_nodes_of_different_modes(old: str, new: str) -> None:
    with staying(3, conf=conf(old)) as it:
        _, two, _ = it.nodes
        if old == "ipip":
            it.wait_converged()
        it.each(lambda node: node.add_pod(f"pod{node.number}"))
        converge(it, 5)
        describe(it, "web-0", STICKY, "StatefulSet/web")
        pod = add(two, "web-0")
        put(two, new)
        takes(it, two, new)
        converge(it, 5)
        address, took = pod.address, []
        for number in (0, 1, 2, 0, 2, 1):  # in and out of the node's own block
            pod.node.delete_pod(pod)
            pod = add(it.nodes[number], "web-0")
            assert pod.address == address
            took.append(converge(it, WITHIN))
        print(f"{old} and {new}: {address} is reached from everywhere after {max(took):.2f} s at most")
        assert [node.problems() for node in it.nodes] == [[]] * 3


@pytest.fixture
def pair() -> Iterator[Lab]:
    """Two nodes with host-gw, whose reservations outlive their pods by some seconds."""
    with staying(2, "--keep-address", "6") as it:
        yield it


def refused(node: LabNode, name: str, container: str = "") -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        add(node, name, container)
    return caught.value


def newest(node: LabNode) -> Conf:
    """The node's conf in a version that has CHECK."""
    return replace(node.conf(), version="1.1.0")


def test_a_second_claim_is_refused_until_the_first_is_over(pair: Lab) -> None:
    one, two = pair.nodes
    fixed = {"testcni.io/ip": "10.244.1.77"}
    for name in ("first", "second"):
        describe(pair, name, fixed)
    first = add(one, "first")
    assert first.address == "10.244.1.77"
    error = refused(two, "second")
    assert error.code == 102
    assert "10.244.1.77 is reserved for default/first: pod default/first on node node1 has it since" in error.msg
    assert error.details
    error = refused(one, "second")  # where the address is at home, too
    assert (error.code, "is reserved for default/first" in error.msg) == (102, True)
    assert converge(pair, 1) < 1  # nothing of it was disturbed
    one.delete_pod(first)
    eventually(lambda: "released" in reservations(pair).get("10.244.1.77", {}))
    assert "is kept for default/first until" in refused(two, "second").msg
    eventually(lambda: "10.244.1.77" not in reservations(pair))
    second = add(two, "second")
    assert second.address == "10.244.1.77"
    converge(pair, 1)
    assert reservations(pair)["10.244.1.77"]["node"] == "node2"
    two.delete_pod(second)
    eventually(lambda: not reservations(pair))
    assert [node.problems() for node in pair.nodes] == [[], []]


def test_a_pod_of_the_same_name_that_is_just_going_is_waited_for(pair: Lab) -> None:
    one = pair.nodes[0]
    describe(pair, "web-0", STICKY, "StatefulSet/web")
    old = add(one, "web-0", "old")
    going = threading.Timer(1.0, one.delete_pod, (old,))
    going.start()
    new = add(one, "web-0", "new")
    going.join()
    assert new.address == old.address


def test_the_node_of_the_block_has_to_agree(pair: Lab) -> None:
    one, two = pair.nodes
    ordinary = one.add_pod("ordinary")
    describe(pair, "greedy", {"testcni.io/ip": ordinary.address})
    error = refused(two, "greedy")
    assert error.code == 102
    assert f"{ordinary.address} lies in a block of node node1, and ordinary on node node1 has it" in error.msg
    eventually(lambda: not reservations(pair))
    one.delete_pod(ordinary)
    guest = add(two, "greedy")
    assert guest.address == ordinary.address
    assert converge(pair, 1) < 1
    two.runner.check(newest(two), "greedy", guest.netns)
    for number in range(3):  # the block's node gives it to nobody
        assert one.add_pod(f"other{number}").address != guest.address
    converge(pair, 1)
    one.stop_agent(signal.SIGKILL)
    describe(pair, "waits", {"testcni.io/ip": "10.244.1.99"})
    error = refused(two, "waits")
    assert (error.code, "node1, which has not agreed within" in error.msg) == (11, True)
    eventually(lambda: "10.244.1.99" not in reservations(pair))
    one.start_agent("--pod-annotations", "on", "--keep-address", "2")
    one.wait_ready()
    assert add(two, "waits").address == "10.244.1.99"
    converge(pair, 1)


@pytest.fixture(scope="module")
def alone() -> Iterator[Lab]:
    with staying(1) as it:
        yield it


@pytest.mark.parametrize(
    ("annotations", "controller", "code", "words"),
    [
        ({"testcni.io/ip": "10.244.1"}, "", 7, "annotation testcni.io/ip of pod default/odd"),
        ({"testcni.io/ip": "fd00::1"}, "", 7, "annotation testcni.io/ip of pod default/odd"),
        ({"testcni.io/ip": "192.0.2.7"}, "", 7, "address: '192.0.2.7' is not allowed"),
        ({"testcni.io/ip": "10.244.1.1"}, "", 102, "10.244.1.1 is not an address for pods"),
        ({"testcni.io/ip": "10.244.255.255"}, "", 102, "10.244.255.255 is no address for"),
        ({"testcni.io/sticky": "yes"}, "", 7, "annotation testcni.io/sticky of pod default/odd"),
        ({"testcni.io/sticky": "true"}, "ReplicaSet/web-5d8f", 7, "testcni.io/sticky"),
    ],
)
def test_what_can_not_be(alone: Lab, annotations: dict[str, str], controller: str, code: int, words: str) -> None:
    node = alone.nodes[0]
    before = net_state(node)
    describe(alone, "odd", annotations, controller)
    error = refused(node, "odd")
    assert (error.code, words in error.msg, bool(error.details)) == (code, True, True), error
    assert not difference(before, net_state(node))
    assert not reservations(alone)


def test_a_deployments_pods_take_turns(pair: Lab) -> None:
    one, two = pair.nodes
    fixed = {"testcni.io/ip": "10.244.1.50"}
    for name in ("web-a", "web-b", "web-c"):
        describe(pair, name, fixed, "ReplicaSet/web-5d8f")
    first = add(one, "web-a")
    assert "is reserved for default/ReplicaSet/web-5d8f" in refused(two, "web-b").msg
    one.delete_pod(first)
    eventually(lambda: "released" in reservations(pair).get("10.244.1.50", {}))
    assert add(two, "web-b").address == first.address
    converge(pair, 1)
    assert refused(one, "web-c").code == 102


def test_agents_that_are_killed_and_objects_that_are_deleted(pair: Lab) -> None:
    one, two = pair.nodes
    options = ("--pod-annotations", "on", "--keep-address", "600")
    describe(pair, "web-0", STICKY)
    describe(pair, "far", {"testcni.io/ip": "10.244.1.60"})
    pods = [add(one, "web-0"), add(two, "far")]
    for node in pair.nodes:
        node.stop_agent(signal.SIGKILL)
        node.start_agent(*options)
    pair.each(LabNode.wait_ready)
    converge(pair, 1)
    assert not any("released" in spec for spec in reservations(pair).values())
    for address in [pod.address for pod in pods]:
        (pair.datastore / f"ipreservation-{address.replace('.', '-')}.yaml").unlink()
    eventually(lambda: reservations(pair).keys() == {pod.address for pod in pods})
    converge(pair, 2)
    two.stop_agent(signal.SIGKILL)
    two.delete_pod(pods[1])  # which the plugin notes for the agent
    two.start_agent(*options)
    eventually(lambda: "released" in reservations(pair).get("10.244.1.60", {}))
    two.stop_agent()
    pair.delete_node(two)  # for good
    one.stop_agent()
    one.start_agent("--pod-annotations", "on", "--keep-address", "1")
    eventually(lambda: "10.244.1.60" not in reservations(pair))
    assert reservations(pair).keys() == {pods[0].address}


def test_a_pod_chooses_the_pool_of_its_address() -> None:
    with lab(2, agents=False, conf={"cniVersion": "1.0.0", "name": "testcni", "type": "testcni"}) as it:
        one, two = it.nodes
        for name, cidr in (("gold", "10.99.0.0/16"), ("pods", "10.244.0.0/16")):
            spec = {"cidr": cidr, "blockSize": 24, "allowedNamespaces": ["default"]}
            it.put(f"pool-{name}", {
                "apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec,
            })  # fmt: skip
        start_agents(it)
        ordinary = [node.add_pod(f"pod{node.number}") for node in it.nodes]
        assert all(pod.address.startswith("10.244.") for pod in ordinary)
        describe(it, "rich", {"testcni.io/pool": "gold", **STICKY})
        rich = add(one, "rich")
        assert rich.address.startswith("10.99.")
        converge(it, 2)
        it.put("namespace-default", {
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "default", "annotations": {"testcni.io/pool": "gold"}},
        })  # fmt: skip
        describe(it, "heir", {})
        assert add(two, "heir").address.startswith("10.99.")
        describe(it, "lost", {"testcni.io/pool": "silver"})
        error = refused(two, "lost")
        assert (error.code, "testcni.io/pool of pod default/lost: 'silver'" in error.msg) == (7, True)
        assert "gold, pods" in error.details
        one.delete_pod(rich)
        assert add(two, "rich").address == rich.address
        converge(it, 2)
        with pytest.raises(RunnerError, match="namespace shop may not ask for addresses of IPPool gold") as caught:
            one.add_pod("shop", args="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;IP=10.99.0.77")
        assert caught.value.code == 102
        assert one.add_pod("plain", args="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=plain")
        assert [node.problems() for node in it.nodes] == [[], []]
