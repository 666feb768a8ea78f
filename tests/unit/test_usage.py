"""Which addresses are in use, as people see it: what is counted, what is written, and how seldom."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cluster import usage_objects as codec
from agent.cluster.api import Api
from agent.cluster.objects import NAME
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.usage_objects import Usages
from agent.ipam import blocks, usage
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.model.cluster import IPBlock, Node, Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.model.usage import BlockUsage
from agent.publish.status_inputs import StatusInputs
from agent.publish.usage_writer import UsageWriter
from agent.runtime.observable import Observable
from tests.fake_clock import FakeClock
from tests.networks import OPTIONS, network_of
from tests.support import net
from tests.unit.awkward import Answer, Asked, Awkward, config

NETWORK = network_of("pods")
BLOCK, CLAIMED, FAR = net("10.244.1.0/24"), net("10.9.0.0/28"), net("10.9.0.16/28")
PATH = "/apis/testcni.io/v1/ipblockusages"


class Kube:
    """An API server that keeps IPBlockUsages, and may refuse."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.refuse: dict[str, int] = {}
        """By method an HTTP status."""
        self.uid = "uid-1"
        self.server = Awkward(self._answer)

    def _answer(self, asked: Asked) -> Answer:
        if asked.method in self.refuse:
            return self.refuse[asked.method], {"message": "because"}
        if asked.path == "/api/v1/nodes":
            assert asked.query == {"fieldSelector": "metadata.name=one"}
            return 200, {"items": [{"metadata": {"uid": self.uid}}] if self.uid else []}
        if asked.method == "GET":
            return 200, {"metadata": {}, "items": list(self.objects.values())}
        return self._write(asked)

    def _write(self, asked: Asked) -> Answer:
        created = asked.method == "POST"
        name = asked.body["metadata"]["name"] if created else asked.path.removeprefix(f"{PATH}/")
        if created == (name in self.objects):
            return (409, {"message": "already exists"}) if created else (404, {"message": "not found"})
        if asked.method == "DELETE":
            del self.objects[name]
            return 200, {}
        self.objects[name] = asked.body
        return 200, asked.body

    def writes(self) -> list[tuple[str, str]]:
        """What was written since the last call."""
        asked = [one for one in self.server.asked if one.method != "GET"]
        self.server.asked.clear()
        return [
            (one.method, (one.body or {}).get("metadata", {}).get("name") or one.path[len(PATH) + 1 :])
            for one in asked
        ]


class Parts:
    """A writer of node one, the cluster that it sees, and the node's pods."""

    def __init__(self, folder: Path) -> None:
        self.kube = Kube()
        self.snapshot_cache = SnapshotCache(None)  # type: ignore[arg-type]
        self.attachments = AttachmentStore(folder, 10, OPTIONS)
        self.attachments.load()
        self.status: Observable[NodeStatus] = Observable(NodeStatus(True, {NETWORK: (BLOCK,)}))
        self.problems = PartProblems("usage")
        self.see(Snapshot(True, {"one": Node("one", blocks=(BLOCK,))}))
        api = Api(lambda: config(self.kube.server.port, "t"))
        self.inputs = StatusInputs("one", self.snapshot_cache, self.status, self.attachments)
        self.clock = FakeClock()
        self.writer = UsageWriter(Usages(api), self.inputs, self.problems, self.clock)

    def see(self, snapshot: Snapshot) -> None:
        self.snapshot_cache.snapshot.publish(snapshot)

    def add(self, pod: str, network: Network = NETWORK, asked: str = "") -> Attachment:
        status = self.status.get()
        wanted = Attachment(pod.replace("/", "-"), "eth0", network, "/x", pod, (), "")
        parts = blocks.prepared(status, network, status.blocks[network])
        return self.attachments.take(wanted, parts, [ipaddress.ip_address(asked)] if asked else [])

    def shown(self, name: str) -> dict[str, Any]:
        doc = self.kube.objects[name]
        return {**doc["spec"], **doc["status"]}


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    it = Parts(tmp_path)
    yield it
    it.kube.server.close()


