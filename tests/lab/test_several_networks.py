"""Several networks on the same nodes at once: a pod with an interface of each, as Multus makes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import gotools
from tests.lab.lab import Lab, LabNode, Pod, lab
from tests.lab.paths import lacks
from tests.lab.runner import Conf, RunnerError, load
from tests.lab.segment import OUTSIDE, PREFIX, UNDERLAY
from tests.lab.state import difference, net_state
from tests.lab.talk import TARGET, Servers, ask
from tests.support import eventually

HERE = Path(__file__).parent
CONFS = "/etc/cni/net.d"
NETNS = "/run/netns/pod"
OF_THE_CALLERS = {"+ files: /var/lib/cni/results", "+ files: /opt/cni/bin/delegating"}


def netconf(name: str, **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": name, "type": "testcni", **more}


PRIMARY = netconf("testcni", mode="vxlan", subnet="10.244.0.0/16")


def lan(node: LabNode) -> dict[str, Any]:
    """The second network: on the nodes' own subnet, with a range of each node's own."""
    first = f"{UNDERLAY}.{node.number + 1}"
    ipam = {"rangeStart": f"{first}.10", "rangeEnd": f"{first}.250"}
    return netconf("lan", mode="macvlan", subnet=f"{UNDERLAY}.0.0/{PREFIX}", ipam=ipam)


def put(node: LabNode, number: int, conf: dict[str, Any]) -> Conf:
    node.path(f"{CONFS}/{number}-{conf['name']}.conf").write_text(json.dumps(conf))
    return load(node.path(CONFS), conf["name"])


@pytest.fixture
def two() -> Iterator[Lab]:
    """Two nodes, both networks on each."""
    if why := lacks("macvlan"):
        pytest.skip(why)
    with lab(2, conf=PRIMARY) as it:
        for node in it.nodes:
            put(node, 20, lan(node))
            eventually(lambda node=node: succeeds(node, "lan"))
        yield it


def succeeds(node: LabNode, name: str) -> bool:
    try:
        node.runner.status(load(node.path(CONFS), name))
    except RunnerError:
        return False
    return True


class ByCnitool:
    """libcni adds each network by itself."""

    def __init__(self) -> None:
        self._tool = str(gotools.cnitool())

    def run(self, node: LabNode, verb: str, name: str, ifname: str, pod: str) -> dict[str, Any]:
        env = {"NETCONFPATH": CONFS, "CNI_PATH": "/opt/cni/bin", "CNI_IFNAME": ifname}
        out = node.space.exec(self._tool, verb, name, f"/run/netns/{pod}", env=env).stdout
        return dict(json.loads(out)) if verb == "add" else {}

    def add(self, node: LabNode, pod: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.run(node, "add", "testcni", "eth0", pod), self.run(node, "add", "lan", "net1", pod)

    def check(self, node: LabNode, pod: str) -> None:
        self.run(node, "check", "testcni", "eth0", pod)
        self.run(node, "check", "lan", "net1", pod)

    def delete(self, node: LabNode, pod: str) -> None:
        self.run(node, "del", "lan", "net1", pod)
        self.run(node, "del", "testcni", "eth0", pod)


class ByDelegation:
    """One conf, whose plugin calls that of each network."""

    def conf(self, node: LabNode) -> Conf:
        plugin = node.path("/opt/cni/bin/delegating")
        if not plugin.exists():
            plugin.write_bytes((HERE / "delegating.py").read_bytes())
            plugin.chmod(0o755)
        entry = {"type": "delegating", "keep": "/var/lib/delegating", "delegates": [PRIMARY, lan(node)]}
        return Conf("multi", "1.1.0", (entry,), node.path(CONFS))

    def add(self, node: LabNode, pod: str) -> tuple[dict[str, Any], dict[str, Any]]:
        primary = node.runner.add(self.conf(node), pod, f"/run/netns/{pod}")
        kept = node.path(f"/var/lib/delegating/{pod}-1")
        return primary, json.loads(kept.read_text())

    def check(self, node: LabNode, pod: str) -> None:
        node.runner.check(self.conf(node), pod, f"/run/netns/{pod}")

    def delete(self, node: LabNode, pod: str) -> None:
        node.runner.delete(self.conf(node), pod, f"/run/netns/{pod}")


Way = ByCnitool | ByDelegation


@pytest.fixture(params=[ByCnitool, ByDelegation])
def way(request: pytest.FixtureRequest) -> Way:
    try:
        made: Way = request.param()
    except gotools.NoGoError as error:
        pytest.skip(f"cnitool can't be built: {error}")
    return made


def address(result: dict[str, Any]) -> str:
    return str(result["ips"][0]["address"]).partition("/")[0]


def routes(node: LabNode, pod: str) -> dict[str, str]:
    """Interfaces of the pod's routes by destination."""
    listed = json.loads(node.space.exec("ip", "-j", "-n", pod, "route").stdout)
    return {route["dst"]: route["dev"] for route in listed}


