"""Many pods: each gets its address and gives it back."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from tests.e2e.cluster import Cluster, ClusterNode, eventually
from tests.e2e.workload import container, deployment

PODS_ON_A_NODE = 60


def own_pods(cluster: Cluster, node: ClusterNode) -> list[dict[str, Any]]:
    """The pods of a node that have an interface of ours."""
    everything = cluster.get("pods", "-A", "--field-selector", f"spec.nodeName={node.name}")
    return [pod for pod in everything if not pod["spec"].get("hostNetwork")]


def nothing_leaked(cluster: Cluster, within: float = 90) -> None:
    """On each node there is an attachment, a link and an address for each pod, and no other."""
    for node in cluster.nodes:
        end = time.monotonic() + within
        while differs := leaked(cluster, node):
            assert time.monotonic() < end, differs
            time.sleep(0.3)


def leaked(cluster: Cluster, node: ClusterNode) -> str:
    wanted = sorted(pod["status"].get("podIP", "") for pod in own_pods(cluster, node))
    held = sorted(lease["address"] for one in node.attachments() for lease in one["leases"])
    links = re.findall("^tcni", node.machine.exec("ip", "-br", "link").stdout, re.MULTILINE)
    if wanted == held and len(links) == len(held):
        return ""
    return f"{node.name}: {len(links)} links; pods have {wanted}, the agent has {held}"


def test_many_pods_on_one_node(cluster: Cluster, one: ClusterNode) -> None:
    began = time.monotonic()
    cluster.apply(deployment("many", PODS_ON_A_NODE, container("sleep", "36000"), nodeName=one.name))
    pods = cluster.running("app=many", PODS_ON_A_NODE, 180)
    print(f"{PODS_ON_A_NODE} pods on a node: {time.monotonic() - began:.1f} s")
    assert len({pod["status"]["podIP"] for pod in pods}) == PODS_ON_A_NODE
    said = cluster.kubectl("-n", "testcni", "logs", "-l", "app.kubernetes.io/component=agent", "--tail=-1")
    assert "pool is full" not in said, "a connection to the API server is kept for each call"
    nothing_leaked(cluster)
    cluster.kubectl("delete", "deployment", "many", "--wait=false")
    eventually(lambda: cluster.get("pods", "-l", "app=many") == [], 120)
    nothing_leaked(cluster)


def test_from_three_to_thirty_to_none(cluster: Cluster) -> None:
    cluster.apply(deployment("scaled", 3, container("sleep", "36000")))
    cluster.running("app=scaled", 3)
    cluster.kubectl("scale", "deployment", "scaled", "--replicas=30")
    cluster.running("app=scaled", 30, 120)
    nothing_leaked(cluster)
    cluster.kubectl("scale", "deployment", "scaled", "--replicas=0")
    eventually(lambda: cluster.get("pods", "-l", "app=scaled") == [], 120)
    nothing_leaked(cluster)
    cluster.kubectl("delete", "deployment", "scaled", "--wait=false")
    counts = [network for agent in agents(cluster) for network in status(cluster, agent)["networks"]]
    assert all(family["used"] < 10 for network in counts for family in network["addresses"].values())


def agents(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.running("app.kubernetes.io/component=agent", len(cluster.nodes), 30, "testcni")


def status(cluster: Cluster, agent: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.exec(agent, "testcnictl", "status", "-o", "json"))
    return found
