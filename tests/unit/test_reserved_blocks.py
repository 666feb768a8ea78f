"""A block is claimed while an address of it is reserved: the second sees the first, however late watches are."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kinds import Kind
from agent.cluster.store import StoreError
from agent.ip import Subnet
from agent.ipam.block_claims import free_blocks
from agent.model.cluster import IPBlock, IPPool, IPReservation, Node, Resource
from tests.networks import network_of
from tests.support import net
from tests.unit.member import POOL, Member, in_store

ADDRESS = ipaddress.ip_address("192.0.2.5")
RESERVED = IPReservation(ADDRESS, "default/a", "default/a", "two", "lan", datetime.now(UTC).replace(microsecond=0))


class Quick(Member):
    """A node that claims all four blocks of the pool."""

    def all(self) -> int:
        return len(self.claim(4))


@pytest.fixture
def one(tmp_path: Path) -> Quick:
    store = DirectoryStore(tmp_path)
    for obj in (POOL, Node("one"), Node("two")):
        store.create(obj)
    return Quick(tmp_path, "one")


def test_a_block_is_given_to_pods_when_its_reservations_are_known(one: Quick, tmp_path: Path) -> None:
    one.store.create(RESERVED)  # of which no watch has told
    assert one.all() == 0
    assert len(in_store(tmp_path)) == 4, "they are claimed"
    assert one.all() == 0, "nor are others claimed instead"
    one.see()
    assert one.own() == (), "not before it has been looked at"
    one.block_controller.once()
    assert len(one.own()) == 4


def test_who_waits_for_blocks_is_told(one: Quick) -> None:
    told: list[frozenset[object]] = []
    one.block_controller.unseen.listen(lambda: told.append(frozenset(one.block_controller.unseen.get())))
    assert one.all() == 4
    assert told[-1] == frozenset()


def test_a_list_that_fails_is_a_problem_until_it_succeeds(one: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_kind: Kind) -> tuple[Resource, ...]:
        raise StoreError("HTTP 503: away")

    with monkeypatch.context() as broken:
        broken.setattr(one.store, "list", away)
        assert one.all() == 0
        (problem,) = one.block_controller.problems.get().values()
        assert "HTTP 503: away" in str(problem)
    one.block_controller.once()
    assert one.block_controller.problems.get() == {}
    assert len(one.own()) == 4


@pytest.fixture
def early(tmp_path: Path) -> tuple[Member, Subnet]:
    """A node that wants a block, and the one it will claim: a pod has reserved the gateway there.

    No watch has told of the reservation yet.
    """
    store = DirectoryStore(tmp_path)
    for obj in (IPPool("pods", net("10.244.0.0/27"), 28), Node("one"), Node("two")):
        store.create(obj)
    network, one = network_of("net", subnet=net("10.244.0.0/16")), Member(tmp_path, "one")
    one.block_controller.want({network: 1})
    (first,) = {candidate.cidr for candidate in islice(free_blocks.candidates(one.see(), network, "one"), 1)}
    one.store.create(replace(RESERVED, address=first[1]))
    return one, first


def test_a_block_whose_gateway_was_reserved_before_is_given_back_and_another_claimed(
    early: tuple[Member, Subnet], tmp_path: Path
) -> None:
    one, first = early
    one.block_controller.once()
    assert in_store(tmp_path) == {}
    one.see()
    one.block_controller.once()
    (second,) = in_store(tmp_path)
    assert first not in {block.cidr for block in one.store.list("IPBlock") if isinstance(block, IPBlock)}
    assert second


def test_that_holds_where_the_watch_shows_the_block_before_its_reservations_are_known(
    early: tuple[Member, Subnet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, first = early
    with monkeypatch.context() as slow:

        def late(kind: Kind) -> tuple[Resource, ...]:
            slow.undo()
            one.block_controller.complete(one.see())  # a round of the node path meanwhile
            return one.store.list(kind)

        slow.setattr(one.store, "list", late)
        one.block_controller.once()
    assert first not in {block.cidr for block in one.store.list("IPBlock") if isinstance(block, IPBlock)}


def test_a_refused_block_whose_delete_was_done_though_its_answer_was_lost_is_gone(
    early: tuple[Member, Subnet],
) -> None:
    one, first = early

    def lost() -> None:
        raise StoreError("timed out")

    one.store.after = lost
    one.block_controller.once()
    assert one.store.list("IPBlock") == ()
    one.store.after = lambda: None
    one.block_controller.once()
    assert not one.block_controller.problems.get()
    one.see()
    one.block_controller.once()
    assert first not in one.block_controller.unseen.get()
