"""macvlan and ipvlan in the lab: what is particular to pods on the nodes' own subnet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab import matrix
from tests.lab.lab import VXLAN_CONF, LabNode, OwnConf, Pod, lab, shared_conf
from tests.lab.paths import lacks
from tests.lab.runner import load
from tests.lab.segment import OUTSIDE
from tests.lab.talk import TARGET, Servers, ask
from tests.support import eventually

ON_THE_SUBNET = [("macvlan", "bridge"), ("ipvlan", "l2"), ("ipvlan", "l3s")]


def conf_for(kind: str, mode: str, **more: Any) -> OwnConf:
    if why := lacks(kind):
        pytest.skip(why)
    return shared_conf(kind, linkMode=mode, **more)


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