def test_a_pod_cidr_is_listed_with_its_pods(parts: Parts) -> None:
    parts.add("shop/web-0")
    gone = parts.add("shop/web-1")
    parts.add("shop/web-2", asked="10.244.1.200")
    parts.attachments.remove(gone)
    parts.writer.once()
    assert parts.shown("10-244-1-0-24") == {
        "node": "one", "cidr": "10.244.1.0/24", "pool": "podCIDR", "used": 2, "reserved": 0,
        "free": 251, "addresses": ["10.244.1.2 shop/web-0", "10.244.1.200 shop/web-2"],
    }  # fmt: skip
    metadata = parts.kube.objects["10-244-1-0-24"]["metadata"]
    assert metadata["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": "one", "uid": "uid-1"}]
    assert metadata["labels"] == {"testcni.io/node": "one", "testcni.io/pool": "podCIDR"}


def test_a_hundred_pods_are_one_write_and_an_idle_node_writes_nothing(parts: Parts) -> None:
    parts.writer.once()
    assert parts.kube.writes() == [("POST", "10-244-1-0-24")]
    for n in range(100):
        parts.add(f"default/p{n}")
    parts.writer.once()
    assert parts.kube.writes() == [("PATCH", "10-244-1-0-24")]
    for _ in range(3):
        parts.writer.once()
    assert parts.kube.server.asked == [], "what does not change costs no request"


def test_a_claimed_block_comes_and_goes_and_others_stay(parts: Parts) -> None:
    claimed = IPBlock(CLAIMED, "one", "lan")
    before = parts.snapshot_cache.snapshot.get()
    both = replace(before, blocks={claimed.name: claimed, "x": IPBlock(FAR, "two", "lan")})
    parts.see(both)
    parts.status.publish(NodeStatus(True, {NETWORK: (BLOCK, CLAIMED)}))
    parts.writer.once()
    assert sorted(parts.kube.objects) == ["10-244-1-0-24", "10-9-0-0-28"]
    assert (parts.shown("10-9-0-0-28")["pool"], parts.shown("10-9-0-0-28")["free"]) == ("lan", 13)
    parts.status.publish(NodeStatus(True, {NETWORK: (BLOCK,)}))  # it is about to be given back
    parts.writer.once()
    assert "10-9-0-0-28" in parts.kube.objects, "it is the node's as long as the IPBlock is there"
    parts.see(before)
    parts.kube.writes()
    parts.writer.once()
    assert parts.kube.writes() == [("DELETE", "10-9-0-0-28")]
    assert sorted(parts.kube.objects) == ["10-244-1-0-24"]


def test_a_block_that_the_snapshot_does_not_have_yet_is_not_listed(parts: Parts) -> None:
    parts.status.publish(NodeStatus(True, {NETWORK: (BLOCK, CLAIMED)}))
    parts.writer.once()
    assert list(parts.kube.objects) == ["10-244-1-0-24"]


def test_a_node_that_is_not_ready_for_a_moment_deletes_nothing(parts: Parts) -> None:
    parts.writer.once()
    for status in (NodeStatus(False, {NETWORK: (BLOCK,)}), NodeStatus(True, {})):
        parts.status.publish(status)
        parts.writer.once()
    parts.see(Snapshot(False))
    parts.writer.once()
    assert list(parts.kube.objects) == ["10-244-1-0-24"]


def test_addresses_off_block_have_an_object_of_the_node(parts: Parts) -> None:
    guest = network_of("pods", subnet=net("10.9.0.0/16"))
    parts.status.publish(NodeStatus(True, {NETWORK: (BLOCK,), guest: (net("10.9.0.7/32"),)}))
    block = net("10.9.0.7/32")
    wanted = Attachment("c", "eth0", guest, "/x", "shop/db-0", (), "", owner="shop/db-0")
    parts.attachments.take(
        wanted, blocks.ranges(guest, (net("10.9.0.0/24"),), frozenset(), frozenset()), [block[0]]
    )
    parts.status.publish(NodeStatus(True, {NETWORK: (BLOCK,)}))
    parts.writer.once()
    assert parts.shown("off-block.one") == {
        "node": "one", "used": 1, "reserved": 0, "addresses": ["10.9.0.7 shop/db-0"],
    }  # fmt: skip


def test_pods_of_a_pod_cidr_that_the_node_lost_are_off_block(parts: Parts) -> None:
    parts.add("a/old")
    other = net("10.244.7.0/24")
    parts.see(Snapshot(True, {"one": Node("one", blocks=(other,))}))
    parts.status.publish(NodeStatus(True, {NETWORK: (other,)}))
    parts.writer.once()
    assert sorted(parts.kube.objects) == ["10-244-7-0-24", "off-block.one"]
    assert parts.shown("off-block.one")["addresses"] == ["10.244.1.2 a/old"]


