"""Usage of addresses on a cluster at work, as kubectl shows it: blocks, podCIDRs, pods of addresses, and pools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import DEFAULT, Cluster, eventually
from tests.e2e.conftest import MODE
from tests.e2e.workload import container, pod

POOL = "shown"
SPEC = {"cidr": "10.250.0.0/24", "blockSize": 26}


def rows(cluster: Cluster, *argv: str) -> list[dict[str, str]]:
    """The lines of a table by the names of its columns; cells begin where the name does, and may be empty."""
    head, *lines = cluster.kubectl("get", *argv).splitlines()
    columns = [(found.group(), found.start()) for found in re.finditer(r"\S+", head)]
    ends = [begin for _name, begin in columns[1:]] + [None]
    return [
        {name: line[begin:end].strip() for (name, begin), end in zip(columns, ends, strict=True)} for line in lines
    ]


def own_addresses(cluster: Cluster) -> set[str]:
    """`ADDRESS NAMESPACE/POD` of each pod that has an address of its own."""
    running = (p for p in cluster.get("pods", "-A") if p["status"]["phase"] == "Running")
    pods = (p for p in running if not p["spec"].get("hostNetwork"))
    return {f"{p['status']['podIP']} {p['metadata']['namespace']}/{p['metadata']['name']}" for p in pods}


def usage(cluster: Cluster) -> list[dict[str, Any]]:
    return [{**one["spec"], **one["status"]} for one in cluster.get("usage")]


@pytest.mark.usefixtures("boxes")
def test_every_block_is_listed_with_its_pods(cluster: Cluster) -> None:
    def missing() -> set[str]:
        return {entry for one in usage(cluster) for entry in one["addresses"]} ^ own_addresses(cluster)

    eventually(lambda: not missing(), 30)
    found = usage(cluster)
    assert {one["node"] for one in found} == {node.name for node in cluster.nodes}
    blocks = {one["spec"]["cidr"]: one["spec"]["pool"] for one in cluster.get("ipblocks")}
    for one in found:
        assert one["used"] == len(one["addresses"])
        if "cidr" in one:  # else they are in no block of the node
            assert one["pool"] == blocks.get(one["cidr"], "podCIDR")
    if cluster.mode == DEFAULT:
        cidrs = {n["metadata"]["name"]: n["spec"]["podCIDR"] for n in cluster.get("nodes")}
        shown = {row["NODE"]: row for row in rows(cluster, "usage", "-l", "testcni.io/pool=podCIDR")}
        for name, cidr in cidrs.items():
            row = shown[name]
            kept = next(one["reserved"] for one in found if one.get("cidr") == cidr)  # by tests before this one
            assert (row["CIDR"], row["POOL"], int(row["USED"]) + int(row["FREE"]) + kept) == (cidr, "podCIDR", 253)
    wide = cluster.kubectl("get", "usage", "-o", "wide")
    assert all(address in wide for address in own_addresses(cluster))


@pytest.fixture
def shown(cluster: Cluster) -> Iterator[str]:
    """A pool that a pod asks for by name."""
    cluster.apply({"apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": POOL}, "spec": SPEC})
    doc = pod("asks", container("sleep", "36000"))
    doc["metadata"]["annotations"] = {"testcni.io/pool": POOL}
    cluster.apply(doc)
    (found,) = cluster.running("app=asks", 1)
    yield str(found["status"]["podIP"])
    cluster.kubectl("delete", "pod", "asks")
    cluster.kubectl("delete", "ippool", POOL)
    cluster.kubectl("delete", "ipblocks", "--all")


@pytest.mark.skipif(MODE != DEFAULT, reason="once is enough")
def test_a_pool_shows_what_is_used_and_that_it_is_ready(cluster: Cluster, shown: str) -> None:
    entry = f"{shown} default/asks"
    eventually(lambda: entry in str([one for one in usage(cluster) if one.get("pool") == POOL]), 30)
    expected = {"NAME": POOL, "CIDR": SPEC["cidr"], "BLOCK": "26", "USED": "1", "FREE": "243", "READY": "True"}
    eventually(lambda: expected.items() <= rows(cluster, "ippool", POOL)[0].items(), 90)
    (node,) = (one["node"] for one in usage(cluster) if one.get("pool") == POOL)
    owner = json.loads(cluster.kubectl("get", "node", node, "-o", "json"))["metadata"]["uid"]
    found = cluster.get("usage", "-l", f"testcni.io/node={node}")
    assert {ref["uid"] for one in found for ref in one["metadata"]["ownerReferences"]} == {owner}
