"""What Nodes said last stays in force while they lack it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.model.cluster import Node, Snapshot
from agent.node.last_known_nodes import LastKnownNodes
from tests.fake_clock import FakeClock


def node(number: int, *, addresses: bool = True, blocks: bool = True) -> Node:
    where = (ipaddress.ip_address(f"192.0.2.{number}"), ipaddress.ip_address(f"2001:db8::{number}"))
    return Node(
        f"n{number}",
        where if addresses else (),
        (ipaddress.ip_network(f"10.244.{number}.0/24"),) if blocks else (),
    )


def snapshot(*nodes: Node) -> Snapshot:
    return Snapshot(True, {n.name: n for n in nodes})


ONE, TWO = node(1), node(2)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["same agent", "restarted agent"])
def again(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> LastKnownNodes:
    """An agent that has seen the nodes one and two, or the next one."""
    first = LastKnownNodes("n1", tmp_path / "nodes.json", clock=clock)
    first.look(snapshot(ONE, TWO))
    return first if request.param == "same agent" else LastKnownNodes("n1", tmp_path / "nodes.json", clock=clock)


def test_a_node_that_shows_no_address_for_a_moment_keeps_its_last(again: LastKnownNodes) -> None:
    for lacking in (node(1, addresses=False), node(2, addresses=False)):
        seen = again.look(snapshot(*({"n1": ONE, "n2": TWO} | {lacking.name: lacking}).values()))
        assert seen.nodes == {"n1": ONE, "n2": TWO}
        (problem,) = seen.problems
        assert (problem.where, "192.0.2." in problem.what) == (f"node {lacking.name}", True)
        assert again.look(snapshot(ONE, TWO)).problems == ()


def test_one_family_that_is_missing_keeps_its_last(again: LastKnownNodes) -> None:
    seen = again.look(snapshot(ONE, replace(TWO, addresses=TWO.addresses[1:])))
    assert set(seen.nodes["n2"].addresses) == set(TWO.addresses)


def test_another_address_counts_at_once(again: LastKnownNodes) -> None:
    moved = replace(TWO, addresses=(ipaddress.ip_address("192.0.2.77"), TWO.addresses[1]))
    seen = again.look(snapshot(ONE, moved))
    assert seen.nodes == {"n1": ONE, "n2": moved}
    assert not seen.problems


def test_what_another_node_has_now_is_not_kept(again: LastKnownNodes) -> None:
    heir = Node("n3", TWO.addresses, TWO.blocks)
    seen = again.look(snapshot(ONE, node(2, addresses=False, blocks=False), heir))
    assert seen.nodes["n2"] == Node("n2")


def test_this_node_stays_while_its_object_is_deleted_and_created_again(again: LastKnownNodes) -> None:
    assert again.look(snapshot(TWO)).nodes["n1"] == ONE
    assert again.look(snapshot(TWO, node(1, addresses=False, blocks=False))).nodes["n1"] == ONE
    assert again.look(snapshot(TWO, ONE)).nodes == {"n1": ONE, "n2": TWO}


def test_another_node_that_is_deleted_is_gone_but_known_when_it_is_created_again(again: LastKnownNodes) -> None:
    assert again.look(snapshot(ONE)).nodes == {"n1": ONE}
    assert again.look(snapshot(ONE, node(2, addresses=False, blocks=False))).nodes == {"n1": ONE, "n2": TWO}


def test_a_pod_cidr_that_was_taken_away_is_kept_for_a_moment_only(again: LastKnownNodes, clock: FakeClock) -> None:
    without = node(2, blocks=False)
    assert again.look(snapshot(ONE, without)).nodes["n2"] == TWO
    clock.time = again.next()
    assert again.look(snapshot(ONE, without)).nodes["n2"] == without
    assert again.look(snapshot(ONE, replace(without))).nodes["n2"] == without


def test_nothing_is_computed_again_while_nothing_changes(again: LastKnownNodes) -> None:
    here = snapshot(ONE, TWO)
    assert again.look(here) is again.look(here)
    assert again.look(here).nodes is here.nodes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": 2}',
        '{"format": 1, "nodes": {"n1": [["x"], []]}}',
        '{"format": 1, "nodes": {"n1": [[true], []]}, "owners": {}}',
        '{"format": 1, "nodes": {"n1": [[], [1]]}, "owners": {}}',
        '{"format": 1, "nodes": {}, "owners": {"10.244.1.0/24": 1}}',
    ],
)
def test_a_file_that_can_not_be_used_is_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(text)
    assert LastKnownNodes("n1", path).look(snapshot(TWO)).nodes == {"n2": TWO}
    assert LastKnownNodes("n1", path).look(snapshot(ONE, TWO)).nodes == {"n1": ONE, "n2": TWO}


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path), lambda path: path.write_text("[" * 99_999)],
    ids=["fifo", "folder", "loop", "deep"],
)
def test_an_agent_starts_whatever_is_in_the_place_of_the_file(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(path := tmp_path / "nodes.json")
    assert LastKnownNodes("n1", path).look(snapshot(ONE, TWO)).nodes == {"n1": ONE, "n2": TWO}