def test_ranges_that_netconfs_divide_by_hand_have_a_name_on_each_node(parts: Parts) -> None:
    lan = network_of(
        "lan", "macvlan", net("192.0.2.0/24"), link_mode="bridge",
        range_start=ipaddress.ip_address("192.0.2.10"), range_end=ipaddress.ip_address("192.0.2.19"),
    )  # fmt: skip
    parts.status.publish(NodeStatus(True, {lan: (net("192.0.2.0/24"),)}))
    parts.add("a/cam", lan)
    parts.writer.once()
    shown = parts.shown("192-0-2-0-24.one")
    assert (shown["pool"], shown["used"], shown["free"]) == ("netconf", 1, 9)


def test_a_list_that_is_too_long_says_how_many_are_left_out(parts: Parts) -> None:
    large = network_of("pods", subnet=net("10.0.0.0/16"))
    parts.see(Snapshot(True, {"one": Node("one", blocks=(net("10.0.0.0/16"),))}))
    parts.status.publish(NodeStatus(True, {large: (net("10.0.0.0/16"),)}))
    for n in range(300):
        parts.add(f"a/p{n}", large)
    parts.writer.once()
    shown = parts.shown("10-0-0-0-16")
    assert (shown["used"], len(shown["addresses"]), shown["addresses"][-1]) == (300, 257, "and 44 more")
    assert shown["addresses"][255].startswith("10.0.1.1 ")


def test_reserved_addresses_of_a_block_are_not_free(parts: Parts) -> None:
    parts.attachments.set_reserved(
        frozenset({ipaddress.ip_address("10.244.1.9"), ipaddress.ip_address("10.99.0.9")})
    )
    parts.writer.once()
    shown = parts.shown("10-244-1-0-24")
    assert (shown["used"], shown["reserved"], shown["free"]) == (0, 1, 252)


def test_an_ipv6_block_has_more_addresses_than_an_integer_holds(parts: Parts) -> None:
    six = net("fd00:1::/64")
    parts.see(Snapshot(True, {"one": Node("one", blocks=(six,))}))
    parts.status.publish(NodeStatus(True, {NETWORK: (six,)}))
    parts.writer.once()
    (doc,) = parts.kube.objects.values()
    assert doc["status"]["free"] == 2**63 - 1


@pytest.mark.parametrize("refused", [{"GET": 404}, {"GET": 403}, {"POST": 403}])
def test_older_manifests_are_one_problem_which_ends(parts: Parts, refused: dict[str, int]) -> None:
    """A new cluster is none: its API server takes up to half a minute until kinds, rights and policies hold."""
    parts.kube.refuse = refused
    for seconds in (0, 30, 29):
        parts.clock.time += seconds
        parts.writer.once()
    assert parts.problems.get() == {}
    parts.clock.time += 1
    parts.writer.once()
    (problem,) = parts.problems.get().values()
    assert isinstance(problem, Problem)
    assert "kubectl apply -f manifests/" in problem.remedy
    parts.kube.refuse = {}
    parts.writer.once()
    assert parts.problems.get() == {}
    assert "10-244-1-0-24" in parts.kube.objects


def test_a_server_that_is_away_is_no_problem_and_is_asked_less_and_less(parts: Parts) -> None:
    parts.kube.refuse = {"GET": 503}
    pauses = [parts.writer.round() for _ in range(12)]
    assert pauses[:3] == [5, 10, 20]
    assert pauses[-1] == 300
    assert parts.problems.get() == {}


