"""IPPools on the nodes' subnet: no address twice, blocks that come and go, and who else is on the segment."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.errors import Code
from agent.model.cluster import IPBlock
from tests.lab import matrix
from tests.lab.lab import Lab, LabNode, lab
from tests.lab.paths import lacks
from tests.lab.runner import RunnerError
from tests.lab.segment import GATEWAY
from tests.lab.space import Space
from tests.support import eventually

QUICK = ("--block-idle", "1", "--node-gone", "2", "--cool-down", "0", "--resync", "2")
CONF = {"cniVersion": "1.0.0", "name": "testcni", "type": "testcni", "mode": "macvlan", "subnet": "172.18.0.0/16"}


@contextmanager
def pooled(nodes: int, **spec: Any) -> Iterator[Lab]:
    """Nodes whose pods are on their subnet by macvlan, with addresses of one pool."""
    if why := lacks("macvlan"):
        pytest.skip(why)
    with lab(nodes, conf=CONF, pod_cidrs=False, agents=False) as it:
        (it.datastore / "pool.yaml").unlink()  # on a subnet of pods
        put_pool(it, **spec)
        it.each(lambda node: node.start_agent(*QUICK))
        it.each(lambda node: node.wait_ready(90))
        yield it


def put_pool(it: Lab, **spec: Any) -> None:
    meta = {"apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": "lan"}}
    it.put("lan", {**meta, "spec": spec})


def owners(it: Lab) -> dict[str, str]:
    """Blocks and the nodes that have claimed them."""
    return {str(b.cidr): b.node for b in DirectoryStore(it.datastore).list("IPBlock") if isinstance(b, IPBlock)}


def next_pod(turn: int, node: LabNode) -> None:
    def given() -> bool:
        try:
            node.add_pod(f"{node.name}-{turn}")
        except RunnerError as error:
            if error.code != Code.TRY_AGAIN:  # as a runtime does
                raise
            return False
        return True

    eventually(given, 90)


def delete_pods(node: LabNode) -> None:
    for pod in tuple(node.pods.values()):
        node.delete_pod(pod)


@pytest.mark.timeout(400)
def test_of_fifty_agents_no_two_give_one_address_and_blocks_go_back() -> None:
    exclude = ["172.18.8.64/28", "172.18.9.7"]
    part = {"start": "172.18.8.10", "end": "172.18.9.250", "exclude": exclude, "gateway": GATEWAY}
    with pooled(50, cidr="172.18.8.0/23", blockSize=30, **part) as it:
        for turn in range(5):  # a block has four, so each node claims another one
            it.each(functools.partial(next_pod, turn))
        pods = [pod for node in it.nodes for pod in node.pods.values()]
        addresses = [pod.address for pod in pods]
        assert len(addresses) == len(set(addresses)) == 250
        numbers = [int(a.split(".")[2]) * 256 + int(a.split(".")[3]) for a in addresses]
        assert min(numbers) >= 8 * 256 + 10
        assert max(numbers) <= 9 * 256 + 250
        assert not [n for n in numbers if 8 * 256 + 64 <= n < 8 * 256 + 80 or n == 9 * 256 + 7]
        assert {pod.result["ips"][0]["gateway"] for pod in pods} == {GATEWAY}
        assert len(owners(it)) >= 100
        assert [node.problems() for node in it.nodes] == [[]] * 50
        it.each(delete_pods)
        eventually(lambda: sorted(owners(it).values()) == sorted(node.name for node in it.nodes), 90, 0.5)


def test_a_block_that_is_empty_goes_back_and_another_node_takes_it() -> None:
    with pooled(2, cidr="172.18.9.0/28", blockSize=30) as it:
        one, two = it.nodes
        pods = [one.add_pod(f"p{n}") for n in range(12)]  # three blocks of four
        assert sorted(owners(it).values()) == ["node1", "node1", "node1", "node2"]
        for n in range(4):
            two.add_pod(f"q{n}")
        with pytest.raises(RunnerError, match=r"\(4 in all\), and no block is left in lan"):
            two.add_pod("late")
        full = "(4 in all), and no block is left in lan"
        eventually(lambda: full in str(two.problems()))
        for pod in pods[4:8]:
            one.delete_pod(pod)
        eventually(lambda: two.problems() == [])  # the block is free, or two's already
        late = two.add_pod("late")
        assert late.address in {pod.address for pod in pods[4:8]}
        assert sorted(owners(it).values()) == ["node1", "node1", "node2", "node2"]
        assert [reach for reach in matrix.measure(*matrix.ends(it)) if reach.ms is None] == []


def test_blocks_outlive_an_agent_that_is_killed_while_they_go_back() -> None:
    with pooled(1, cidr="172.18.9.0/27", blockSize=30) as it:
        (node,) = it.nodes
        pods = [node.add_pod(f"p{n}") for n in range(16)]
        for pod in pods[1:]:
            node.delete_pod(pod)
        eventually(lambda: len(owners(it)) < 4)
        node.stop_agent(signal.SIGKILL)
        node.start_agent(*QUICK)
        eventually(lambda: len(owners(it)) == 1)
        assert node.add_pod("again").address != pods[0].address
        assert [reach for reach in matrix.measure(*matrix.ends(it)) if reach.ms is None] == []


def test_blocks_of_a_node_that_is_gone_are_taken_by_who_needs_them() -> None:
    with pooled(2, cidr="172.18.9.0/29", blockSize=30) as it:
        one, two = it.nodes
        for n in range(4):
            one.add_pod(f"p{n}")
        two.stop_agent(signal.SIGKILL)
        with pytest.raises(RunnerError, match="no block is left in lan"):
            one.add_pod("late")
        it.delete_node(two)
        eventually(lambda: added(one, "late"))
        assert len(owners(it)) == 2
        assert set(owners(it).values()) == {"node1"}


def added(node: LabNode, name: str) -> bool:
    try:
        node.add_pod(name)
    except RunnerError:
        return False
    return True


def test_an_address_that_a_stranger_has_is_told_and_not_given() -> None:
    with pooled(1, cidr="172.18.9.0/29", blockSize=29) as it:
        (node,) = it.nodes
        it.outside.exec("ip", "address", "add", "172.18.9.0/16", "dev", "eth0")
        assert node.add_pod("a").address == "172.18.9.1"
        told = f"172.18.9.0 is of this node's block, but {mac_of(it.outside)} answers for it"
        eventually(lambda: told in str(node.problems()))
        with pytest.raises(RunnerError, match=f"172.18.9.0 is in use by {mac_of(it.outside)}"):
            node.add_pod("b", args="IP=172.18.9.0")
        # what is excluded later is not given any more, though the block has it
        put_pool(it, cidr="172.18.9.0/29", blockSize=29, exclude=["172.18.9.0/30"])
        eventually(lambda: node.ask()["networks"][0]["addresses"]["ipv4"]["free"] == 4)
        assert node.add_pod("c").address == "172.18.9.4"


def test_a_switch_that_drops_unknown_macs_is_told() -> None:
    with pooled(2, cidr="172.18.9.0/27", blockSize=30, gateway=GATEWAY) as it:
        one, two = it.nodes
        port = one.space.name
        it.switch.exec("bridge", "fdb", "replace", mac_of(one.space), "dev", port, "master", "static")
        it.switch.exec("bridge", "link", "set", "dev", port, "learning", "off", "locked", "on")
        it.switch.exec("ip", "link", "set", "dev", port, "type", "bridge_slave", "fdb_flush")
        one.stop_agent()
        one.start_agent(*QUICK)
        one.wait_ready()
        told = f"{GATEWAY} answers its own MAC but not 0a:58:ac:12:00:02: something between drops MACs"
        eventually(lambda: told in str(one.problems()))
        assert one.add_pod("a").address.startswith("172.18.9."), "no ADD fails by it"
        assert two.problems() == []


def mac_of(machine: Space) -> str:
    return str(json.loads(machine.exec("ip", "-j", "link", "show", "eth0").stdout)[0]["address"])
