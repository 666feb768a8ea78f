"""Events in the life of a cluster: agents restart, images change, the API server goes, nodes die and come back."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from agent.model.marks import LINK_PREFIX, ROUTE_PROTOCOL
from tests.e2e.cluster import DEFAULT, Cluster, ClusterNode, eventually
from tests.e2e.conftest import MODE
from tests.e2e.flow import Flow, ends
from tests.e2e.images import TESTCNI
from tests.e2e.test_3_scale import nothing_leaked
from tests.e2e.workload import container, deployment, pod

AGENT = "app.kubernetes.io/component=agent"
NEXT = "localhost/testcni:next"
API_AWAY = 120.0 if MODE == DEFAULT else 30.0  # seconds: how long it is makes no difference to a mode
# Kubernetes's own: a node that it took for lost is Ready when kubelet's list of Nodes is new, which it tries again
# after up to 60 s. Until then kubelet sends times only.
READY_AGAIN = 180.0


@pytest.fixture(scope="module")
def flow_ends(cluster: Cluster, one: ClusterNode, two: ClusterNode) -> tuple[dict[str, Any], str]:
    """The sender's pod, and the address of the echo on the other node."""
    cluster.apply(ends(one.name, two.name))
    (echo,), (sender,) = cluster.running("app=echo", 1), cluster.running("app=sender", 1)
    return sender, echo["status"]["podIP"]


def test_agents_killed_while_pods_start_and_a_flow_runs(
    cluster: Cluster, flow_ends: tuple[dict[str, Any], str]
) -> None:
    with Flow(cluster, *flow_ends) as flow:
        cluster.apply(deployment("during", 20, container("sleep", "36000")))
        eventually(lambda: cluster.pods("app=during"), 30)
        cluster.kubectl("delete", "pods", "-n", "testcni", "-l", AGENT, "--wait=false")
        cluster.running("app=during", 20, 90)
        cluster.running(AGENT, len(cluster.nodes), 60, "testcni")
        assert cluster.refused("during") == []
        sent, got = flow.counts()
    print(f"agents deleted: {sent} datagrams sent, {sent - got} lost")
    assert got == sent
    cluster.kubectl("delete", "deployment", "during", "--wait=false")


def test_a_rolling_upgrade_loses_no_packet_and_fails_no_pod(
    cluster: Cluster, flow_ends: tuple[dict[str, Any], str]
) -> None:
    for node in cluster.nodes:
        node.machine.exec("ctr", "-n", "k8s.io", "images", "tag", "--force", TESTCNI, NEXT)
    with Flow(cluster, *flow_ends) as flow:
        began = time.monotonic()
        cluster.kubectl("set", "image", "-n", "testcni", "daemonset/testcni", f"agent={NEXT}")
        cluster.apply(deployment("upgraded", 20, container("sleep", "36000")))
        cluster.kubectl("rollout", "status", "-n", "testcni", "daemonset/testcni", "--timeout=90s", within=100)
        print(f"rolling upgrade of {len(cluster.nodes)} nodes: {time.monotonic() - began:.1f} s")
        cluster.running("app=upgraded", 20, 90)
        assert cluster.refused("upgraded") == []
        sent, got = flow.counts()
    print(f"rolling upgrade: {sent} datagrams sent, {sent - got} lost")
    assert got == sent
    cluster.kubectl("delete", "deployment", "upgraded", "--wait=false")
    cluster.kubectl("set", "image", "-n", "testcni", "daemonset/testcni", f"agent={TESTCNI}")
    cluster.kubectl("rollout", "status", "-n", "testcni", "daemonset/testcni", "--timeout=90s", within=100)


def test_pods_start_while_the_api_server_is_away(cluster: Cluster, one: ClusterNode, two: ClusterNode) -> None:
    cluster.control.end("kube-apiserver", signal.SIGTERM)
    began = time.monotonic()
    try:
        for number in range(3):
            at = began + API_AWAY * number / 3
            time.sleep(max(0.0, at - time.monotonic()))
            for node in (one, two):
                static(node, f"static{number}")
            addresses = [
                eventually(lambda n=n, number=number: n.address_of(f"default/static{number}-{n.name}"), 60)
                for n in (one, two)
            ]
            for node in (one, two):
                for address in addresses:
                    eventually(lambda node=node, a=address: pings(node, a), 10)
        time.sleep(max(0.0, began + API_AWAY - time.monotonic()))
    finally:
        cluster.control.come_back()
    for node in (one, two):
        for number in range(3):
            node.machine.exec("rm", f"/etc/kubernetes/manifests/static{number}.yaml")
    cluster.all_ready(READY_AGAIN)
    agents_are_back(cluster)
    nothing_leaked(cluster)


