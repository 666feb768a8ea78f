"""`kubectl apply -f manifests/`: from nodes without a network to nodes that take pods."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from tests.e2e import programs, workload
from tests.e2e.cluster import MANIFESTS, ON_THE_SUBNET, Cluster, ClusterNode, eventually
from tests.lab.space import REPO
from tests.networks import MODES

READY_WITHIN = 15.0  # seconds
ALONE = os.environ.get("SIDE_BY_SIDE", "1") == "1"  # only on a machine of its own can a time be held
POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "nobody"},
    "spec": {"podSelector": {"matchLabels": {"app": "nobody"}}},
}  # fmt: skip
DOCS = (REPO / "README.md", *REPO.glob("docs/**/*.md"))


def test_the_rendered_manifest_is_that_of_the_default_overlay(bare: Cluster) -> None:
    rendered = bare.kubectl("kustomize", str(REPO / "manifests/overlays/host-gw"))
    assert (MANIFESTS / "testcni.yaml").read_text() == rendered, "make manifests"
    assert [path.name for path in MANIFESTS.glob("*.yaml")] == ["testcni.yaml"]
    assert programs.VERSION in bare.kubectl("version")


def test_overlays_differ_in_the_configmap_only(bare: Cluster) -> None:
    """So one `kubectl apply -k` changes the mode: no agent lacks a right that old pods need."""

    def others(mode: str) -> list[str]:
        docs = bare.kubectl("kustomize", str(MANIFESTS / "overlays" / mode)).split("\n---\n")
        return [doc for doc in docs if "kind: ConfigMap" not in doc]

    assert all(others(mode) == others(MODES[0]) for mode in MODES[1:])


def test_nodes_are_ready_only_when_the_agent_serves(bare: Cluster) -> None:
    assert bare.ready_nodes() == set()
    assert {reason(node) for node in bare.get("nodes")} <= {"KubeletNotReady"}
    bare.apply(POLICY)
    began = time.monotonic()
    bare.install()
    bare.all_ready()
    took = time.monotonic() - began
    print(f"from apply to all nodes Ready: {took:.1f} s")
    agents = {
        pod["spec"]["nodeName"]: pod for pod in bare.running("app.kubernetes.io/name=testcni", 2, 30, "testcni")
    }
    for node in bare.get("nodes"):
        name = node["metadata"]["name"]
        (state,) = agents[name]["status"]["containerStatuses"]
        assert parse(state["state"]["running"]["startedAt"]) <= parse(ready(node)["lastTransitionTime"])
    if ALONE and bare.mode not in ON_THE_SUBNET:  # there the policy about IPPools has to be known first
        assert took < READY_WITHIN


@pytest.mark.skipif(not ALONE, reason="a probe has its time, as an installation has")
def test_no_probe_fails_at_an_install(cluster: Cluster) -> None:
    """Each that does is a warning Event of the agent's pod."""
    cluster.running("app.kubernetes.io/name=testcni", len(cluster.nodes), 30, "testcni")
    failed = ("-n", "testcni", "--field-selector", "reason=Unhealthy")
    assert [event["message"] for event in cluster.get("events", *failed)] == []


def test_the_condition_network_unavailable_is_cleared_with_a_reason(cluster: Cluster) -> None:
    def conditions() -> list[dict[str, Any]]:
        found = (node["status"]["conditions"] for node in cluster.get("nodes"))
        return [one for many in found for one in many if one["type"] == "NetworkUnavailable"]

    eventually(lambda: len(conditions()) == len(cluster.nodes), 10)
    assert {(one["status"], one["reason"]) for one in conditions()} == {("False", "TestcniIsUp")}


def test_one_event_says_that_network_policies_are_not_enforced(cluster: Cluster) -> None:
    def told() -> list[dict[str, Any]]:
        return cluster.get("events", "--field-selector", "reason=NetworkPolicyNotEnforced")

    def noted() -> bool:
        agents = cluster.running("app.kubernetes.io/component=agent", len(cluster.nodes), 30, "testcni")
        return all("note: testcni does not enforce" in cluster.exec(one, "testcnictl", "status") for one in agents)

    eventually(noted, 30)
    (event,) = told()
    assert event["involvedObject"]["name"] == POLICY["metadata"]["name"]
    cluster.kubectl("delete", "networkpolicy", POLICY["metadata"]["name"])


