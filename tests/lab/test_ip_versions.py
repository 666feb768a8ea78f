"""Pools of both IP versions: a pod gets an address of each, and an exhausted one costs no blocks of the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.errors import Code
from agent.model.cluster import IPBlock
from tests.lab.lab import Lab, LabNode, Pod, lab
from tests.lab.runner import RunnerError
from tests.lab.test_metrics import value
from tests.support import eventually

CONF = {"cniVersion": "1.0.0", "name": "testcni", "type": "testcni"}
FOUR, SIX = {"cidr": "10.250.0.0/29", "blockSize": 30}, {"cidr": "fd00:250::/64", "blockSize": 126}


def put_pool(it: Lab, name: str, spec: dict[str, Any]) -> None:
    meta = {"apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": name}}
    it.put(name, {**meta, "spec": spec})


@contextmanager
def pools_of(conf: dict[str, Any], **pools: dict[str, Any]) -> Iterator[Lab]:
    """A node without podCIDRs, and these pools."""
    with lab(1, conf=conf, pod_cidrs=False, agents=False) as it:
        (it.datastore / "pool.yaml").unlink()
        for name, spec in pools.items():
            put_pool(it, name, spec)
        it.nodes[0].start_agent("--cool-down", "0", "--block-idle", "1")
        it.nodes[0].wait_ready(60)
        yield it


def blocks(it: Lab, version: int) -> list[str]:
    found = (b.cidr for b in DirectoryStore(it.datastore).list("IPBlock") if isinstance(b, IPBlock))
    return sorted(str(cidr) for cidr in found if cidr.version == version)


def counted(node: LabNode) -> dict[str, tuple[int, int]]:
    """Used and free addresses by IP version; empty while status and metrics differ, as they are asked apart."""
    (network,) = node.ask()["networks"]
    counts: dict[str, dict[str, int]] = network["addresses"]
    metrics = {f: {s: value(node, "testcni_addresses", family=f, state=s) for s in counts[f]} for f in counts}
    return {f: (count["used"], count["free"]) for f, count in counts.items()} if metrics == counts else {}


def versions(pod: Pod) -> list[int]:
    return [ip_address(entry["address"].partition("/")[0]).version for entry in pod.result["ips"]]


def test_each_pod_gets_an_address_of_each_pools_ip_version_or_the_reason() -> None:
    with pools_of(CONF, four=FOUR, six=SIX) as it:
        (node,) = it.nodes
        pods = [node.add_pod(f"p{n}") for n in range(2)]  # a block of IPv4 has one address for a pod
        eventually(lambda: counted(node) == {"ipv4": (2, 0), "ipv6": (2, 0)})
        assert [versions(pod) for pod in pods] == [[4, 6], [4, 6]]
        assert len(blocks(it, 4)) == 2
        began = time.monotonic()
        with pytest.raises(RunnerError, match=r"no block is left in four \(10\.250\.0\.0/29\)") as caught:
            node.add_pod("late")
        assert caught.value.code == Code.ADDRESSES
        assert time.monotonic() - began < 20, "it is known that there is none"
        assert len(blocks(it, 6)) == 1, "the ADD was short of IPv4 only"
        node.delete_pod(pods[0])
        assert versions(node.add_pod("late")) == [4, 6]
        assert (len(blocks(it, 4)), len(blocks(it, 6))) == (2, 1)


def test_a_mode_that_carries_ipv4_only_leaves_an_ipv6_pool_alone() -> None:
    with pools_of({**CONF, "mode": "vxlan"}, four=FOUR, six=SIX) as it:
        (node,) = it.nodes
        for n in range(2):
            assert versions(node.add_pod(f"p{n}")) == [4]
        eventually(lambda: counted(node) == {"ipv4": (2, 0)})
        with pytest.raises(RunnerError, match="no block is left in four"):
            node.add_pod("late")
        assert blocks(it, 6) == []
        assert "IPv6" not in str(node.problems())
