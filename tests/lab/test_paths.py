"""Every path that a packet may take, in every mode: pods, nodes, the outside, Services, large packets, errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import matrix, talk
from tests.lab.lab import Lab, LabNode, Pod
from tests.lab.paths import Way
from tests.lab.segment import GATEWAY, OUTSIDE
from tests.lab.space import Space
from tests.lab.talk import HOST_PORT, NODE_PORT, SERVICE, SERVICE_PORT, TARGET, Servers, ask

KNOWN = "10.244.", "172.18."  # pods and nodes: what a server sees that was reached at all

Served = tuple[Lab, dict[str, Pod]]


@pytest.fixture
def served(three: Lab) -> Iterator[Served]:
    """Pods `near` and `backend` on node1, `far` on node2; a service whose backend is the one."""
    one, two, _ = three.nodes
    pods = {"backend": one.add_pod("backend"), "near": one.add_pod("near"), "far": two.add_pod("far")}
    with Servers() as servers:
        servers.start(pods["backend"])
        talk.serve(three.nodes, pods["backend"])
        yield three, pods


def lost(seen: dict[str, str]) -> dict[str, str]:
    """Return those of whom the server saw nothing that is ours."""
    return {who: answer for who, answer in seen.items() if not answer.startswith(KNOWN)}


def who(pod: Pod) -> dict[str, str]:
    """Return what the words of a Way mean for a pod."""
    gateway = f"{pod.node.block.rpartition('.')[0]}.1"
    return {pod.address: "pod", pod.node.address: "node", gateway: "gateway"}


@contextmanager
def rp_filter(it: Lab, strict: int) -> Iterator[None]:
    """Nodes that are strict, or not, about the device that a packet comes by."""
    switch = "net.ipv4.conf.all.rp_filter"
    before = [node.space.exec("sysctl", "-n", switch).stdout.strip() for node in it.nodes]
    it.each(lambda node: node.space.exec("sysctl", "-qw", f"{switch}={strict}"))
    yield
    for node, value in zip(it.nodes, before, strict=True):
        node.space.exec("sysctl", "-qw", f"{switch}={value}")


def test_every_pair_reaches_every_other(three: Lab) -> None:
    three.each(lambda node: [node.add_pod(f"{node.name}-{n}") for n in range(2)])
    reaches = matrix.measure(*matrix.ends(three))
    assert len(reaches) == 9 * 10
    assert [reach for reach in reaches if reach.ms is None] == []
    assert three.each(LabNode.problems) == [[], [], []]


def test_who_is_seen_as_whom(three: Lab, way: Way) -> None:
    one, two, _ = three.nodes
    a, b, c = one.add_pod("a"), two.add_pod("b"), one.add_pod("c")
    with Servers() as servers:
        for where in (a, b, c, one.space, two.space, three.outside):
            servers.start(where)
        seen = {
            "pod at a pod": ask(a, "tcp", c.address, TARGET),
            "pod at a pod of another node": ask(a, "tcp", b.address, TARGET),
            "pod at its node": ask(a, "tcp", one.address, TARGET),
            "pod at another node": ask(a, "tcp", two.address, TARGET),
            "pod outside": ask(a, "tcp", OUTSIDE, TARGET),
            "node at a pod of another node": ask(one.space, "tcp", b.address, TARGET),
        }
        near = {ask(one.space, "tcp", pod.address, TARGET) for pod in (a, c)}
        outside = ask(three.outside, "tcp", a.address, TARGET)
    words = who(a)
    assert {what: words.get(answer, answer) for what, answer in seen.items()} == {
        "pod at a pod": "pod",
        "pod at a pod of another node": "pod",
        "pod at its node": "pod",
        "pod at another node": way.pod_at_node,
        "pod outside": way.pod_outside,
        "node at a pod of another node": way.node_at_far_pod,
    }
    assert {words.get(answer, answer) for answer in near} <= way.node_at_pod
    assert outside == ("172.18.255.254" if way.reached else "OSError")


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_service_from_everywhere(served: Served, way: Way, kind: str) -> None:
    it, pods = served
    one, two, _ = it.nodes
    clients: dict[str, Pod | Space] = {**pods, "its node": one.space, "another node": two.space}
    seen = {name: ask(where, kind, SERVICE, SERVICE_PORT) for name, where in clients.items()}
    assert lost(seen) == {}
    for name in ("near", "far"):
        assert who(pods[name])[seen[name]] == way.service
    if way.service == "node":
        nodes = {"near": one, "backend": one, "its node": one, "far": two, "another node": two}
        assert seen == {name: node.address for name, node in nodes.items()}


@pytest.mark.parametrize("strict", [0, 1])
def test_node_ports_and_host_ports(served: Served, way: Way, strict: int) -> None:
    it, pods = served
    one, two, three = it.nodes
    seen = {}
    clients: dict[str, Pod | Space] = {**pods, "outside": it.outside, "node3": three.space}
    with rp_filter(it, strict):
        for name, where in clients.items():
            for node in (one, two):
                seen[f"{name} by the node port of {node.name}"] = ask(where, "tcp", node.address, NODE_PORT)
            if name != "backend":
                seen[f"{name} by the host port"] = ask(where, "tcp", one.address, HOST_PORT)
    assert lost(seen) == {}
    assert who(pods["near"])[seen["near by the host port"]] == way.service


def test_the_same_ports_by_a_service_and_then_directly(served: Served, way: Way) -> None:
    _, pods = served
    backend = pods["backend"].address
    for name in ("near", "far"):
        client, words = pods[name], who(pods[name])
        for kind in ("tcp", "udp"):
            assert words[ask(client, kind, SERVICE, SERVICE_PORT, source=40000)] == way.service
        assert ask(client, "tcp", backend, TARGET, source=40000) == client.address
        assert ask(client, "udp", backend, TARGET, source=40001) == client.address
        for _ in range(2):
            assert words[ask(client, "udp", SERVICE, SERVICE_PORT, source=40001)] == way.service


@pytest.mark.parametrize("size", [1400, 1472, 4000, 60000])
def test_datagrams_in_pieces(served: Served, size: int) -> None:
    it, pods = served
    with Servers() as servers:
        servers.start(it.outside)
        seen = {
            "near": ask(pods["near"], "udp", pods["backend"].address, TARGET, size=size),
            "far": ask(pods["far"], "udp", pods["backend"].address, TARGET, size=size),
            "near, service": ask(pods["near"], "udp", SERVICE, SERVICE_PORT, size=size),
            "far, service": ask(pods["far"], "udp", SERVICE, SERVICE_PORT, size=size),
            "its node": ask(it.nodes[0].space, "udp", pods["backend"].address, TARGET, size=size),
            "another node": ask(it.nodes[1].space, "udp", pods["backend"].address, TARGET, size=size),
            "to the outside": ask(pods["far"], "udp", GATEWAY, TARGET, size=size),
        }
    assert lost(seen) == {}


def test_errors_come_back_as_from_whom_was_asked(served: Served) -> None:
    it, pods = served
    for node in it.nodes:
        rule = f"add rule ip kube pre ip daddr {SERVICE} udp dport 81 dnat to {pods['backend'].address}:81"
        node.space.exec("nft", rule)
    for client in (pods["near"], pods["far"]):
        assert ask(client, "udp", pods["backend"].address, 81) == "ConnectionRefusedError"
        assert ask(client, "tcp", pods["backend"].address, 81) == "ConnectionRefusedError"
        assert ask(client, "udp", SERVICE, 81) == "ConnectionRefusedError"
