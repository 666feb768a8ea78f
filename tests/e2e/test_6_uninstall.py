"""The end: what was granted was used, and what was installed goes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from agent.model.marks import ROUTE_PROTOCOL
from tests.e2e.cluster import MANIFESTS, Cluster, eventually

USER = "system:serviceaccount:testcni:testcni"
# only where there is an IPPool: test_0_datastore and test_0_usage have one
SELDOM = {("create", "ipblocks"), ("delete", "ipblocks"), ("patch", "ippools/status")}


def test_no_verb_is_granted_that_is_not_used(cluster: Cluster) -> None:
    used: set[tuple[str, str]] = set()
    refused: set[tuple[str, str]] = set()
    for line in (cluster.control.folder / "audit.log").read_text().splitlines():
        entry = json.loads(line)
        if entry["user"]["username"] != USER or "objectRef" not in entry:
            continue
        reference = entry["objectRef"]
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        was_refused = entry["responseStatus"]["code"] in (401, 403)
        (refused if was_refused else used).add((entry["verb"], resource))
    assert refused <= used, "an API server that starts refuses everything for a moment, but nothing for good"
    assert used | SELDOM == set(granted(cluster))


def granted(cluster: Cluster) -> Iterator[tuple[str, str]]:
    (role,) = (one for one in cluster.get("clusterroles") if one["metadata"]["name"] == "testcni")
    for rule in role["rules"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                yield verb, resource


def test_nothing_is_left(cluster: Cluster) -> None:
    for kind in ("deployments", "daemonsets", "services", "pods"):
        cluster.kubectl("delete", kind, "-n", "default", "-l", "app", "--wait=false")
    names = [one["metadata"]["name"] for kind in ("deployments", "daemonsets") for one in cluster.get(kind)]
    for kind in ("deployment", "daemonset"):
        for name in names:
            cluster.kubectl("delete", kind, name, "--ignore-not-found", "--wait=false")
    eventually(lambda: cluster.get("pods") == [], 90)
    cluster.kubectl("delete", "-f", "-", stdin=cluster.manifests(), within=120)
    cleanup = MANIFESTS / "cleanup/cleanup.yaml"
    cluster.apply(cleanup)
    cluster.running("app.kubernetes.io/component=cleanup", len(cluster.nodes), 60, "kube-system")
    cluster.kubectl("delete", "-f", "-", stdin=cleanup.read_text())
    for node in cluster.nodes:
        before, now = cluster.before[node.name], node.state()
        for what in ("plugins", "confs"):
            assert now[what] == before[what], node.name
        assert "testcni" not in now["nft"]
        assert "tcni" not in now["links"] + now["routes"]
        assert [line.split()[0].partition("@")[0] for line in now["links"].splitlines()] == [
            line.split()[0].partition("@")[0] for line in before["links"].splitlines()
        ]
        assert f"proto {ROUTE_PROTOCOL}" not in now["routes"]
        assert "testcni" not in node.machine.exec("ls", "/sys/fs/bpf").stdout
    for found in cluster.get("nodes"):
        assert "testcni.io/receives" not in found["metadata"].get("annotations", {})
        assert "NetworkUnavailable" not in {condition["type"] for condition in found["status"]["conditions"]}
    eventually(lambda: cluster.ready_nodes() == set(), 60)
