"""Usage of addresses in kubectl, and the right to write it: the agents' own writers against a real API server."""

from __future__ import annotations

import ipaddress
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cluster import objects
from agent.cluster import usage_objects as codec
from agent.cluster.api import ApiError, Request
from agent.cluster.kubernetes_store import MERGE
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.usage_objects import Usages
from agent.ipam import blocks
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.usage import of_one_node
from agent.model.cluster import IPBlock, Node, Snapshot
from agent.model.node_status import NodeStatus
from agent.model.problem_board import PartProblems
from agent.model.usage import BlockUsage, PoolCounts
from agent.publish.pool_status_writer import PoolStatusWriter
from agent.publish.status_inputs import StatusInputs
from agent.publish.usage_writer import UsageWriter
from agent.runtime.observable import Observable
from tests.e2e.api import apply
from tests.e2e.cluster import eventually
from tests.e2e.control import ControlPlane
from tests.e2e.test_0_rights import ONE, TWO, is_refused, server_of, stolen, store_of
from tests.networks import OPTIONS, network_of

NETWORK, BLOCK = network_of("pods"), ipaddress.ip_network("10.244.1.0/24")
SIX = ipaddress.ip_network("fd00:1::/64")
CLAIMED = IPBlock(ipaddress.ip_network("10.8.0.0/26"), ONE, "lan")


@pytest.fixture(scope="module")
def control(rights: ControlPlane) -> Iterator[ControlPlane]:
    for name, cidr in ((ONE, str(BLOCK)), (TWO, "10.244.2.0/24")):
        spec = {"podCIDR": cidr, "podCIDRs": [cidr]}
        apply(rights, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec})
    yield rights
    rights.stop()  # it is needed no more


@pytest.fixture(autouse=True)
def tidy(control: ControlPlane) -> Iterator[None]:
    yield
    control.kubectl("delete", "ipblockusages,ippools,ipblocks", "--all")


@pytest.fixture(scope="module")
def agent(control: ControlPlane) -> Usages:
    """With the token of node one's agent, once the policies are in force."""
    usages = Usages(server_of(stolen(control, ONE)))

    def is_bound() -> bool:
        usages.create(of(ONE, "10.70.1.0/24"), "u")
        usages.delete("10-70-1-0-24")
        for foreign in (of(TWO, "10.70.2.0/24"), of(ONE, "10.244.2.0/24")):
            with pytest.raises(ApiError):
                usages.create(foreign, "u")
        return True

    eventually(lambda: holds(is_bound), 60)
    return usages


def holds(check: Any) -> bool:
    try:
        return bool(check())
    except pytest.fail.Exception:
        return False


def of(node: str, cidr: str, **more: Any) -> BlockUsage:
    block = ipaddress.ip_network(cidr)
    name = cidr.replace(".", "-").replace("/", "-")
    return replace(BlockUsage(name, node, "podCIDR", block, 0, 0, 253, ()), **more)


def rows(control: ControlPlane, *argv: str) -> list[list[str]]:
    """The lines of a table, without its head and the age."""
    return [line.split()[:-1] for line in control.kubectl("get", *argv).splitlines()[1:]]


