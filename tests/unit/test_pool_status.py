"""The status of IPPools: who writes it and when, that agents agree, and that no pod's node path is woken by it."""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from agent.cluster import objects, pool_status_object
from agent.cluster import usage_objects as codec
from agent.cluster.api import Api
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import Deleted, Listed, StatusChanged, Upserted
from agent.cluster.usage_objects import Usages
from agent.ipam import pool_faults
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.model.cluster import IPBlock, IPPool, Node, Snapshot
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.model.usage import BlockUsage, Condition, PoolCounts, PoolStatus
from agent.modes.parent.options import MACVLAN
from agent.publish.pool_status_writer import ON_NODE, UNUSABLE, USABLE, PoolStatusWriter, condition
from agent.publish.status_inputs import StatusInputs
from agent.runtime.observable import Observable
from tests.fake_clock import FakeClock
from tests.networks import OPTIONS, network_of
from tests.unit.awkward import Answer, Asked, Awkward, config

PODS, LAN = (
    IPPool(name, ipaddress.ip_network(cidr), 24)
    for name, cidr in (("pods", "10.8.0.0/22"), ("lan", "10.9.0.0/24"))
)
BLOCK = IPBlock(ipaddress.ip_network("10.8.1.0/24"), "n0", "pods")
OK = Condition(True, USABLE, "its range has no known fault")


class Cluster:
    """An API server with pools and usage, and the writers of some nodes, which see each write at once."""

    def __init__(self, folder: Any, nodes: int, clock: FakeClock) -> None:
        self.clock = clock
        self.refuse: dict[str, int] = {}
        self.status: dict[str, dict[str, Any]] = {}
        self.usages = [BlockUsage("10-8-1-0-24", "n0", "pods", BLOCK.cidr, 5, 0, 248, ())]
        self.server = Awkward(self._answer)
        self.problems = PartProblems("pool-status")
        names = [f"n{n}" for n in range(nodes)]
        snapshot = Snapshot(True, {n: Node(n) for n in names}, {"pods": PODS}, {BLOCK.name: BLOCK})
        self.inputs = [
            StatusInputs(
                n,
                SnapshotCache(None),  # type: ignore[arg-type]
                Observable(NodeStatus(True)),
                AttachmentStore(folder, 10, OPTIONS),
            )
            for n in names
        ]
        for seen in self.inputs:
            seen.snapshot_cache.snapshot.publish(snapshot)
            seen.snapshot_cache.pool_status.publish({"pods": PoolStatus()})
        api = Api(lambda: config(self.server.port, "t"))
        self.writers = [PoolStatusWriter(Usages(api), seen, self.problems, clock) for seen in self.inputs]

    def _answer(self, asked: Asked) -> Answer:
        if asked.method in self.refuse:
            return self.refuse[asked.method], {"message": "because"}
        if asked.method == "GET":
            items = [codec.to_doc(one, "u") for one in self.usages]
            return 200, {"metadata": {}, "items": items}
        name = asked.path.split("/")[-2]
        if name not in self.inputs[0].snapshot_cache.snapshot.get().pools:
            return 404, {"message": "not found"}
        self.status.setdefault(name, {}).update(asked.body["status"])
        for seen in self.inputs:
            read = pool_status_object.read(self.status[name])
            seen.snapshot_cache.pool_status.update(lambda known, read=read: {**known, name: read})  # type: ignore[misc]
        return 200, {}

    def pools(self, *pools: IPPool) -> None:
        for seen in self.inputs:
            seen.snapshot_cache.snapshot.update(lambda s: replace(s, pools={p.name: p for p in pools}))
            seen.snapshot_cache.pool_status.update(lambda k: {p.name: k.get(p.name, PoolStatus()) for p in pools})

    def wrong(self, node: int, **faults: str) -> None:
        status = self.inputs[node].status
        status.update(lambda old: replace(old, pool_faults=faults))

    def run(self, seconds: float) -> list[Asked]:
        """Let that much time pass; what was asked of the API server."""
        self.server.asked.clear()
        end = self.clock.time + seconds
        while self.clock.time < end:
            for writer in random.sample(self.writers, len(self.writers)):
                writer.round()
            self.clock.time += 0.5
        return list(self.server.asked)

    def shown(self, name: str = "pods") -> tuple[PoolCounts | None, Condition | None]:
        status = pool_status_object.read(self.status.get(name))
        return status.counts, status.condition and replace(status.condition, since="")


