"""The mode changes on a running cluster: host-gw to vxlan and back, under a flow between old pods."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.e2e.cluster import DEFAULT, MANIFESTS, Cluster, ClusterNode, eventually
from tests.e2e.conftest import MODE
from tests.e2e.flow import Flow, ends
from tests.e2e.workload import container, pod

pytestmark = pytest.mark.skipif(MODE != DEFAULT, reason="it begins with host-gw, and ends with it")

NEW = "vxlan"
HEARD_WITHIN = 150.0  # seconds: kubelet brings a ConfigMap to its pods about once a minute
GONE_WITHIN = 90.0  # seconds: the next comparison, the grace, and what API server and kubelet take


def receives(cluster: Cluster) -> list[str]:
    """What each node says of itself."""
    return [n["metadata"].get("annotations", {}).get("testcni.io/receives", "") for n in cluster.get("nodes")]


def conflists(cluster: Cluster) -> set[str]:
    """The modes of the conflists that runtimes have."""
    texts = [(n.machine.root / "etc/cni/net.d/05-testcni.conflist").read_text() for n in cluster.nodes]
    return {json.loads(text)["plugins"][0]["mode"] for text in texts}


def overlay(cluster: Cluster, mode: str) -> None:
    """Conf and agents of a mode, as `kubectl apply -k` has them."""
    cluster.apply(cluster.kubectl("kustomize", str(MANIFESTS / "overlays" / mode)))
    cluster.kubectl("rollout", "status", "-n", "testcni", "daemonset/testcni", "--timeout=150s", within=160)


def meet(cluster: Cluster, *pods: dict[str, Any]) -> None:
    """Every pod reaches every other."""
    for one in pods:
        for other in pods:
            cluster.exec(one, "ping", "-c1", "-W2", other["status"]["podIP"])


def placed(cluster: Cluster, name: str, nodes: list[ClusterNode]) -> list[dict[str, Any]]:
    """A pod on each node."""
    names = [f"{name}-{node.name}" for node in nodes]
    docs = [pod(n, container("sleep", "36000"), nodeName=node.name) for n, node in zip(names, nodes, strict=True)]
    cluster.apply(docs)
    return [found for n in names for found in cluster.running(f"app={n}", 1)]


def test_host_gw_to_vxlan_and_back(cluster: Cluster, one: ClusterNode, two: ClusterNode) -> None:
    eventually(lambda: set(receives(cluster)) == {f"testcni={DEFAULT}"}, 30)
    cluster.apply(ends(one.name, two.name))
    (echo,), (sender,) = cluster.running("app=echo", 1), cluster.running("app=sender", 1)
    old = placed(cluster, "old", cluster.nodes)
    flow = Flow(cluster, sender, echo["status"]["podIP"], 90)
    began = time.monotonic()
    overlay(cluster, NEW)
    eventually(lambda: conflists(cluster) == {NEW}, HEARD_WITHIN)
    print(f"{DEFAULT} to {NEW}: {time.monotonic() - began:.1f} s until all nodes have the new conflist")
    eventually(lambda: set(receives(cluster)) == {f"testcni={NEW},{DEFAULT}"}, 10)
    new = placed(cluster, "new", cluster.nodes)
    meet(cluster, *old, *new)
    sent, got = flow.counts()
    print(f"{DEFAULT} to {NEW}: {sent} datagrams sent, {sent - got} lost")
    assert got == sent

    # back: the conf first, and the agents' rights when no pod needs them any more
    flow = Flow(cluster, sender, echo["status"]["podIP"], 150)
    config = cluster.kubectl("kustomize", str(MANIFESTS / "overlays" / DEFAULT))
    conf = next(part for part in config.split("\n---\n") if "kind: ConfigMap" in part)
    cluster.apply(conf)
    eventually(lambda: conflists(cluster) == {DEFAULT}, HEARD_WITHIN)
    last = placed(cluster, "last", cluster.nodes)
    meet(cluster, *old, *new, *last)
    sent, got = flow.counts()
    print(f"{NEW} to {DEFAULT}: {sent} datagrams sent, {sent - got} lost")
    assert got == sent
    for gone in new:
        cluster.kubectl("delete", "pod", gone["metadata"]["name"], "--grace-period=1")
    eventually(lambda: set(receives(cluster)) == {f"testcni={DEFAULT}"}, GONE_WITHIN)
    eventually(lambda: not any("testcni-vxlan" in n.state()["links"] for n in cluster.nodes), GONE_WITHIN)
    overlay(cluster, DEFAULT)
    meet(cluster, *old, *last)
    for left in (*old, *last, echo, sender):
        cluster.kubectl("delete", "pod", left["metadata"]["name"], "--grace-period=1")