def test_a_bug_does_not_end_the_agent(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(usage, "of_node", lambda *_: 1 / 0)
        assert parts.writer.round() == 5
    (problem,) = parts.problems.get().values()
    assert "internal error" in problem.what
    parts.writer.round()
    assert parts.problems.get() == {}


def test_one_object_that_is_refused_keeps_no_other(parts: Parts) -> None:
    claimed = IPBlock(CLAIMED, "one", "lan")
    parts.see(Snapshot(True, {"one": Node("one", blocks=(BLOCK,))}, {}, {claimed.name: claimed}))
    foreign = BlockUsage("10-244-1-0-24", "two", "podCIDR", BLOCK, 0, 0, 253, ())
    parts.kube.objects[foreign.name] = codec.to_doc(foreign, "uid-2")
    for _ in range(3):
        parts.writer.once()
    assert parts.shown("10-9-0-0-28")["node"] == "one"
    assert parts.shown("10-244-1-0-24")["node"] == "two", "another node's object stays"
    del parts.kube.objects[foreign.name]
    parts.writer.once()
    assert parts.shown("10-244-1-0-24")["node"] == "one"


@pytest.mark.parametrize(
    "damage", [{"status": 7}, {"spec": {}}, {"status": {"used": -1}}, {"status": {"addresses": [7]}}]
)
def test_what_an_earlier_agent_left_is_put_right_and_removed(parts: Parts, damage: dict[str, Any]) -> None:
    mine = BlockUsage("10-244-1-0-24", "one", "podCIDR", BLOCK, 9, 0, 1, ("10.244.1.2 a/gone",))
    parts.kube.objects[mine.name] = {**codec.to_doc(mine, "u"), **damage}
    old = BlockUsage("10-77-0-0-24", "one", "lan", net("10.77.0.0/24"), 0, 0, 1, ())
    parts.kube.objects[old.name] = {**codec.to_doc(old, "u"), **damage}
    parts.writer.once()
    assert list(parts.kube.objects) == [mine.name]
    assert parts.shown(mine.name)["used"] == 0


def test_objects_that_are_deleted_are_made_again_for_the_node_of_that_time(parts: Parts) -> None:
    parts.writer.once()
    parts.kube.objects.clear()  # as the garbage collector does when the Node goes
    parts.kube.uid = "uid-2"
    parts.add("a/b")
    for _ in range(2):
        parts.writer.once()
    (doc,) = parts.kube.objects.values()
    assert doc["metadata"]["ownerReferences"][0]["uid"] == "uid-2"
    assert parts.problems.get() == {}, "nobody need do anything about it"
    parts.kube.uid = ""
    parts.see(Snapshot(True, {}))
    parts.kube.objects.clear()
    parts.writer.once()
    parts.see(Snapshot(True, {"one": Node("one", blocks=(BLOCK,))}))
    parts.writer.once()
    assert parts.kube.objects == {}, "the Node is gone again: nothing is made that nobody would delete"


@pytest.mark.parametrize("collected", [True, False])
def test_objects_follow_a_node_that_is_made_again_between_two_looks(parts: Parts, *, collected: bool) -> None:
    """No look finds the node without its object, and nothing of its pods has changed."""
    parts.writer.once()
    if collected:  # by the garbage collector, as their owner is gone; else it has yet to come
        parts.kube.objects.clear()
    parts.kube.uid = "uid-2"
    anew = Node("one", created="2026-01-01T00:01:00Z")  # it gets its podCIDR a moment later
    for node in (anew, replace(anew, blocks=(BLOCK,))):
        parts.see(Snapshot(True, {"one": node}))
    parts.kube.writes()
    parts.writer.once()
    parts.writer.once()
    (doc,) = parts.kube.objects.values()
    assert [owner["uid"] for owner in doc["metadata"]["ownerReferences"]] == ["uid-2"]
    assert len(parts.kube.writes()) == 1, "and it is written once"


def test_a_node_with_the_longest_name_has_objects_of_its_own() -> None:
    name = ".".join(["n" * 63] * 4)[:253]
    first = ipaddress.ip_address("192.0.2.10")
    lan = network_of("lan", "macvlan", net("192.0.2.0/24"), link_mode="bridge", range_start=first)
    status = NodeStatus(True, {lan: (net("192.0.2.0/24"),)})
    pods = {ipaddress.ip_address("10.1.2.3"): "a/b"}
    found = usage.of_node(name, Snapshot(True, {name: Node(name)}), status, pods, lambda _: (0, 0, 9))
    assert len(found) == 2
    assert all(NAME.fullmatch(key) and len(key) <= 253 for key in found), sorted(found)


def test_what_is_written_can_be_read() -> None:
    for one in (
        BlockUsage("a", "one", "podCIDR", BLOCK, 3, 1, 9, ("10.244.1.2 a/b",)),
        BlockUsage("off-block.one", "one", "", None, 1, 0, None, ()),
    ):
        assert codec.read(codec.to_doc(one, "uid")) == one


def test_a_name_that_is_too_long_for_a_label_is_a_hash() -> None:
    assert codec.label("node1") == "node1"
    assert len(codec.label("n" * 200)) == 40
