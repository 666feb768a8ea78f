"""macvlan and ipvlan in the lab: every path a packet may take, and nothing that stays."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import matrix, talk
from tests.lab.lab import VXLAN_CONF, Lab, LabNode, OwnConf, Pod, lab, shared_conf
from tests.lab.runner import Conf, RunnerError, load
from tests.lab.segment import OUTSIDE
from tests.lab.space import Space
from tests.lab.state import difference, net_state
from tests.lab.talk import HOST_PORT, NODE_PORT, SERVICE, SERVICE_PORT, TARGET, Servers, ask, eventually

WAYS = [("macvlan", "bridge"), ("ipvlan", "l2"), ("ipvlan", "l3s"), ("ipvlan", "l3")]
ON_THE_SUBNET = WAYS[:3]
OWN_SUBNET = json.dumps({
    "cniVersion": "1.0.0", "name": "testcni", "type": "testcni", "mode": "ipvlan", "linkMode": "l3",
    "subnet": "10.244.0.0/16",
})  # fmt: skip


@functools.cache
def lacks(kind: str) -> str:
    """Why this kernel can't do it; empty: it can."""
    script = f"ip link add one type veth peer name two && ip link add three link one type {kind}"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=False)
    return f"this kernel has no {kind}: {done.stderr.strip()}" if done.returncode else ""


def conf_for(kind: str, mode: str, **more: Any) -> str | OwnConf:
    if why := lacks(kind):
        pytest.skip(why)
    return OWN_SUBNET if mode == "l3" else shared_conf(kind, linkMode=mode, **more)


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    kind, mode = request.param
    return kind, mode


@pytest.fixture(scope="module")
def shared(way: tuple[str, str]) -> Iterator[Lab]:
    """Three nodes for many tests, as nodes take longer than most of them."""
    with lab(3, conf=conf_for(*way)) as it:
        yield it


@pytest.fixture
def three(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.tidy()


@pytest.fixture
def served(three: Lab) -> Iterator[tuple[Lab, dict[str, Pod]]]:
    """Pods `near` and `backend` on node1, `far` on node2; a service whose backend is the one."""
    one, two, _ = three.nodes
    pods = {"backend": one.add_pod("backend"), "near": one.add_pod("near"), "far": two.add_pod("far")}
    with Servers() as servers:
        servers.start(pods["backend"])
        talk.serve(three.nodes, pods["backend"])
        yield three, pods


def test_every_pair_reaches_every_other(three: Lab) -> None:
    three.each(lambda node: [node.add_pod(f"{node.name}-{n}") for n in range(2)])
    reaches = matrix.measure(*matrix.ends(three))
    assert len(reaches) == 9 * 10
    assert [reach for reach in reaches if reach.ms is None] == []
    assert [node.problems() for node in three.nodes] == [[], [], []]


def test_who_is_seen_as_whom(three: Lab, way: tuple[str, str]) -> None:
    one, two, _ = three.nodes
    a, b, c = one.add_pod("a"), two.add_pod("b"), one.add_pod("c")
    with Servers() as servers:
        for where in (a, b, c, one.space, two.space, three.outside):
            servers.start(where)
        seen = {
            "pod to pod": ask(a, "tcp", c.address, TARGET),
            "pod to pod of another node": ask(a, "tcp", b.address, TARGET),
            "pod to its node": ask(a, "tcp", one.address, TARGET),
            "pod to another node": ask(a, "tcp", two.address, TARGET),
            "pod to the outside": ask(a, "tcp", OUTSIDE, TARGET),
            "node to its pod": ask(one.space, "tcp", a.address, TARGET),
            "node to another node's pod": ask(one.space, "tcp", b.address, TARGET),
        }
        outside = ask(three.outside, "tcp", a.address, TARGET)
    assert seen == {
        "pod to pod": a.address,
        "pod to pod of another node": a.address,
        "pod to its node": a.address,
        "pod to another node": a.address,
        "pod to the outside": one.address if way[1] == "l3" else a.address,
        "node to its pod": one.address,
        "node to another node's pod": one.address,
    }
    # pods of l3 are on a subnet that the outside has no route to
    assert outside == ("OSError" if way[1] == "l3" else "172.18.255.254")


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
    assert seen == {
        "near": one.address,
        "far": two.address,
        "itself": one.address,
        "its node": one.address,
        "other node": two.address,
    }


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


@pytest.mark.parametrize("size", [1472, 4000, 60000])
def test_datagrams_in_pieces(served: tuple[Lab, dict[str, Pod]], size: int) -> None:
    it, pods = served
    seen = {
        "near": ask(pods["near"], "udp", pods["backend"].address, TARGET, size=size),
        "far": ask(pods["far"], "udp", pods["backend"].address, TARGET, size=size),
        "far, service": ask(pods["far"], "udp", SERVICE, SERVICE_PORT, size=size),
        "its node": ask(it.nodes[0].space, "udp", pods["backend"].address, TARGET, size=size),
    }
    assert not [who for who, answer in seen.items() if not answer.startswith(("10.244.", "172.18."))], seen


def links_in(node: LabNode, name: str) -> list[str]:
    """The links of a namespace; some kernels put tunnels into each."""
    return [link["ifname"] for link in json.loads(node.space.exec("ip", "-j", "-n", name, "link").stdout)]


def proxied(node: LabNode) -> str:
    """The addresses that the node answers ARP for."""
    return node.space.exec("ip", "neigh", "show", "proxy").stdout


def test_a_del_leaves_nothing_neither_here_nor_in_the_pod(three: Lab) -> None:
    node = three.nodes[0]
    node.add_netns("c1")
    empty, before, proxies = links_in(node, "c1"), net_state(node), proxied(node)
    for _ in range(2):
        node.runner.add(node.conf(), "c1", "/run/netns/c1")
        assert len(links_in(node, "c1")) == len(empty) + 2
        node.runner.delete(node.conf(), "c1", "/run/netns/c1")
        assert links_in(node, "c1") == empty
    assert difference(before, net_state(node)) == []
    assert proxied(node) == proxies


def test_kill_9_amid_adds_then_gc_leaves_nothing(three: Lab) -> None:
    node = three.nodes[0]
    conf = node.conf()
    conf = Conf(conf.name, "1.1.0", conf.plugins, conf.path)
    names = [f"p{number}" for number in range(60)]
    node.space.batch([f"netns add {name}" for name in names])
    empty, before, proxies = links_in(node, names[0]), net_state(node), proxied(node)
    done: list[str] = []
    failed: list[str] = []
    work = iter(names)
    lock = threading.Lock()

    def adds() -> None:
        while True:
            with lock:
                name = next(work, None)
            if name is None:
                return
            try:
                node.runner.add(conf, name, f"/run/netns/{name}")
                done.append(name)
            except RunnerError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=adds) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(done) > 15, 30)
    node.stop_agent(signal.SIGKILL)
    node.start_agent()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len({a.result["ips"][0]["address"] for a in node.runner.cache.all(conf.name)}) == len(names)
    node.runner.collect(conf, [])
    assert difference(before, net_state(node)) == []
    assert [name for name in names if links_in(node, name) != empty] == []
    assert proxied(node) == proxies


