"""The mode vxlan in the lab: every path a packet may take, and what must not pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import matrix, talk
from tests.lab.lab import VXLAN_CONF, Lab, Pod, lab
from tests.lab.segment import GATEWAY, OUTSIDE
from tests.lab.space import Space
from tests.lab.talk import HOST_PORT, NODE_PORT, SERVICE, SERVICE_PORT, TARGET, Servers, ask, counters


@pytest.fixture
def three() -> Iterator[Lab]:
    with lab(3, conf=VXLAN_CONF) as it:
        yield it


@pytest.fixture
def served(three: Lab) -> Iterator[tuple[Lab, dict[str, Pod]]]:
    """Pods `near` and `backend` on node1, `far` on node2; a service whose backend is the one."""
    one, two, _ = three.nodes
    pods = {"backend": one.add_pod("backend"), "near": one.add_pod("near"), "far": two.add_pod("far")}
    with Servers() as servers:
        servers.start(pods["backend"])
        talk.serve(three.nodes, pods["backend"])
        yield three, pods


def test_every_pair_reaches_every_other_and_nothing_is_dropped(three: Lab) -> None:
    three.each(lambda node: [node.add_pod(f"{node.name}-{n}") for n in range(2)])
    reaches = matrix.measure(*matrix.ends(three))
    assert len(reaches) == 9 * 10
    assert [reach for reach in reaches if reach.ms is None] == []
    for node in three.nodes:
        counted = counters(node)
        assert counted["forwarded_local"] > 0
        assert counted["forwarded_remote"] > 0
        assert counted["from_stack"] > 0
        drops = {name: number for name, number in counted.items() if name.startswith("drop") and number}
        assert drops.keys() <= {"drop_not_ip"}, "IPv6 of pods that look for routers"
        told = node.ask()["ebpf"]["forwarded_local"]
        assert told["packets"] >= counted["forwarded_local"]
        assert told["bytes"] > told["packets"] * 14


def test_who_is_seen_as_whom(three: Lab) -> None:
    one, two, _ = three.nodes
    a, b, c = one.add_pod("a"), two.add_pod("b"), one.add_pod("c")
    with Servers() as servers:
        for where in (b, c, one.space, two.space, three.outside):
            servers.start(where)
        seen = {
            "pod to pod": ask(a, "tcp", c.address, TARGET),
            "pod to pod of another node": ask(a, "tcp", b.address, TARGET),
            "pod to its node": ask(a, "tcp", one.address, TARGET),
            "pod to another node": ask(a, "tcp", two.address, TARGET),
            "pod to the outside": ask(a, "tcp", OUTSIDE, TARGET),
            "node to its pod": ask(one.space, "tcp", c.address, TARGET),
            "node to another node's pod": ask(one.space, "tcp", b.address, TARGET),
        }
    assert seen == {
        "pod to pod": a.address,
        "pod to pod of another node": a.address,
        "pod to its node": a.address,
        "pod to another node": one.address,
        "pod to the outside": one.address,
        "node to its pod": seen["node to its pod"],
        "node to another node's pod": "10.244.1.1",
    }
    assert seen["node to its pod"] in (one.address, "10.244.1.1")


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_service_from_everywhere(served: tuple[Lab, dict[str, Pod]], kind: str) -> None:
    it, pods = served
    one, two, _ = it.nodes
    seen = {
        "near": ask(pods["near"], kind, SERVICE, SERVICE_PORT),
        "far": ask(pods["far"], kind, SERVICE, SERVICE_PORT),
        "itself": ask(pods["backend"], kind, SERVICE, SERVICE_PORT),
        "its node": ask(one.space, kind, SERVICE, SERVICE_PORT),
        "other node": ask(two.space, kind, SERVICE, SERVICE_PORT),
    }
    assert seen["near"] == pods["near"].address
    assert seen["far"] == pods["far"].address
    assert not [who for who, answer in seen.items() if not answer.startswith(("10.244.", "172.18."))], seen


def test_node_ports_and_host_ports(served: tuple[Lab, dict[str, Pod]]) -> None:
    it, pods = served
    one, two, three = it.nodes
    seen = {}
    clients: dict[str, Pod | Space] = {**pods, "outside": it.outside, "node3": three.space}
    for name, where in clients.items():
        for node in (one, two):
            seen[f"{name} by the node port of {node.name}"] = ask(where, "tcp", node.address, NODE_PORT)
        if name != "backend":
            seen[f"{name} by the host port"] = ask(where, "tcp", one.address, HOST_PORT)
    assert not [who for who, answer in seen.items() if not answer.startswith(("10.244.", "172.18."))], seen
    assert seen["near by the host port"] == pods["near"].address


def test_the_same_ports_by_a_service_and_then_directly(served: tuple[Lab, dict[str, Pod]]) -> None:
    _, pods = served
    backend = pods["backend"].address
    for client in (pods["near"], pods["far"]):
        for kind in ("tcp", "udp"):
            assert ask(client, kind, SERVICE, SERVICE_PORT, source=40000) == client.address
        assert ask(client, "tcp", backend, TARGET, source=40000) == client.address
        assert ask(client, "udp", backend, TARGET, source=40001) == client.address
        for _ in range(2):
            assert ask(client, "udp", SERVICE, SERVICE_PORT, source=40001) == client.address


@pytest.mark.parametrize("size", [1400, 1472, 4000, 60000])
def test_datagrams_in_pieces(served: tuple[Lab, dict[str, Pod]], size: int) -> None:
    it, pods = served
    with Servers() as servers:
        servers.start(it.outside)
        seen = {
            "near": ask(pods["near"], "udp", pods["backend"].address, TARGET, size=size),
            "far": ask(pods["far"], "udp", pods["backend"].address, TARGET, size=size),
            "near, service": ask(pods["near"], "udp", SERVICE, SERVICE_PORT, size=size),
            "far, service": ask(pods["far"], "udp", SERVICE, SERVICE_PORT, size=size),
            "far, node": ask(it.nodes[1].space, "udp", pods["backend"].address, TARGET, size=size),
            "outside": ask(pods["far"], "udp", GATEWAY, TARGET, size=size),
        }
    assert not [who for who, answer in seen.items() if not answer.startswith(("10.244.", "172.18."))], seen


def test_errors_come_back_as_from_whom_was_asked(served: tuple[Lab, dict[str, Pod]]) -> None:
    it, pods = served
    for node in it.nodes:
        rule = f"add rule ip kube pre ip daddr {SERVICE} udp dport 81 dnat to {pods['backend'].address}:81"
        node.space.exec("nft", rule)
    for client in (pods["near"], pods["far"]):
        assert ask(client, "udp", pods["backend"].address, 81) == "ConnectionRefusedError"
        assert ask(client, "tcp", pods["backend"].address, 81) == "ConnectionRefusedError"
        assert ask(client, "udp", SERVICE, 81) == "ConnectionRefusedError"