Make = Callable[[int], Cluster]


@pytest.fixture
def cluster(tmp_path: Any) -> Iterator[Make]:
    clock, made = FakeClock(), []
    random.seed(7)

    def make(nodes: int) -> Cluster:
        made.append(Cluster(tmp_path, nodes, clock))
        return made[-1]

    yield make
    for one in made:
        one.server.close()


def test_a_pool_is_counted_and_ready_within_seconds(cluster: Make) -> None:
    it = cluster(2)
    it.run(5)
    assert it.shown() == (PoolCounts(5, 4 * 253 - 5, 1), OK)
    assert it.status["pods"]["conditions"][0]["lastTransitionTime"].endswith("Z")


def test_what_is_right_is_not_written_again_and_counted_by_one_agent_a_minute(cluster: Make) -> None:
    it = cluster(20)
    it.run(60)
    asked = it.run(1800)
    assert {one.method for one in asked} == {"GET"}, "no write of what is right"
    assert 20 < len(asked) < 90, "without a write nobody's pause begins anew: two looks a minute in the mean"


def test_who_sees_that_another_has_written_begins_its_pause_again(cluster: Make) -> None:
    it = cluster(4)
    it.run(60)
    looks = 0
    for used in range(30):  # of a cluster at work each look is a write
        it.usages = [replace(it.usages[0], used=used)]
        looks += sum(one.method == "GET" for one in it.run(60))
    assert looks < 30 * 1.5
    counts, _ready = it.shown()
    assert counts
    assert counts.used > 25


def test_two_nodes_count_within_a_minute(cluster: Make) -> None:
    it = cluster(2)
    it.run(10)
    it.usages = [replace(it.usages[0], used=9)]
    it.run(61)
    assert it.shown()[0] == PoolCounts(9, 4 * 253 - 9, 1)


def test_a_fault_of_the_cluster_is_told_once_and_taken_back(cluster: Make) -> None:
    it = cluster(5)
    it.run(60)
    it.pools(PODS, replace(PODS, name="twin"))
    asked = it.run(5)
    ready = it.shown()[1]
    assert ready == Condition(False, UNUSABLE, "it overlaps 10.8.0.0/22 of IPPool twin")
    assert sum(one.path.endswith("/pods/status") for one in asked) == 1, "one agent writes"
    since = it.status["pods"]["conditions"][0]["lastTransitionTime"]
    assert it.shown("twin")[1] == Condition(False, UNUSABLE, "it overlaps 10.8.0.0/22 of IPPool pods")
    it.pools(PODS)
    it.run(40)
    assert it.shown()[1] == OK
    assert it.status["pods"]["conditions"][0]["lastTransitionTime"] >= since


def test_a_fault_that_one_node_sees_stays_until_that_node_takes_it_back(cluster: Make) -> None:
    it = cluster(3)
    it.run(60)
    it.wrong(1, pods="it overlaps 192.0.2.1/24 of eth0, a network of the nodes")
    it.run(5)
    told = Condition(False, ON_NODE, "node n1: it overlaps 192.0.2.1/24 of eth0, a network of the nodes")
    assert it.shown()[1] == told
    it.wrong(2, pods="it overlaps 192.0.2.2/24 of eth0, a network of the nodes")
    assert [one.method for one in it.run(300) if one.method != "GET"] == [], "two nodes do not write by turns"
    it.wrong(1)
    it.run(40)
    assert it.shown()[1] == replace(told, message=told.message.replace("n1", "n2").replace("2.1/", "2.2/"))
    for seen in it.inputs:
        seen.snapshot_cache.snapshot.update(lambda s: replace(s, nodes={"n0": Node("n0"), "n1": Node("n1")}))
    it.writers.pop()  # of node n2, which is gone
    it.run(40)
    assert it.shown()[1] == OK


