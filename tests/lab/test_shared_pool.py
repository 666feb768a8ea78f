"""A routed network and one on the nodes' own subnet, each with IPPools: a block is of one of them only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.model.cluster import IPBlock
from tests.lab.lab import Lab, LabNode, Pod, lab
from tests.lab.paths import lacks
from tests.lab.runner import Conf, RunnerError
from tests.lab.segment import PREFIX, UNDERLAY
from tests.lab.state import difference, net_state
from tests.lab.talk import TARGET, Servers, ask
from tests.support import eventually

NETNS = "/run/netns/pod"
LAN = {"cidr": f"{UNDERLAY}.200.128/25", "blockSize": 28}
MODES = ("host-gw", "vxlan", "ipip")


def pool(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec}


def lan() -> Conf:
    """The macvlan network as a meta plugin has it: its conf is on no node's disk."""
    subnet = f"{UNDERLAY}.0.0/{PREFIX}"
    entry = {"type": "testcni", "mode": "macvlan", "subnet": subnet}
    return Conf("lan", "1.1.0", (entry,), Path("an object of the cluster"))


@contextmanager
def both(mode: str, *, pod_cidrs: bool) -> Iterator[Lab]:
    """Two nodes with a network of this mode, which names no subnet, and a pool on their own subnet."""
    if why := lacks("macvlan"):
        pytest.skip(why)
    conf = {"cniVersion": "1.1.0", "name": "testcni", "type": "testcni", "mode": mode}
    with lab(2, conf=conf, pod_cidrs=pod_cidrs, agents=False) as it:
        it.put("lan", pool("lan", **LAN))
        it.each(lambda node: node.start_agent("--block-idle", "1", "--cool-down", "0", "--resync", "2"))
        it.each(lambda node: node.wait_ready(90))
        yield it


WRONG = {
    "the nodes' own subnet": (
        f"{UNDERLAY}.9.0/24",
        "is for networks with a parent interface only, as it lies in 172.18.0.2/16 of eth0",
    ),
    "loopback": ("127.0.0.0/8", "it overlaps 127.0.0.0/8, which is kept for loopback (RFC 1122)"),
    "multicast": ("224.0.0.0/8", "it overlaps 224.0.0.0/4, which is kept for multicast (RFC 5771)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_pool_of_what_is_not_for_pods_is_reported_and_not_claimed(what: str) -> None:
    cidr, why = WRONG[what]
    conf = {"cniVersion": "1.1.0", "name": "testcni", "type": "testcni", "mode": "vxlan"}
    with lab(1, conf=conf, pod_cidrs=False, agents=False) as it:
        (node,) = it.nodes
        (it.datastore / "pool.yaml").unlink()
        it.put("wrong", pool("wrong", cidr=cidr, blockSize=26))
        node.start_agent()
        eventually(lambda: [p for p in node.problems() if why in p])
        with pytest.raises(RunnerError, match=re.escape(why)):
            node.add_pod("early")
        assert blocks(it) == {}
        it.put("right", pool("right", cidr="10.250.0.0/16", blockSize=24))
        node.wait_ready()
        assert node.add_pod("later").address.startswith("10.250.")
        assert {name for name, _shared in blocks(it).values()} == {"right"}
        still = [p for p in node.problems() if why in p]
        assert bool(still) == (what != "the nodes' own subnet"), "that one is right for macvlan"


ROUTES: dict[str, Callable[[LabNode], object]] = {
    "host-gw": lambda node: node.ask()["routes"],
    "ipip": lambda node: node.bird_routes(),
}
"""The routes to each peer of a node that knows the peer's block, by the modes that have routes to peers."""


def blocks(it: Lab) -> dict[str, tuple[str, bool]]:
    """The pool of each claimed block, and whether it is shared."""
    found = DirectoryStore(it.datastore).list("IPBlock")
    return {str(b.cidr): (b.pool, b.shared) for b in found if isinstance(b, IPBlock)}


def interfaces(node: LabNode) -> tuple[Pod, Pod]:
    """A pod as it is known by either network."""
    node.add_netns("pod")
    first = node.runner.add(node.conf(), "pod", NETNS)
    second = node.runner.add(lan(), "pod", NETNS, "net1")
    return Pod(node, "pod", first), Pod(node, "pod", second)


@pytest.mark.parametrize("pod_cidrs", [True, False], ids=["podcidrs", "pools"])
@pytest.mark.parametrize("mode", MODES)
def test_a_block_is_of_the_network_that_claimed_it(mode: str, pod_cidrs: bool) -> None:
    with both(mode, pod_cidrs=pod_cidrs) as it, Servers() as servers:
        if mode in ROUTES:  # a node is ready before it knows the way to the other's block
            eventually(lambda: all(ROUTES[mode](node) for node in it.nodes))
        before = it.each(net_state)
        assert not [name for name, _shared in blocks(it).values() if name == "lan"]
        pods = {node: interfaces(node) for node in it.nodes}
        here, there = pods.values()
        servers.start(there[0])
        for mine, other in zip(here, there, strict=True):
            eventually(lambda a=mine, b=other: ask(here[0], "tcp", b.address, TARGET) == a.address)
        eventually(lambda: [node.problems() for node in it.nodes] == [[], []])
        claimed = blocks(it)
        assert sorted(claimed.values()) == [("lan", True)] * 2 + ([] if pod_cidrs else [("pods", False)] * 2)
        shared = [cidr for cidr, (name, _shared) in claimed.items() if name == "lan"]
        for node in it.nodes:
            routed = json.loads(node.space.exec("ip", "-j", "route", "show", "table", "all").stdout)
            assert not {route["dst"] for route in routed} & {*shared, LAN["cidr"]}, "the parent leads there"
            by_name = {network["name"]: network for network in node.ask()["networks"]}
            assert set(by_name["testcni"]["blocks"]).isdisjoint(shared)
            assert set(by_name["lan"]["blocks"]) <= set(shared)
            links = {link["ifname"] for link in json.loads(node.space.exec("ip", "-j", "link").stdout)}
            device = {"host-gw": "testcni0", "vxlan": "testcni-vxlan", "ipip": "testcni-ipip"}[mode]
            assert [by_name[name]["device"] for name in ("testcni", "lan")] == [device, "eth0"]
            assert {device, "eth0"} <= links
        for node, (first, _second) in pods.items():
            node.runner.delete(lan(), "pod", NETNS, "net1")
            node.runner.delete(node.conf(), "pod", NETNS)
            node.space.exec("ip", "netns", "delete", "pod")
            assert first.address
        eventually(lambda: "lan" not in {name for name, _shared in blocks(it).values()})
        assert [node.problems() for node in it.nodes] == [[], []]
        left = (difference(state, net_state(node)) for state, node in zip(before, it.nodes, strict=True))
        assert [line for lines in left for line in lines if " files: " not in line] == []