def test_what_was_installed(cluster: Cluster) -> None:
    for node in cluster.nodes:
        state = node.state()
        assert state["plugins"].split() == ["bandwidth", "loopback", "portmap", "testcni"]
        assert state["confs"].split() == ["05-testcni.conflist"]
        conflist = json.loads(node.machine.exec("cat", "/etc/cni/net.d/05-testcni.conflist").stdout)
        assert conflist["plugins"][0]["mode"] == cluster.mode
        listed = node.machine.exec("stat", "-c", "%a %n", "/run/testcni/agent.sock", "/run/testcni").stdout
        assert listed.split() == ["600", "/run/testcni/agent.sock", "755", "/run/testcni"]


@pytest.fixture
def damaged(cluster: Cluster, one: ClusterNode) -> Iterator[ClusterNode]:
    """A node whose confs a test damages. Kubelet, which looks every 5 s, may have seen it, and says so later."""
    yield one
    cluster.apply(workload.pod("whole", workload.container("sleep", "36000"), nodeName=one.name))
    cluster.running("app=whole", 1)  # so kubelet has seen that the network is whole again
    cluster.kubectl("delete", "pod", "whole")
    cluster.all_ready()


def test_what_is_damaged_is_repaired(damaged: ClusterNode) -> None:
    run = damaged.machine.exec
    before = run("sha256sum", "/opt/cni/bin/testcni").stdout
    run("rm", "/etc/cni/net.d/05-testcni.conflist")
    run("sh", "-c", "echo broken > /opt/cni/bin/testcni")
    eventually(lambda: run("ls", "/etc/cni/net.d").stdout.strip() == "05-testcni.conflist", 5)
    eventually(lambda: run("sha256sum", "/opt/cni/bin/testcni").stdout == before, 5)


def test_a_conf_that_sorts_first_is_told_as_an_event(cluster: Cluster, damaged: ClusterNode) -> None:
    run = damaged.machine.exec
    run("sh", "-c", "echo '{}' > /etc/cni/net.d/00-other.conf")
    try:
        eventually(lambda: "00-other.conf: sorts before 05-testcni.conflist" in events(cluster), 20)
    finally:
        run("rm", "/etc/cni/net.d/00-other.conf")


def test_what_the_docs_look_with_is_there(cluster: Cluster) -> None:
    """The docs' lines with curl on a node, and the programs that they call in the agent's container."""
    curls = {line for path in DOCS for line in re.findall(r"`(curl -s \S+/readyz)`", path.read_text())}
    assert len(curls) >= 2
    pods = {
        pod["spec"]["nodeName"]: pod
        for pod in cluster.running("app.kubernetes.io/component=agent", 2, 30, "testcni")
    }
    for node in cluster.nodes:
        agent = pods[node.name]
        for line in curls:
            argv = line.replace("NODE", agent["status"]["hostIP"]).split()
            eventually(partial(is_ok, node, argv), 15)
        assert " testcni0 " in cluster.exec(agent, "ip", "link").replace(":", " ") or cluster.mode != "host-gw"
        assert cluster.exec(agent, "testcnictl", "status")
        if cluster.mode == "ipip":
            assert "BGP" in cluster.exec(agent, "birdc", "-r", "show", "protocols")
        if cluster.mode == "vxlan":
            cluster.exec(agent, "testcnictl", "monitor", "--for", "0.5")


def test_the_seeds_busybox_runs_three_times_and_pings_itself(cluster: Cluster) -> None:
    cluster.apply(MANIFESTS / "examples/test-busybox.yaml")
    pods = cluster.running("app=busybox", 3)
    assert {pod["spec"]["nodeName"] for pod in pods} == {node.name for node in cluster.nodes}
    for pod in pods:
        for other in pods:
            cluster.exec(pod, "ping", "-c1", "-W2", other["status"]["podIP"])
    cluster.kubectl("delete", "deployment", "busybox", "--wait=false")


def is_ok(node: ClusterNode, argv: list[str]) -> bool:
    return node.machine.exec(*argv).stdout == "ok\n"


def events(cluster: Cluster) -> str:
    return cluster.kubectl("get", "events", "-n", "default", "-o", "custom-columns=M:.message", "--no-headers")


def ready(node: dict[str, Any]) -> dict[str, Any]:
    (found,) = (one for one in node["status"]["conditions"] if one["type"] == "Ready")
    condition: dict[str, Any] = found
    return condition


def reason(node: dict[str, Any]) -> str:
    return str(ready(node)["reason"])


def parse(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