def test_a_pod_is_on_both_networks(two: Lab, way: Way) -> None:
    before = two.each(net_state)
    results = {}
    for node in two.nodes:
        node.add_netns("pod")
        results[node] = way.add(node, "pod")
    one, other = two.nodes
    for node, (primary, second) in results.items():
        assert address(primary).startswith(f"10.244.{node.number}.")
        assert address(second) == f"{UNDERLAY}.{node.number + 1}.10"
        assert [i["name"] for i in (primary["interfaces"][-1], second["interfaces"][-1])] == ["eth0", "net1"]
        assert "0.0.0.0/0" not in [route["dst"] for route in second["routes"]]
        by = routes(node, "pod")
        assert by["default"] == "eth0"
        assert "10.96.0.0/12" not in by, "Services are reached by the primary network, as without a second one"
        assert by[f"{UNDERLAY}.0.0/{PREFIX}"] == "net1"
        way.check(node, "pod")
    with Servers() as servers:
        there = Pod(other, "pod", results[other][0])
        here = Pod(one, "pod", results[one][0])
        servers.start(there)
        servers.start(two.outside)
        for result in results[other]:
            mine = results[one][results[other].index(result)]
            assert ask(here, "tcp", address(result), TARGET) == address(mine), "each by its own network"
        assert ask(here, "tcp", OUTSIDE, TARGET) == one.address, "the outside by the primary"
        assert ask(one.space, "tcp", address(results[other][1]), TARGET) == one.address
    for node in two.nodes:
        way.delete(node, "pod")
        node.space.exec("ip", "netns", "delete", "pod")
    kept = [path for node in two.nodes for path in node.path("/var/lib/delegating").glob("*")]
    assert kept == []
    left = [
        line for state, node in zip(before, two.nodes, strict=True) for line in difference(state, net_state(node))
    ]
    assert [line for line in left if line not in OF_THE_CALLERS] == []


def test_each_network_goes_alone(two: Lab) -> None:
    one, other = two.nodes
    primary, second = load(one.path(CONFS)), load(one.path(CONFS), "lan")
    for node in two.nodes:
        node.add_netns("pod")
        node.runner.add(primary, "pod", NETNS)
        node.runner.add(load(node.path(CONFS), "lan"), "pod", NETNS, "net1")
    before = net_state(one)
    here, there = (Pod(node, "pod", node.runner.cache.all("testcni")[0].result) for node in two.nodes)
    lan_there = address(other.runner.cache.all("lan")[0].result)
    with Servers() as servers:
        servers.start(there)
        one.runner.delete(second, "pod", NETNS, "net1")
        assert ask(here, "tcp", there.address, TARGET) == here.address
        one.runner.check(primary, "pod", NETNS)
        one.runner.add(second, "pod", NETNS, "net1")
        one.runner.delete(primary, "pod", NETNS)
        assert ask(here, "tcp", lan_there, TARGET) == f"{UNDERLAY}.2.11", "the next of its range"
        one.runner.check(second, "pod", NETNS, "net1")
        with pytest.raises(RunnerError, match="no eth0 of container pod is known here"):
            one.runner.check(primary, "pod", NETNS)
    one.runner.add(primary, "pod", NETNS)
    assert [line for line in difference(before, net_state(one)) if " files: " not in line and "10.244." not in line
            and f"{UNDERLAY}.2.1" not in line] == []  # fmt: skip


