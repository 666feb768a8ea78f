"""Addresses that stay: a StatefulSet's pods keep theirs wherever they run, and a second claim is told why not."""

from __future__ import annotations

import time
from typing import Any

from tests.e2e.cluster import DEFAULT, Cluster, ClusterNode, eventually
from tests.e2e.conftest import MODE
from tests.e2e.test_3_scale import nothing_leaked
from tests.e2e.workload import FETCH, Doc, container, pod, web

ROUNDS = 20 if MODE == DEFAULT else 6  # what a mode does at a move is in tests/lab/test_reserved_addresses.py
REPLICAS = 3
WEB = "app=keeps"
STICKY = {"testcni.io/sticky": "true"}


def statefulset() -> Doc:
    template = pod("keeps", web())
    metadata = {"labels": {"app": "keeps"}, "annotations": STICKY}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "keeps"},
        "spec": {
            "serviceName": "keeps",
            "replicas": REPLICAS,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "keeps"}},
            "template": {"metadata": metadata, "spec": template["spec"]},
        },
    }


def annotated(name: str, node: ClusterNode, address: str) -> Doc:
    doc = pod(name, container("sleep", "36000"), nodeName=node.name)
    doc["metadata"]["annotations"] = {"testcni.io/ip": address}
    return doc


def addresses(pods: list[Any]) -> dict[str, str]:
    return {one["metadata"]["name"]: one["status"]["podIP"] for one in pods}


def reservations(cluster: Cluster) -> dict[str, Any]:
    return {one["spec"]["address"]: one["spec"] for one in cluster.get("ipreservations.testcni.io")}


def reached(cluster: Cluster, boxes: dict[str, Any], pods: list[Any]) -> float:
    """Seconds until each node's toolbox gets each pod's page."""
    began = time.monotonic()
    for one in pods:
        for box in boxes.values():
            name, address = one["metadata"]["name"], one["status"]["podIP"]

            def look(box: Any = box, address: str = address) -> str:
                return cluster.exec(box, *FETCH, f"http://{address}").strip()

            assert eventually(look, 10) == name
    return time.monotonic() - began


def test_a_statefulset_keeps_its_addresses_through_drains(cluster: Cluster, boxes: dict[str, Any]) -> None:
    cluster.apply(statefulset())
    first = addresses(cluster.running(WEB, REPLICAS, 90))
    assert len(set(first.values())) == REPLICAS
    before = reservations(cluster)
    assert {address: before[address]["pod"] for address in first.values()} == {
        address: f"default/{name}" for name, address in first.items()
    }
    began = time.monotonic()
    for number in range(ROUNDS):
        away, to = cluster.nodes[number % 2], cluster.nodes[(number + 1) % 2]
        cluster.kubectl("cordon", away.name)
        try:
            # what `kubectl drain` does to them, without the DaemonSets' and the other tests' pods
            cluster.kubectl("delete", "pods", "-l", WEB, "--wait=true", within=120)
            pods = cluster.running(WEB, REPLICAS, 120)
        finally:
            cluster.kubectl("uncordon", away.name)
        assert {one["spec"]["nodeName"] for one in pods} == {to.name}, number
        assert addresses(pods) == first, number
        took = reached(cluster, boxes, pods)
        print(f"round {number + 1}: on {to.name}, all pages fetched in {took:.1f} s")
    print(f"{ROUNDS} rounds of {REPLICAS} pods: {time.monotonic() - began:.0f} s")
    assert reservations(cluster).keys() == before.keys()
    assert cluster.refused("keeps") == []


def test_a_statefulset_that_is_deleted_comes_back_to_its_addresses(
    cluster: Cluster, boxes: dict[str, Any]
) -> None:
    before = addresses(cluster.running(WEB, REPLICAS, 30))
    cluster.kubectl("delete", "statefulset", "keeps", "--wait=true")
    eventually(lambda: cluster.get("pods", "-l", WEB) == [], 60)
    held = [reservations(cluster)[address] for address in before.values()]
    eventually(lambda: all("released" in reservations(cluster)[one["address"]] for one in held), 20)
    cluster.apply(statefulset())
    pods = cluster.running(WEB, REPLICAS, 90)
    assert addresses(pods) == before
    reached(cluster, boxes, pods)


def test_a_second_claim_fails_and_the_pod_says_why(
    cluster: Cluster, boxes: dict[str, Any], one: ClusterNode, two: ClusterNode
) -> None:
    (held,) = (spec for spec in reservations(cluster).values() if spec["pod"] == "default/keeps-0")
    cluster.apply(annotated("second", two, held["address"]))
    refused(cluster, "second", f"{held['address']} is reserved for default/keeps-0: pod default/keeps-0 on node")
    # an ordinary pod's address is not given away either
    ordinary = str(boxes[one.name]["status"]["podIP"])
    cluster.apply(annotated("third", two, ordinary))
    refused(cluster, "third", f"{ordinary} lies in a block of node {one.name}, and pod default/toolbox")
    cluster.kubectl("delete", "pod", "second", "third", "--wait=false")
    eventually(lambda: ordinary not in reservations(cluster), 60)
    cluster.kubectl("delete", "statefulset", "keeps", "--wait=false")
    eventually(lambda: cluster.get("pods", "-l", WEB) == [], 60)
    nothing_leaked(cluster)


def refused(cluster: Cluster, name: str, words: str) -> None:
    """The pod has an Event of ours with these words, and does not run."""

    def told() -> bool:
        found = cluster.get("events", "--field-selector", f"involvedObject.name={name},reason=AddressNotGiven")
        return any(words in event["message"] for event in found)

    eventually(told, 60, 0.5)
    (there,) = (one for one in cluster.get("pods") if one["metadata"]["name"] == name)
    assert there["status"]["phase"] == "Pending"
    assert name in cluster.kubectl("describe", "pod", name)