def test_a_node_shows_its_blocks_and_its_pods(control: ControlPlane, agent: Usages, tmp_path: Path) -> None:
    apply(control, {
        "apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": "lan"},
        "spec": {"cidr": "10.8.0.0/24", "blockSize": 26},
    })  # fmt: skip
    node = json.loads(control.kubectl("get", "node", ONE, "-o", "json"))
    seen = seen_by(ONE, control, tmp_path)
    problems = PartProblems("usage")
    writer = UsageWriter(agent, seen, problems)
    for number, asked in enumerate(("10.244.1.2", "10.244.1.9", "10.8.0.7")):
        add(seen, f"shop/web-{number}", asked)
    writer.once()
    assert problems.get() == {}
    assert [line.split() for line in control.kubectl("get", "usage").splitlines()] == [
        ["NAME", "CIDR", "NODE", "POOL", "USED", "FREE"],
        ["10-244-1-0-24", "10.244.1.0/24", ONE, "podCIDR", "2", "251"],
        ["10-8-0-0-26", "10.8.0.0/26", ONE, "lan", "1", "60"],
        ["fd00-0001-0000-0000-0000-0000-0000-0000-64", "fd00:1::/64", ONE, "podCIDR", "0", str(2**63 - 1)],
    ]
    wide = control.kubectl("get", "usage", "-o", "wide")
    assert '["10.244.1.2 shop/web-0","10.244.1.9 shop/web-1"]' in wide
    owner = json.loads(control.kubectl("get", "usage", "10-8-0-0-26", "-o", "json"))["metadata"]["ownerReferences"]
    assert owner == [{"apiVersion": "v1", "kind": "Node", "name": ONE, "uid": node["metadata"]["uid"]}]

    add(seen, "shop/web-3", "10.244.1.3")
    writer.once()
    assert '["10.244.1.2 shop/web-0","10.244.1.3 shop/web-3","10.244.1.9 shop/web-1"]' in control.kubectl(
        "get", "usage", "-l", f"testcni.io/node={ONE}", "-o", "wide"
    )
    for attachment in seen.attachments.all():
        seen.attachments.remove(attachment)
    again = UsageWriter(agent, seen, problems)  # the next agent finds what this one has left
    seen.status.update(lambda s: replace(s, blocks={NETWORK: (BLOCK,)}))
    seen.snapshot_cache.snapshot.update(
        lambda s: replace(s, blocks={}, nodes={ONE: replace(s.nodes[ONE], blocks=(BLOCK,))})
    )
    again.once()
    assert rows(
        control, "usage", "-o", "custom-columns=N:.metadata.name,U:.status.used,A:.status.addresses,x:.x"
    ) == [["10-244-1-0-24", "0", "[]"]]


def seen_by(node: str, control: ControlPlane, folder: Path) -> StatusInputs:
    """Return what an agent sees that has a podCIDR of each IP version and a claimed block."""
    snapshot_cache, attachments = SnapshotCache(None), AttachmentStore(folder, 10, OPTIONS)  # type: ignore[arg-type]
    attachments.load()
    snapshot = Snapshot(True, {node: Node(node, blocks=(BLOCK, SIX))}, {}, {CLAIMED.name: CLAIMED})
    snapshot_cache.snapshot.publish(snapshot)
    return StatusInputs(
        node, snapshot_cache, Observable(NodeStatus(True, {NETWORK: (BLOCK, CLAIMED.cidr, SIX)})), attachments
    )


def add(seen: StatusInputs, pod: str, address: str) -> None:
    status = seen.status.get()
    parts = [part for part in blocks.prepared(status, NETWORK, status.blocks[NETWORK]) if part.block.version == 4]
    wanted = Attachment(pod.replace("/", "-"), "eth0", NETWORK, "/x", pod, (), "")
    seen.attachments.take(wanted, parts, [ipaddress.ip_address(address)])


