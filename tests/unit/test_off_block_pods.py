"""Pods whose address is in no block of their node any more: reserved while that is so, named, and told once."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kinds import Kind
from agent.cluster.objects import to_doc
from agent.cluster.store import StoreError
from agent.ipam.attachments.attachment import Attachment, Lease
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.reservations.controller import ControllerInputs, ReservationController
from agent.ipam.reservations.off_block_pods import EVENTS, SETTLED, OffBlockPods
from agent.ipam.reservations.problems import disputes
from agent.ipam.reservations.rules import Claim, Delete, LocalPods, Update, lost, of_owner, steps
from agent.model.cluster import (
    ALWAYS_KEPT,
    MOMENT,
    WHILE_POD,
    IPBlock,
    IPReservation,
    Node,
    ObjectMetadata,
    Resource,
    Snapshot,
)
from agent.model.node_status import PodEvent, ReservationsInProgress
from agent.modes.parent.options import MACVLAN
from agent.runtime.observable import Observable
from tests.networks import OPTIONS, network_of

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
KEEP = timedelta(hours=1)
OLD, NEW, OTHER = (ipaddress.IPv4Network(f"10.244.{n}.0/24") for n in (1, 7, 2))
X = ipaddress.IPv4Address("10.244.1.7")
NET = network_of("testcni")
POD = Attachment("abc", "eth0", NET, "", "default/web", (Lease(X, OLD),), "", wired={})
CLAIM = Claim(X, "default/web", "default/web", "one", "testcni", WHILE_POD)
HELD = IPReservation(X, "default/web", "default/web", "one", "testcni", NOW, keep=WHILE_POD)
HERE = LocalPods("one", {X: "pod default/web"}, frozenset({CLAIM}), outside={X})


def cluster(
    *held: IPReservation, one: ipaddress.IPv4Network | None = NEW, two: ipaddress.IPv4Network = OTHER
) -> Snapshot:
    nodes = {"one": Node("one", (), (one,) if one else ()), "two": Node("two", (), (two,))}
    return Snapshot(True, nodes, reservations={one.name: one for one in held})


def without_one(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, nodes={"two": snapshot.nodes["two"]})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """Outsiders with a clock, a store that is a folder, and what they told."""

    def __init__(self, path: Path, pods: tuple[Attachment, ...] = (POD,)) -> None:
        self.store = DirectoryStore(path)
        self.clock = Clock()
        self.told: list[PodEvent] = []
        self.pods = pods
        self.out = OffBlockPods("one", self.store, self.told.append, self.clock)

    def look(self, snapshot: Snapshot, later: float = 0.0) -> frozenset[object]:
        self.clock.now += later
        found = self.out.update(snapshot, self.pods)
        self.out.report(snapshot)
        return frozenset(found)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    doc = to_doc(ObjectMetadata("Pod", "default/web", "uid-1"))
    (tmp_path / "pod.json").write_text(json.dumps(doc))
    return Watched(tmp_path)


def test_another_podcidr_counts_at_once_and_the_pod_is_told_once(watched: Watched) -> None:
    assert not watched.look(cluster(one=OLD))
    assert watched.look(cluster()) == {X}
    assert not watched.told, "a block may be claimed again in a moment"
    (problem,) = watched.out.problems(cluster(HELD))
    assert "are in none of its blocks: default/web" in problem.what
    for _ in range(3):
        watched.look(cluster(HELD), SETTLED)
    (pod_event,) = watched.told
    assert (pod_event.pod, pod_event.uid, pod_event.reason) == ("default/web", "uid-1", "AddressOutsideBlocks")
    assert "kubectl delete pod -n default web" in pod_event.message
    assert "other nodes have a route to it" in pod_event.message
    assert not watched.look(cluster(one=OLD))
    assert not list(watched.out.problems(cluster(one=OLD)))


def test_the_same_podcidr_again_is_nothing_to_tell(watched: Watched) -> None:
    watched.look(cluster(one=OLD))
    assert not watched.look(without_one(cluster(one=OLD)))
    assert not watched.look(without_one(cluster(one=OLD)), 10 * MOMENT)
    assert not watched.look(cluster(one=None)), "the new Node has not got its podCIDR yet"
    assert not watched.look(cluster(one=None), MOMENT - 1)
    assert not watched.look(cluster(one=OLD))
    assert not watched.told
    watched.look(cluster(one=None))
    assert watched.look(cluster(one=None), MOMENT) == {X}, "it gets none"
    assert watched.look(without_one(cluster())) == {X}


def test_a_block_that_was_claimed_a_moment_ago_is_in_no_list_yet(watched: Watched) -> None:
    assert not watched.look(cluster())  # nobody saw the address inside
    assert not watched.look(cluster(), SETTLED - 0.1)
    claimed = replace(cluster(), blocks={"b": IPBlock(OLD, "one", "pods")})
    assert not watched.look(claimed, 0.2)
    gone = cluster()
    assert watched.look(gone) == {X}, "somebody deleted the IPBlock"


def test_a_restarted_agent_finds_them_too(watched: Watched) -> None:
    assert not watched.look(cluster())
    assert watched.look(cluster(), SETTLED) == {X}


@pytest.mark.parametrize(
    "pod",
    [
        replace(POD, owner="default/web"),
        replace(POD, wired=None),
        replace(POD, network=network_of("lan", MACVLAN, OTHER, link_mode="bridge", range_start=X)),
    ],
)
def test_who_is_no_outsider(watched: Watched, pod: Attachment) -> None:
    """Whose address stays, on whom an ADD is at work, whose range a person gave."""
    watched.pods = (pod,)
    assert not watched.look(cluster(), 10 * MOMENT)
    assert not watched.look(cluster(), 10 * MOMENT)


def test_a_pod_on_a_shared_subnet_keeps_its_address_and_needs_nothing_else(watched: Watched) -> None:
    watched.pods = (replace(POD, network=network_of("lan", MACVLAN, OTHER, link_mode="bridge")),)
    watched.look(cluster())
    assert watched.look(cluster(), SETTLED) == {X}
    watched.look(cluster(), SETTLED)
    assert not watched.told
    assert not list(watched.out.problems(cluster(HELD)))


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (replace(HELD, asks="two", refused="pod a/b on node two has it"), "pod a/b on node two has it"),
        (replace(HELD, asks="two"), "node two, whose block it is in, has not agreed"),
        (replace(HELD, owner="a/b", pod="a/b", node="two"), "it is reserved for a/b"),
    ],
)
def test_a_pod_that_is_not_reached_is_named(watched: Watched, held: IPReservation, words: str) -> None:
    watched.look(cluster(one=OLD))
    watched.look(cluster(held, two=OLD))
    watched.look(cluster(held, two=OLD), SETTLED)
    problems = [str(problem) for problem in watched.out.problems(cluster(held, two=OLD))]
    assert any(problem.startswith("pod default/web: ") and words in problem for problem in problems)
    assert f"other nodes do not reach it: {words}" in watched.told[0].message


def test_many_pods_are_told_in_turns_and_named_briefly(watched: Watched, tmp_path: Path) -> None:
    count = EVENTS[0] + 5
    for n in range(count):
        doc = to_doc(ObjectMetadata("Pod", f"default/p{n:02}", f"u{n}"))
        (tmp_path / f"p{n}.json").write_text(json.dumps(doc))
    watched.pods = tuple(
        replace(POD, container_id=str(n), pod=f"default/p{n:02}", leases=(Lease(X + n, OLD),))
        for n in range(count)
    )
    watched.look(cluster(one=OLD))
    watched.look(cluster())
    watched.look(cluster(), SETTLED)
    assert len(watched.told) == EVENTS[0]
    (problem,) = watched.out.problems(cluster())
    assert problem.what.endswith("default/p00, default/p01, default/p02, default/p03, default/p04 and 20 more")


def test_a_pod_that_is_gone_or_unknown_has_no_event(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "pod.json").unlink()
    watched.pods = (POD, replace(POD, container_id="x", pod="", leases=(Lease(X + 1, OLD),)))
    watched.look(cluster(one=OLD))
    watched.look(cluster())
    watched.look(cluster(), SETTLED)
    assert not watched.told
    (problem,) = watched.out.problems(cluster())
    assert "default/web, x;" in f"{problem.what};"


def test_it_is_reserved_while_it_is_outside_and_asked_for_where_the_range_is_anothers() -> None:
    assert list(lost(cluster(), HERE, NOW)) == [HELD]
    assert list(lost(cluster(two=OLD), HERE, NOW)) == [replace(HELD, asks="two")]
    assert not list(lost(cluster(HELD), HERE, NOW))
    assert not list(lost(cluster(), replace(HERE, outside=frozenset()), NOW))
    assert not list(steps(cluster(HELD), HERE, NOW, KEEP))


def test_it_is_deleted_when_the_pod_is_gone_or_the_block_is_back() -> None:
    assert list(steps(cluster(HELD), LocalPods("one"), NOW, KEEP)) == [Delete(HELD)]
    assert list(steps(cluster(HELD, one=OLD), HERE, NOW, KEEP)) == [Delete(HELD)]
    home_elsewhere = cluster(HELD, two=OLD)
    assert not list(steps(home_elsewhere, HERE, NOW, KEEP))


def test_while_the_node_is_gone_it_is_released_and_comes_back() -> None:
    (step,) = steps(without_one(cluster(HELD)), LocalPods("two"), NOW, KEEP)
    assert step == Update(replace(HELD, released=NOW))
    assert list(steps(cluster(step.reservation), HERE, NOW, KEEP)) == [Update(HELD)]


def test_a_node_that_refused_agrees_once_its_pod_is_gone() -> None:
    asked = replace(HELD, asks="two", refused="pod a/b on node two has it")
    two = LocalPods("two", {X: "pod a/b"})
    assert not list(steps(cluster(asked, two=OLD), two, NOW, KEEP))
    assert list(steps(cluster(asked, two=OLD), LocalPods("two"), NOW, KEEP)) == [Update(HELD)]
    stays = replace(asked, keep="")
    assert not list(steps(cluster(stays, two=OLD), LocalPods("two"), NOW, KEEP)), "an ADD that failed is no pod"


def test_a_node_that_is_gone_is_asked_no_longer() -> None:
    asked = replace(HELD, asks="two")
    nobody = Snapshot(True, {"one": Node("one", (), (NEW,))}, reservations={asked.name: asked})
    assert list(steps(nobody, HERE, NOW, KEEP)) == [Update(HELD)]


def test_an_agent_before_this_one_that_answers_loses_the_field_and_no_address() -> None:
    answered = replace(HELD, keep="")
    assert not list(steps(cluster(answered), HERE, NOW, KEEP))
    assert list(steps(cluster(answered), LocalPods("one"), NOW, KEEP)) == [Update(replace(answered, released=NOW))]


def test_nobody_comes_back_to_what_was_kept_for_a_moment() -> None:
    assert not of_owner([HELD], "default/web", "testcni")


def test_two_pods_with_one_address_are_a_problem_where_the_second_is() -> None:
    two = LocalPods("two", {X: "pod a/b"})
    (problem,) = disputes(cluster(HELD, two=OLD), two)
    assert (
        "reserved for default/web, but pod a/b on this node has it, and pod default/web on node one"
        in problem.what
    )
    assert not list(disputes(cluster(HELD), HERE))
    assert not list(disputes(cluster(replace(HELD, released=NOW)), two))
    assert not list(disputes(cluster(replace(HELD, keep=ALWAYS_KEPT)), replace(two, busy={X})))


class Bare(DirectoryStore):
    """A datastore where the agent may write no reservations."""

    def create(self, obj: Resource) -> Resource:
        raise StoreError(f"HTTP 403: {type(obj).__name__} is forbidden")

    def get(self, kind: Kind, name: str) -> Resource:
        raise StoreError(f"HTTP 403: {kind} {name} is forbidden")


def keeping(
    path: Path, store: DirectoryStore, told: Callable[[PodEvent], None]
) -> tuple[ReservationController, Observable[Snapshot], AttachmentStore]:
    attachments = AttachmentStore(path / "run", 0, OPTIONS)
    attachments.load()
    attachments._all[POD.key] = POD
    snapshot: Observable[Snapshot] = Observable(cluster(one=OLD))
    busy: Observable[ReservationsInProgress] = Observable(frozenset())
    kept = ControllerInputs(snapshot, busy, attachments, path / "reservations.json", told)
    return ReservationController(store, "one", kept, 3600), snapshot, attachments


def test_the_keeper_makes_it_and_takes_it_away(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    store = DirectoryStore(tmp_path / "cluster")
    controller, snapshot, attachments = keeping(tmp_path, store, lambda _event: None)
    controller.once()
    assert not controller.problems.get()
    snapshot.publish(cluster())
    controller.once()
    assert len(controller.problems.get()) == 1
    (made,) = store.list("IPReservation")
    assert isinstance(made, IPReservation)
    assert replace(made, since=NOW) == HELD
    snapshot.publish(cluster(made))
    woken: list[bool] = []
    attachments.listen(lambda: woken.append(True))
    attachments.remove(POD)
    assert woken, "a DEL of a pod whose address is reserved wakes the reservation controller"
    controller.once()
    assert not controller.problems.get()
    assert not store.list("IPReservation")


def test_an_agent_that_may_not_write_says_so_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    controller, snapshot, _attachments = keeping(tmp_path, Bare(tmp_path / "cluster"), lambda _event: None)
    controller.once()
    snapshot.publish(cluster())
    controller.once()
    problems = controller.problems.get()
    assert any("they can't be updated: HTTP 403" in text for text in problems)
    assert any("in none of its blocks" in text for text in problems)
