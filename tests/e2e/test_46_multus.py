"""A second network by real Multus, as docs/operations/several-networks.md has it: macvlan beside vxlan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from agent import ctl
from tests.e2e import programs
from tests.e2e.cluster import Cluster, ClusterNode, eventually
from tests.e2e.conftest import MODE, NODES
from tests.e2e.workload import container, daemonset
from tests.lab.segment import PREFIX, UNDERLAY

pytestmark = pytest.mark.skipif(MODE != "vxlan", reason="one mode as the cluster's network will do")

CONFS, PLUGINS = "etc/cni/net.d", "opt/cni/bin"
CONF = "00-multus.conf"
STATUS = "k8s.v1.cni.cncf.io/network-status"
NAMES = "network-attachment-definitions"
LAN = {"name": "lan", "type": "testcni", "mode": "macvlan", "subnet": f"{UNDERLAY}.0.0/{PREFIX}"}
KIND: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{NAMES}.k8s.cni.cncf.io"},
    "spec": {
        "group": "k8s.cni.cncf.io",
        "scope": "Namespaced",
        "names": {
            "kind": "NetworkAttachmentDefinition",
            "plural": NAMES,
            "singular": "network-attachment-definition",
            "shortNames": ["nad"],
        },
        "versions": [{
            "name": "v1", "served": True, "storage": True,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"config": {"type": "string"}}},
            }}},
        }],
    },
}  # fmt: skip
NETWORK = {
    "apiVersion": "k8s.cni.cncf.io/v1",
    "kind": "NetworkAttachmentDefinition",
    "metadata": {"name": "lan"},
    "spec": {"config": json.dumps({"cniVersion": "1.0.0", **LAN})},
}
POOL = {
    "apiVersion": "testcni.io/v1",
    "kind": "IPPool",
    "metadata": {"name": "lan"},
    "spec": {"cidr": f"{UNDERLAY}.200.128/25", "blockSize": 28},
}


@pytest.fixture
def multus(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with Multus' thin plugin in front of testcni on each node, and the network `lan`."""
    program = programs.multus()
    cluster.apply([KIND, POOL])
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{NAMES}.k8s.cni.cncf.io")
    cluster.apply(NETWORK)
    conf = {
        "cniVersion": "1.0.0",
        "name": "multus-cni-network",
        "type": "multus",
        "kubeconfig": str(cluster.control.kubeconfig()),
        "clusterNetwork": f"/{CONFS}/05-testcni.conflist",
    }
    try:
        for node in cluster.nodes:
            shutil.copy(program, node.machine.root / PLUGINS / "multus")
            (node.machine.root / CONFS / CONF).write_text(json.dumps(conf))
        yield cluster
    finally:
        for node in cluster.nodes:
            (node.machine.root / CONFS / CONF).unlink(missing_ok=True)
            (node.machine.root / PLUGINS / "multus").unlink(missing_ok=True)
        cluster.kubectl("delete", f"crd/{NAMES}.k8s.cni.cncf.io", "ippool/lan")
        for block in cluster.get("ipblocks"):
            if block["spec"]["pool"] == "lan":
                cluster.kubectl("delete", "ipblock", block["metadata"]["name"])


def warnings(cluster: Cluster) -> dict[str, tuple[int, str]]:
    """The warning Events of Nodes and of this test's pods, and how often each came."""
    found = cluster.get("events", "-A", "--field-selector", "type=Warning")
    told = [e for e in found if e["involvedObject"]["kind"] == "Node" or "camera" in e["involvedObject"]["name"]]
    return {event["metadata"]["name"]: (event.get("count") or 1, event["message"]) for event in told}


def problems(node: ClusterNode) -> list[str]:
    """Return what the node's agent reports."""
    doc = ctl.ask(node.machine.root / "run/testcni/agent.sock")
    return [f"{problem['where']}: {problem['what']}" for problem in doc["problems"]]


def of_pods(node: ClusterNode) -> Mapping[str, str]:
    """Return what pods could leave behind on a node."""
    table = node.machine.exec("nft", "list", "table", "inet", "testcni").stdout
    return {key: node.state()[key] for key in ("links", "routes")} | {"nft": table}


def addresses(pod: dict[str, Any]) -> dict[str, str]:
    """The pod's addresses by interface, as Multus has noted them."""
    noted = json.loads(pod["metadata"]["annotations"][STATUS])
    return {entry["interface"]: entry["ips"][0] for entry in noted}


def test_a_pod_has_both_networks_and_no_node_reports_anything(multus: Cluster) -> None:
    eventually(lambda: multus.each(problems) == [[]] * NODES, 30)  # what tests before this one did is over
    before, told = multus.each(of_pods), warnings(multus)
    camera = daemonset("camera", container("sleep", "36000"))
    camera["spec"]["template"]["metadata"]["annotations"] = {"k8s.v1.cni.cncf.io/networks": "lan"}
    multus.apply(camera)
    one, two = multus.running("app=camera", NODES)
    for here, there in ((one, two), (two, one)):
        by = addresses(there)
        assert by.keys() == {"eth0", "net1"}
        assert by["eth0"] == there["status"]["podIP"]
        assert by["net1"].startswith(f"{UNDERLAY}.200.")
        for address in by.values():
            multus.exec(here, "ping", "-c1", "-W2", address)
    blocks = [block["spec"] for block in multus.get("ipblocks") if block["spec"]["pool"] == "lan"]
    assert [block["shared"] for block in blocks] == [True] * NODES
    assert multus.each(problems) == [[]] * NODES
    shown = multus.each(lambda node: ctl.ask(node.machine.root / "run/testcni/agent.sock")["networks"])
    for networks in shown:
        assert {n["name"]: n["device"] for n in networks} == {"testcni": "testcni-vxlan", "lan": "eth0"}
        mine = {cidr for n in networks for cidr in n["blocks"] if n["name"] == "testcni"}
        assert mine.isdisjoint({block["cidr"] for block in blocks})
    multus.kubectl("delete", "daemonset", "camera")
    eventually(lambda: not [a for node in multus.nodes for a in node.attachments() if "camera" in a["pod"]], 30)
    eventually(lambda: multus.each(of_pods) == before, 30)  # the network is kept for 10 s after its last pod
    assert multus.each(problems) == [[]] * NODES
    assert warnings(multus) == told
