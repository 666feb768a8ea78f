"""Claims that found no block left: remembered while the cluster stays as it was, and no longer."""

from __future__ import annotations

from dataclasses import replace

from agent.ipam.exhaustion import Refusals
from agent.model.cluster import Node, Snapshot
from agent.model.problem import Problem

FULL = Problem("network a", "no block is left in p", "add an IPPool")


def nodes(number: int) -> Snapshot:
    return Snapshot(True, {name: Node(name) for name in map(str, range(number))})


def test_networks_that_come_and_go_leave_no_snapshot_of_each_moment_behind() -> None:
    refusals = Refusals()
    for number in range(100):
        refusals.note(f"net{number}", FULL, nodes(number), without=True)
    assert list(refusals._last) == ["net99"]
    assert refusals.why("net99", nodes(99)) == FULL.what
    assert refusals.problems(nodes(99)) == {"net99": FULL}


def test_all_that_were_refused_in_one_state_of_the_cluster_are_known() -> None:
    refusals, now = Refusals(), nodes(3)
    for name in ("a", "b"):
        refusals.note(name, FULL, replace(now, nodes=dict(now.nodes)), without=name == "a")
    assert [refusals.why(name, now) for name in ("a", "b", "c")] == [FULL.what, FULL.what, ""]
    assert list(refusals.problems(now)) == ["a"]
    refusals.forget("a")
    assert refusals.problems(now) == {}
    assert refusals.why("b", nodes(4)) == "", "a Node more may have brought or taken blocks"