def test_an_agent_that_restarts_while_the_api_server_is_away_still_serves(
    cluster: Cluster, one: ClusterNode
) -> None:
    before, peers = pid_of_agent(one), routes(one)
    cluster.control.end("kube-apiserver", signal.SIGKILL)
    try:
        one.machine.exec("kill", "-KILL", before)
        eventually(lambda: pid_of_agent(one) not in ("", before), 60)
        static(one, "late")
        address = eventually(lambda: one.address_of(f"default/late-{one.name}"), 60)
        eventually(lambda: pings(one, address), 10)
        assert routes(one) == peers, "routes to peers stay"
    finally:
        cluster.control.come_back()
    one.machine.exec("rm", "/etc/kubernetes/manifests/late.yaml")
    cluster.all_ready(READY_AGAIN)
    agents_are_back(cluster)
    for node in cluster.nodes:
        node.restart("kubelet")  # after two times without an API server it would hear of pods a minute later


def test_a_node_that_is_rebooted_leaks_nothing(cluster: Cluster, two: ClusterNode) -> None:
    cluster.apply(deployment("rebooted", 6, container("sleep", "36000"), nodeName=two.name))
    cluster.running("app=rebooted", 6, 120)
    two.crash()
    began = time.monotonic()
    two.boot()
    eventually(two.attachments, 120)
    cluster.all_ready(120)
    cluster.running("app=rebooted", 6, 120)
    print(f"reboot: pods run again after {time.monotonic() - began:.1f} s")
    nothing_leaked(cluster)
    cluster.kubectl("delete", "deployment", "rebooted", "--wait=false")


def test_a_node_that_comes_back_under_another_address(
    cluster: Cluster, one: ClusterNode, two: ClusterNode
) -> None:
    old = two.address
    cluster.kubectl("delete", "node", two.name)
    eventually(lambda: old not in routes(one), 5)
    two.restart("kubelet", "kube-proxy", address="172.18.7.7")
    cluster.all_ready(90)
    if cluster.mode == "host-gw":
        eventually(lambda: "via 172.18.7.7" in routes(one), 10)
    cluster.running(AGENT, 2, 90, "testcni")
    cluster.apply(deployment("moved", 4, container("sleep", "36000")))
    pods = cluster.running("app=moved", 4, 60)
    for source in pods:
        for other in pods:
            argv = ("ping", "-c1", "-W2", other["status"]["podIP"])  # in ipip its sessions are new
            eventually(lambda source=source, argv=argv: cluster.exec(source, *argv), 20)
    cluster.kubectl("delete", "deployment", "moved", "--wait=false")
    eventually(lambda: cluster.get("pods", "-l", "app=moved") == [], 60)
    nothing_leaked(cluster)
    # the agent listened at the old address until its liveness probe failed
    eventually(lambda: two.machine.exec("curl", "-sfm2", "http://172.18.7.7:9480/healthz").stdout, 90, 0.5)


def agents_are_back(cluster: Cluster) -> None:
    """Once kube-proxy has found the API server again: one that is stopped takes its Service's endpoint along."""
    began = time.monotonic()
    for node in cluster.nodes:
        argv = ("curl", "-skfm2", "https://10.96.0.1/readyz")
        eventually(lambda run=node.machine.exec, argv=argv: run(*argv, check=False).returncode == 0, 150, 0.5)
    print(f"the API server's Service works again after {time.monotonic() - began:.1f} s")
    # a kubelet that is late with its lease has its pods marked not ready, until it has found the API server too
    cluster.running(AGENT, len(cluster.nodes), 120, "testcni")


def static(node: ClusterNode, name: str) -> None:
    """A pod that kubelet starts by itself."""
    doc = json.dumps(pod(name, container("sleep", "36000"), tolerations=[{"operator": "Exists"}]))
    node.machine.exec("tee", f"/run/{name}.yaml", stdin=doc)
    # whole at once: a kubelet that sees half a file looks again after 20 s
    node.machine.exec("cp", f"/run/{name}.yaml", f"/etc/kubernetes/manifests/.{name}")
    node.machine.exec("mv", f"/etc/kubernetes/manifests/.{name}", f"/etc/kubernetes/manifests/{name}.yaml")


def pings(node: ClusterNode, address: str) -> bool:
    return node.machine.exec("ping", "-c1", "-W1", address, check=False).returncode == 0


def routes(node: ClusterNode) -> str:
    """Return the routes to peers, of which pods' own routes are no part."""
    text = node.machine.exec("ip", "route", "show", "proto", str(ROUTE_PROTOCOL)).stdout
    return "\n".join(line for line in text.splitlines() if f"dev {LINK_PREFIX}" not in line)


def pid_of_agent(node: ClusterNode) -> str:
    return node.machine.exec("pgrep", "-f", "bin/testcni-agent", check=False).stdout.partition("\n")[0]