def test_pools_show_used_free_and_whether_they_are_ready(
    control: ControlPlane, agent: Usages, tmp_path: Path
) -> None:
    docs = {"lan": "10.8.0.0/24", "six": "fd00:8::/64"}
    for name, cidr in docs.items():
        spec = {"cidr": cidr, **({"blockSize": 26} if name == "lan" else {})}
        apply(control, {"apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec})
    apply(control, codec.to_doc(of(ONE, "10.8.0.0/26", pool="lan", used=5, free=56), "u"))
    store = store_of(stolen(control, ONE))
    seen = StatusInputs(
        ONE, SnapshotCache(store), Observable(NodeStatus(True)), AttachmentStore(tmp_path, 10, OPTIONS)
    )
    problems = PartProblems("usage")
    stop = threading.Event()
    woken: list[int] = []
    threads = [
        threading.Thread(target=part, args=(stop,))
        for part in (seen.snapshot_cache.run, PoolStatusWriter(agent, seen, problems).run)
    ]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: seen.snapshot_cache.snapshot.get().synced, 15)
        assert len(seen.snapshot_cache.snapshot.get().pools) == 2
        seen.snapshot_cache.snapshot.listen(lambda: woken.append(1))
        expected = [
            ["lan", "10.8.0.0/24", "26", "5", "239", "True"],
            ["six", "fd00:8::/64", "0", str(2**63 - 1), "True"],
        ]
        eventually(lambda: rows(control, "ippools") == expected, 60)
        assert woken == [], "nothing of it is news for the node path"
        wrong = {"lan": "it overlaps 10.8.0.1/24 of eth0, a network of the nodes"}
        seen.status.update(lambda old: replace(old, pool_faults=wrong))
        eventually(lambda: rows(control, "pool", "lan")[0][5] == "False", 15)
        told = json.loads(control.kubectl("get", "pool", "lan", "-o", "json"))["status"]["conditions"]
        assert [(c["type"], c["reason"], c["message"]) for c in told] == [
            ("Ready", "UnusableOnNode", f"node {ONE}: {wrong['lan']}")
        ]
        assert control.kubectl("wait", "pool/six", "--for=condition=Ready", "--timeout=5s")
        assert problems.get() == {}
    finally:
        stop.set()
        seen.status.update(lambda old: replace(old, synced=False))
        for thread in threads:
            thread.join()


def test_a_range_by_hand_may_overlap_blocks_of_other_nodes(control: ControlPlane, agent: Usages) -> None:
    """Netconfs divide a subnet among all nodes, whatever else lies there; the object is named for its node."""
    theirs = IPBlock(ipaddress.ip_network("10.60.0.0/26"), TWO, "lan")
    apply(control, objects.to_doc(theirs))
    for cidr in ("10.244.0.0/16", "10.60.0.0/24"):
        block = of(ONE, cidr, pool=BlockUsage.BY_HAND)
        is_refused(lambda block=block: agent.create(block, "u"), f"of node {TWO}")  # type: ignore[misc]
        agent.create(replace(block, name=of_one_node(block.name, ONE)), "u")
    assert len(rows(control, "usage")) == 2


def test_an_agent_writes_the_usage_of_its_own_node_only(control: ControlPlane, agent: Usages) -> None:
    mine, theirs, gone = of(ONE, "10.70.1.0/24"), of(TWO, "10.70.2.0/24"), of("gone", "10.70.3.0/24")
    agent.create(mine, "u")
    agent.change(replace(mine, used=3), "u")
    for one in (theirs, gone):
        apply(control, codec.to_doc(one, "u"))
    is_refused(lambda: agent.create(replace(theirs, name="other"), "u"), "its own node only")
    is_refused(lambda: agent.change(replace(theirs, used=9), "u"), "its own node only")
    is_refused(lambda: agent.change(replace(theirs, node=ONE), "u"), "is of one node")
    is_refused(lambda: agent.delete(theirs.name), f"belongs to node {TWO}")
    is_refused(lambda: agent.create(of(ONE, "10.244.2.0/24"), "u"), f"overlaps the podCIDRs of node {TWO}")
    apply(control, {
        "apiVersion": "testcni.io/v1", "kind": "IPBlock", "metadata": {"name": "10-71-2-0-24"},
        "spec": {"cidr": "10.71.2.0/24", "node": TWO, "pool": "p"},
    })  # fmt: skip
    eventually(lambda: overlap_refused(agent), 30)  # once the policy's informer has the block
    agent.delete(gone.name)  # of a node that has no Node object
    agent.delete(mine.name)
    assert set(agent.of_node(TWO, "u")) == {theirs.name}


def overlap_refused(agent: Usages) -> bool:
    try:
        agent.create(of(ONE, "10.71.2.0/25"), "u")
    except ApiError as error:
        return f"overlaps 10.71.2.0/24 of node {TWO}" in str(error)
    agent.delete("10-71-2-0-25")
    return False


def test_an_agent_changes_nothing_of_a_pool_but_its_status(control: ControlPlane, agent: Usages) -> None:
    spec = {"cidr": "10.8.0.0/24", "blockSize": 26}
    apply(control, {"apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": "lan"}, "spec": spec})
    server = server_of(stolen(control, ONE))
    path = "/apis/testcni.io/v1/ippools/lan"
    more = {"metadata": {"labels": {"a": "b"}, "finalizers": ["example.com/x"]}, "spec": {"exclude": ["10.8.0.1"]}}
    server.ask(Request("PATCH", f"{path}/status", {}, {**more, "status": {"used": 7}}, MERGE))
    found = json.loads(control.kubectl("get", "pool", "lan", "-o", "json"))
    assert (found["spec"], found["status"]) == (spec, {"used": 7})
    assert not {"labels", "finalizers"} & found["metadata"].keys()
    is_refused(lambda: server.ask(Request("PATCH", path, {}, more, MERGE)), "403")
    nobody = Usages(server_of(stolen(control, None)))
    is_refused(lambda: nobody.write_counts("lan", PoolCounts(1, 1, 1)), "names no node")
    is_refused(lambda: nobody.create(of(ONE, "10.70.1.0/24"), "u"), "names no node")
