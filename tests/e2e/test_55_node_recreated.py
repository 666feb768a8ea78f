"""An address that a person reserved ahead, a misspelt annotation, and a Node that gets another podCIDR."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tests.e2e.cluster import Cluster, ClusterNode, eventually
from tests.e2e.conftest import MODE
from tests.e2e.test_35_reserved_addresses import addresses, reached, reservations
from tests.e2e.workload import FETCH, TOOLBOX, pod, web

pytestmark = pytest.mark.skipif(MODE in ("macvlan", "ipvlan"), reason="pods share the nodes' subnet")
KNOWN = ("cat", "/run/testcni/reservations.json")


def events(cluster: Cluster, name: str, reason: str) -> list[str]:
    """The messages of a pod's Events."""
    found = cluster.get("events", "--field-selector", f"involvedObject.name={name},reason={reason}")
    return [event["message"] for event in found]


def test_an_address_that_is_reserved_ahead_is_for_its_pod(
    cluster: Cluster, boxes: dict[str, Any], one: ClusterNode, two: ClusterNode
) -> None:
    """Its annotation is misspelt, which its Events say; it needs none."""
    ordinary = str(boxes[one.name]["status"]["podIP"])
    address = str(ip_network(f"{ordinary}/24", strict=False)[200])
    spec = {"address": address, "owner": "default/ahead"}
    metadata = {"name": address.replace(".", "-")}
    cluster.apply({"apiVersion": "testcni.io/v1", "kind": "IPReservation", "metadata": metadata, "spec": spec})

    def known() -> bool:
        return all(address in node.machine.exec(*KNOWN, check=False).stdout for node in (one, two))

    eventually(known, 20)
    doc = pod("ahead", web(), nodeName=two.name)
    doc["metadata"]["annotations"] = {"testcni.io/sticki": "true"}
    cluster.apply(doc)
    (running,) = cluster.running("app=ahead", 1)
    assert addresses([running]) == {"ahead": address}
    reached(cluster, boxes, [running])
    words = "testcni.io/sticki of pod default/ahead is unknown and does nothing; did you mean testcni.io/sticky?"
    eventually(lambda: any(words in message for message in events(cluster, "ahead", "AnnotationUnknown")), 20)
    cluster.kubectl("delete", "pod", "ahead", "--wait=true")
    eventually(lambda: "released" in reservations(cluster)[address], 20)
    assert reservations(cluster)[address]["keep"] == "Always"
    cluster.kubectl("delete", "ipreservation", metadata["name"])


def test_a_node_that_is_made_again_with_another_podcidr(
    cluster: Cluster, boxes: dict[str, Any], one: ClusterNode, two: ClusterNode
) -> None:
    """Its pods are reached until they are created again, and say so."""
    before = cluster.get("nodes")
    old = boxes[two.name]
    name, address = old["metadata"]["name"], str(old["status"]["podIP"])
    cluster.kubectl("delete", "node", two.name)
    two.restart("kubelet")
    eventually(lambda: any(node["metadata"]["name"] == two.name for node in cluster.get("nodes")), 30)
    eventually(lambda: address in reservations(cluster), 60)
    assert reservations(cluster)[address]["keep"] == "Pod"
    (recreated,) = (node for node in cluster.get("nodes") if node["metadata"]["name"] == two.name)
    (was,) = (node for node in before if node["metadata"]["name"] == two.name)
    assert recreated["spec"]["podCIDR"] != was["spec"]["podCIDR"]
    box = boxes[one.name]
    assert eventually(lambda: cluster.exec(box, *FETCH, f"http://{address}").strip(), 20) == name
    cluster.all_ready()
    mine = str(box["status"]["podIP"])
    assert eventually(lambda: cluster.exec(old, *FETCH, f"http://{mine}").strip(), 20)
    messages = eventually(lambda: events(cluster, name, "AddressOutsideBlocks"), 30)
    assert len(messages) == 1, messages
    assert f"kubectl delete pod -n default {name}" in messages[0]
    assert "AddressOutsideBlocks" in cluster.kubectl("describe", "pod", name)
    for held in reservations(cluster).values():
        if held.get("keep") == "Pod":
            namespace, _, left = held["pod"].partition("/")
            cluster.kubectl("delete", "pod", "-n", namespace, left, "--wait=true")
    eventually(lambda: not any(held.get("keep") == "Pod" for held in reservations(cluster).values()), 20)
    boxes.update({found["spec"]["nodeName"]: found for found in cluster.running(TOOLBOX, len(cluster.nodes))})
    reached(cluster, boxes, list(boxes.values()))