@pytest.mark.parametrize("way", ON_THE_SUBNET, ids="-".join)
def test_a_new_pod_is_announced_to_who_knew_another(way: tuple[str, str]) -> None:
    with lab(1, conf=conf_for(*way)) as it:
        address = "172.18.2.10"
        it.outside.exec(
            "ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale"
        )
        pod = it.nodes[0].add_pod("a")
        assert pod.address == address

        def known() -> Any:
            (entry,) = json.loads(it.outside.exec("ip", "-j", "neigh", "show", address).stdout)
            return entry["lladdr"]

        node = json.loads(it.nodes[0].space.exec("ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
        expected = node if way[0] == "ipvlan" else "0a:58:ac:12:02:0a"
        eventually(lambda: known() == expected, 2)


@pytest.mark.parametrize("way", ON_THE_SUBNET, ids="-".join)
def test_pods_of_another_mode_on_the_same_nodes(way: tuple[str, str]) -> None:
    conf = conf_for(*way, viaHost=["10.96.0.0/12", "10.244.0.0/16"])
    with lab(2, conf=conf) as it, Servers() as servers:
        pods = {}
        for node in it.nodes:
            other = json.dumps({**json.loads(VXLAN_CONF), "name": "overlay"})
            node.path("/etc/cni/net.d/20-overlay.conf").write_text(other)
            overlay = load(node.path("/etc/cni/net.d"), "overlay")
            pods[f"l2 {node.name}"] = node.add_pod(f"l2-{node.name}")
            node.add_netns("o")
            pods[f"vxlan {node.name}"] = Pod(node, "o", node.runner.add(overlay, "o", "/run/netns/o"))
        for pod in pods.values():
            servers.start(pod)
        seen = {
            (one, other): ask(pods[one], "tcp", pods[other].address, TARGET)
            for one in pods
            for other in pods
            if one[:2] != other[:2]
        }
    assert len(seen) == 8
    assert not [pair for pair, answer in seen.items() if not answer.startswith("1")], seen


def test_nodes_claim_blocks_of_a_pool_on_their_subnet() -> None:
    if why := lacks("macvlan"):
        pytest.skip(why)
    conf = {
        "cniVersion": "1.0.0",
        "name": "testcni",
        "type": "testcni",
        "mode": "macvlan",
        "subnet": "172.18.0.0/16",
    }
    with lab(3, conf=conf, pod_cidrs=False, agents=False) as it:
        it.put("lan", {
            "apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": "lan"},
            "spec": {"cidr": "172.18.9.0/27", "blockSize": 29},
        })  # fmt: skip
        it.each(lambda node: node.start_agent())
        it.each(LabNode.wait_ready)
        it.each(lambda node: node.add_pod(f"{node.name}-0"))
        for number in range(1, 9):
            it.nodes[0].add_pod(f"node1-{number}")  # one more than a block has
        addresses = {pod.address for node in it.nodes for pod in node.pods.values()}
        assert len(addresses) == 11
        assert {address.rpartition(".")[0] for address in addresses} == {"172.18.9"}
        assert len(list(it.datastore.glob("ipblock-172-18-9-*.yaml"))) == 4
        assert [reach for reach in matrix.measure(*matrix.ends(it)) if reach.ms is None] == []


def test_without_routes_of_the_netconf_all_but_the_subnet_goes_through_the_node() -> None:
    with lab(1, conf=conf_for("macvlan", "bridge", viaHost=["0.0.0.0/0"])) as it, Servers() as servers:
        pod = it.nodes[0].add_pod("a")
        servers.start(it.outside)
        assert ask(pod, "tcp", OUTSIDE, TARGET) == it.nodes[0].address
