"""The mode changes on a running cluster, by `kubectl apply -k` alone: host-gw to vxlan and back, under a flow."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.e2e.cluster import DEFAULT, EXAMPLE_SUBNET, MANIFESTS, Cluster, ClusterNode, eventually
from tests.e2e.conftest import MODE
from tests.e2e.flow import Flow, ends
from tests.e2e.workload import container, pod
from tests.lab.segment import PREFIX, UNDERLAY

pytestmark = pytest.mark.skipif(MODE != DEFAULT, reason="it begins with host-gw, and ends with it")

NEW = "vxlan"
REFUSED = (
    "network testcni (macvlan) is not prepared",
    "the old conflist stays in force: pods on this node are in the mode host-gw",
)
AGENT = "app.kubernetes.io/component=agent"
HEARD_WITHIN = 90.0  # seconds: kubelet brings a ConfigMap to its pods when it looks at them (cluster.KUBELET)
GONE_WITHIN = 90.0  # seconds: the next comparison, the grace, and what API server and kubelet take


def accepted_modes(cluster: Cluster) -> list[str]:
    """Return what each node says of itself."""
    return [n["metadata"].get("annotations", {}).get("testcni.io/receives", "") for n in cluster.get("nodes")]


def conflists(cluster: Cluster) -> set[str]:
    """The modes of the conflists that runtimes have."""
    texts = [(n.machine.root / "etc/cni/net.d/05-testcni.conflist").read_text() for n in cluster.nodes]
    return {json.loads(text)["plugins"][0]["mode"] for text in texts}


def overlay(cluster: Cluster, mode: str) -> None:
    """Apply an overlay as `kubectl apply -k` does, with the subnet of the nodes."""
    text = cluster.kubectl("kustomize", str(MANIFESTS / "overlays" / mode))
    cluster.apply(text.replace(EXAMPLE_SUBNET, f"{UNDERLAY}.0.0/{PREFIX}"))


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
    eventually(lambda: set(accepted_modes(cluster)) == {f"testcni={DEFAULT}"}, 30)
    cluster.apply(ends(one.name, two.name))
    (echo,), (sender,) = cluster.running("app=echo", 1), cluster.running("app=sender", 1)
    old = placed(cluster, "old", cluster.nodes)
    with Flow(cluster, sender, echo["status"]["podIP"]) as flow:
        began = time.monotonic()
        overlay(cluster, NEW)
        eventually(lambda: conflists(cluster) == {NEW}, HEARD_WITHIN)
        print(f"{DEFAULT} to {NEW}: {time.monotonic() - began:.1f} s until all nodes have the new conflist")
        eventually(lambda: set(accepted_modes(cluster)) == {f"testcni={NEW},{DEFAULT}"}, 10)
        new = placed(cluster, "new", cluster.nodes)
        meet(cluster, *old, *new)
        sent, got = flow.counts()
    print(f"{DEFAULT} to {NEW}: {sent} datagrams sent, {sent - got} lost")
    assert got == sent

    with Flow(cluster, sender, echo["status"]["podIP"]) as flow:
        overlay(cluster, DEFAULT)
        eventually(lambda: conflists(cluster) == {DEFAULT}, HEARD_WITHIN)
        last = placed(cluster, "last", cluster.nodes)
        meet(cluster, *old, *new, *last)
        sent, got = flow.counts()
    print(f"{NEW} to {DEFAULT}: {sent} datagrams sent, {sent - got} lost")
    assert got == sent
    for gone in new:
        cluster.kubectl("delete", "pod", gone["metadata"]["name"], "--grace-period=1")
    eventually(lambda: set(accepted_modes(cluster)) == {f"testcni={DEFAULT}"}, GONE_WITHIN)
    eventually(lambda: not any("testcni-vxlan" in n.state()["links"] for n in cluster.nodes), GONE_WITHIN)
    meet(cluster, *old, *last)

    # macvlan: its pods and those would not reach each other
    overlay(cluster, "macvlan")
    cluster.kubectl("rollout", "restart", "-n", "testcni", "daemonset/testcni")
    eventually(lambda: "the mode macvlan is refused" in events(cluster), 60)
    eventually(lambda: is_stopped(cluster) and says_why(cluster), 60)
    assert (conflists(cluster), set(accepted_modes(cluster))) == ({DEFAULT}, {f"testcni={DEFAULT}"})
    later = placed(cluster, "later", cluster.nodes)
    meet(cluster, *old, *later)
    overlay(cluster, DEFAULT)
    cluster.kubectl("rollout", "restart", "-n", "testcni", "daemonset/testcni")
    cluster.kubectl("rollout", "status", "-n", "testcni", "daemonset/testcni", "--timeout=150s", within=160)
    assert conflists(cluster) == {DEFAULT}
    meet(cluster, *old, *later)
    for left in (*old, *last, *later, echo, sender):
        cluster.kubectl("delete", "pod", left["metadata"]["name"], "--grace-period=1")


def events(cluster: Cluster) -> str:
    return cluster.kubectl("get", "events", "-n", "default", "-o", "custom-columns=M:.message", "--no-headers")


def is_stopped(cluster: Cluster) -> bool:
    """Return whether a rollout waits at its first node, or no agent is Ready.

    Agents are not Ready once kubelet has brought the new ConfigMap to them, which may be at any time.
    """
    (rollout,) = (daemonset["status"] for daemonset in cluster.get("daemonsets", "-n", "testcni"))
    updated, is_ready = rollout["updatedNumberScheduled"], rollout.get("numberReady", 0)
    return bool((updated == 1 and is_ready <= 1) or is_ready == 0)


def says_why(cluster: Cluster) -> bool:
    """Return whether an agent that is not Ready gives the reason; one that has just begun has none yet."""
    pages = [
        cluster.node_of(one).machine.exec("curl", "-s", "http://127.0.0.1:9480/readyz", check=False).stdout
        for one in cluster.pods(AGENT, "testcni")
        if "False" in states(one)
    ]
    return any(all(words in page for words in REFUSED) for page in pages)


def states(agent: dict[str, Any]) -> list[str]:
    """Return the status of the condition Ready of an agent's pod, if it has one."""
    return [one["status"] for one in agent["status"]["conditions"] if one["type"] == "Ready"]