def test_gc_and_status_are_of_one_network(two: Lab) -> None:
    node = two.nodes[0]
    primary, second = load(node.path(CONFS)), load(node.path(CONFS), "lan")
    node.add_netns("pod")
    node.runner.add(primary, "pod", NETNS)
    node.runner.add(second, "pod", NETNS, "net1")
    node.runner.collect(primary, [("pod", "eth0")])
    node.runner.check(primary, "pod", NETNS)
    node.runner.check(second, "pod", NETNS, "net1")
    node.runner.collect(second, [])
    node.runner.check(primary, "pod", NETNS)
    assert "net1" not in node.space.exec("ip", "-n", "pod", "link").stdout
    node.runner.add(second, "pod", NETNS, "net1")
    node.runner.collect(primary, [])
    node.runner.check(second, "pod", NETNS, "net1")
    node.runner.status(second)
    node.space.exec("ip", "link", "set", "eth0", "down")
    eventually(lambda: not succeeds(node, "lan"))
    assert succeeds(node, "testcni"), "the other network does not hang on that interface"
    node.space.exec("ip", "link", "set", "eth0", "up")
    eventually(lambda: succeeds(node, "lan"))


def test_an_interface_is_on_one_network_only(two: Lab) -> None:
    node = two.nodes[0]
    node.add_netns("pod")
    node.runner.add(load(node.path(CONFS)), "pod", NETNS)
    before = net_state(node)
    with pytest.raises(RunnerError, match="container pod has eth0 on network 'testcni' already") as told:
        node.runner.add(load(node.path(CONFS), "lan"), "pod", NETNS, "eth0")
    assert told.value.code == 4
    assert "interface name of its own" in told.value.details
    assert difference(before, net_state(node)) == []
    node.runner.delete(load(node.path(CONFS), "lan"), "pod", NETNS, "eth0")
    node.runner.check(load(node.path(CONFS)), "pod", NETNS)


@pytest.mark.parametrize("mode", ["host-gw", "vxlan", "ipip"])
def test_two_networks_of_one_mode(mode: str) -> None:
    first = netconf("testcni", mode=mode, subnet="10.244.0.0/16")
    second = netconf(
        "second", mode=mode, subnet="10.245.0.0/16", **({"bridge": "br1"} if mode == "host-gw" else {})
    )
    with lab(2, conf=first) as it, Servers() as servers:
        pods = {}
        for node in it.nodes:
            put(node, 20, second)
            node.add_netns("pod")
            eventually(lambda node=node: succeeds(node, "second"))
            results = [node.runner.add(load(node.path(CONFS)), "pod", NETNS)]
            results.append(node.runner.add(load(node.path(CONFS), "second"), "pod", NETNS, "net1"))
            pods[node] = results
            assert address(results[1]).startswith("10.245.")
        one, other = it.nodes
        servers.start(Pod(other, "pod", pods[other][0]))
        here = Pod(one, "pod", pods[one][0])
        assert routes(one, "pod")["default"] == "eth0"
        for mine, result in zip(pods[one], pods[other], strict=True):
            eventually(lambda mine=mine, to=result: ask(here, "tcp", address(to), TARGET) == address(mine))
        assert [node.problems() for node in it.nodes] == [[], []]
        for node in it.nodes:
            node.runner.delete(load(node.path(CONFS), "second"), "pod", NETNS, "net1")
            node.runner.check(load(node.path(CONFS)), "pod", NETNS)


def test_two_bridges_do_not_share_a_block() -> None:
    first = netconf("testcni", subnet="10.244.0.0/16")
    with lab(1, conf=first) as it:
        node = it.nodes[0]
        pod = node.add_pod("a")
        wrong = put(node, 20, netconf("second", subnet="10.244.0.0/16", bridge="abridge"))
        node.add_netns("pod")
        with pytest.raises(RunnerError, match=r"10\.244\.1\.0/24 is that of bridge testcni0") as told:
            node.runner.add(wrong, "pod", NETNS, "net1")
        assert told.value.code == 11
        assert pod.exec("ping", "-c1", "-W1", "10.244.1.1", check=False).returncode == 0
        node.runner.check(node.conf(), "a", pod.netns)