@pytest.mark.parametrize(
    ("known", "everywhere", "here", "expected"),
    [
        (None, "", "", OK),
        (None, "bad", "worse", Condition(False, UNUSABLE, "bad")),
        (None, "", "bad", Condition(False, ON_NODE, "node n0: bad")),
        (Condition(False, UNUSABLE, "bad"), "", "", OK),
        (Condition(False, ON_NODE, "node n0: bad"), "", "", OK),
        (Condition(False, ON_NODE, "node n0: bad"), "", "else", Condition(False, ON_NODE, "node n0: else")),
        (Condition(False, ON_NODE, "node n1: bad"), "", "", Condition(False, ON_NODE, "node n1: bad")),
        (Condition(False, ON_NODE, "node n1: bad"), "all", "", Condition(False, UNUSABLE, "all")),
        (Condition(False, ON_NODE, "node gone: bad"), "", "", OK),
        (Condition(False, ON_NODE, "nonsense"), "", "", OK),
    ],
)
def test_what_the_condition_should_be(
    known: Condition | None, everywhere: str, here: str, expected: Condition
) -> None:
    snapshot = Snapshot(True, {"n0": Node("n0"), "n1": Node("n1")})
    assert condition(known, "n0", everywhere, here, snapshot) == expected


def test_agents_that_never_agree_do_not_write_all_the_time(cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    it = cluster(2)
    it.run(60)
    monkeypatch.setattr(it.writers[0]._faults, "look", lambda *_: {"pods": "of another version"})
    asked = it.run(900)
    assert sum(one.method == "PATCH" for one in asked) < 2 * 900 / 30


@pytest.mark.parametrize("refused", [{"PATCH": 403}, {"GET": 404}, {"PATCH": 404}])
def test_older_manifests_are_one_problem_which_ends(cluster: Make, refused: dict[str, int]) -> None:
    it = cluster(2)
    it.refuse = refused
    it.run(59)
    assert it.problems.get() == {}, "the API server of a new cluster refuses for half a minute, too"
    asked = it.run(600)
    (problem,) = it.problems.get().values()
    assert isinstance(problem, Problem)
    assert "kubectl apply -f manifests/" in problem.remedy
    assert len(asked) < 60, "and the API server is not asked all the time"
    it.refuse = {}
    it.run(700)
    assert it.problems.get() == {}
    assert it.shown() == (PoolCounts(5, 4 * 253 - 5, 1), OK)


def test_a_server_that_is_away_is_no_problem(cluster: Make) -> None:
    it = cluster(2)
    it.refuse = {"GET": 503, "PATCH": 503}
    it.run(300)
    assert it.problems.get() == {}
    it.refuse = {}
    it.run(700)
    assert it.shown()[1] == OK


def test_a_bug_does_not_end_the_agent(cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    it = cluster(1)
    with monkeypatch.context() as patched:
        patched.setattr(it.writers[0]._faults, "look", lambda *_: 1 / 0)
        it.run(30)
        assert "internal error" in str(it.problems.get())
    it.run(60)
    assert it.problems.get() == {}
    assert it.shown()[1] == OK


def test_a_pool_that_has_just_been_deleted_is_no_problem_and_keeps_no_other(cluster: Make) -> None:
    it = cluster(1)
    for seen in it.inputs:
        known = {"gone": PoolStatus(), "pods": PoolStatus()}
        seen.snapshot_cache.pool_status.publish(known)
        seen.snapshot_cache.snapshot.update(lambda s: replace(s, pools={"pods": PODS}))
    it.run(20)
    assert it.shown() == (PoolCounts(5, 4 * 253 - 5, 1), OK)
    assert it.problems.get() == {}


def test_without_pools_nobody_asks_anything(cluster: Make) -> None:
    it = cluster(3)
    it.pools()
    assert it.run(600) == []


def test_no_status_is_written_on_half_a_picture(cluster: Make) -> None:
    it = cluster(1)
    it.inputs[0].status.publish(NodeStatus(False))
    assert it.run(300) == []


DOC = {
    "apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": "pods"},
    "spec": {"cidr": "10.8.0.0/22", "blockSize": 24},
}  # fmt: skip
GOOD = {
    "used": 1,
    "free": 2,
    "blocks": 3,
    **pool_status_object.condition_doc(replace(OK, since="2026-01-31T00:00:00Z")),
}


def test_a_status_is_read_as_it_was_written() -> None:
    pool = objects.parse({**DOC, "status": json.loads(json.dumps(GOOD))})
    assert isinstance(pool, IPPool)
    assert pool.status == PoolStatus(PoolCounts(1, 2, 3), replace(OK, since="2026-01-31T00:00:00Z"))
    assert pool == PODS, "a pool with another status is the same pool"
    assert objects.to_doc(pool) == DOC


@pytest.mark.parametrize(
    "status",
    [7, [], "x", {"used": "1"}, {"used": True, "free": 1, "blocks": 1}, {"used": 1}, {"conditions": 7},
     {"conditions": [7]}, {"conditions": [{"type": "Ready"}]}, {"conditions": [{"type": "x", "status": "True"}]},
     {"used": 2**70, "free": 0, "blocks": 0}, {"conditions": [{**GOOD["conditions"][0], "status": 7}]}],
)  # fmt: skip
def test_a_status_that_can_not_be_read_costs_only_itself(status: object) -> None:
    pool = objects.parse({**DOC, "status": status})
    assert pool == PODS
    assert isinstance(pool, IPPool)
    assert pool.status == PoolStatus()


def test_a_status_alone_wakes_nobody_but_who_follows_it() -> None:
    snapshot_cache = SnapshotCache(None)  # type: ignore[arg-type]
    woken: list[str] = []
    snapshot_cache.deliver([Listed("IPPool", (PODS, LAN))])
    snapshot_cache.snapshot.listen(lambda: woken.append("snapshot"))
    snapshot_cache.pool_status.listen(lambda: woken.append("status"))
    counted = PoolStatus(PoolCounts(1, 2, 3))
    snapshot_cache.deliver([StatusChanged(replace(PODS, status=counted))])
    assert woken == ["status"]
    assert snapshot_cache.pool_status.get() == {"pods": counted, "lan": PoolStatus()}
    snapshot_cache.deliver([StatusChanged(replace(PODS, status=counted))])
    assert woken == ["status"]
    snapshot_cache.deliver([Upserted(replace(PODS, block_size=26)), Deleted("IPPool", "lan")])
    assert snapshot_cache.pool_status.get() == {"pods": PoolStatus()}
    assert "snapshot" in woken


def test_nodes_with_different_networks_agree_on_a_pool_among_the_nodes(cluster: Make) -> None:
    """Which networks pods are on differs from node to node, as NetworkAttachmentDefinitions do."""
    it = cluster(6)
    subnet = ipaddress.ip_network("192.0.2.0/24")
    lan = network_of("lan", MACVLAN, subnet, link_mode="bridge", range_start=subnet[10], range_end=subnet[20])
    it.run(60)
    nodes = {seen.node: Node(seen.node, (subnet[n + 1],)) for n, seen in enumerate(it.inputs)}
    for seen in it.inputs:
        seen.snapshot_cache.snapshot.update(lambda s: replace(s, nodes=nodes))
    it.pools(PODS, IPPool("lan", subnet, 28))
    for number, seen in enumerate(it.inputs):  # what each node path says: half of them have pods of the network
        networks = (lan,) if number % 2 else ()
        faults = pool_faults.faults(seen.snapshot_cache.snapshot.get(), networks)
        blocks = dict.fromkeys(networks, (subnet,))
        seen.status.update(lambda s, b=blocks, f=faults: replace(s, blocks=b, pool_faults=f))  # type: ignore[misc]
    it.run(60)
    ready = it.shown("lan")[1]
    assert ready
    assert not ready.ok, "it is of no use to the nodes where no such pods are"
    assert "it contains 192.0.2.1, the InternalIP of node n0" in ready.message
    assert [one.path for one in it.run(600) if one.method != "GET"] == [], "agents do not write by turns"
