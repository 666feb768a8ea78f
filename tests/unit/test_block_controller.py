"""Claims and returns of blocks on a real datastore: one owner at a time, whatever is slow, away or quicker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.cluster.store import StoreError
from agent.ip import Subnet
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.block_claims import block_controller
from agent.ipam.block_claims.block_controller import ReclaimRules
from agent.ipam.block_claims.block_ledger import Stage
from agent.ipam.block_claims.idle_blocks import IdleBlockReleaser
from agent.model.cluster import IPBlock, Node
from tests.networks import OPTIONS
from tests.support import net
from tests.unit.member import NETWORK, POOL, Member, in_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = DirectoryStore(tmp_path)
    store.create(POOL)
    for name in ("one", "two"):
        store.create(Node(name))
    return tmp_path


def test_an_idle_block_goes_back_but_never_the_last(folder: Path) -> None:
    one = Member(folder, "one")
    first, second = one.claim(2)
    one.see()
    assert not one.round(wanted=2), "pods ask for both"
    assert one.round(), "another round is to publish what is left"
    assert one.own() == (first,)
    assert in_store(folder) == {first: "one", second: "one"}, "not before that"
    one.round()
    one.block_controller.once()
    assert in_store(folder) == {first: "one"}
    assert one.own() == (first,), "though no list has shown it yet"
    one.see()
    assert one.block_controller.ledger.withdrawn(Stage.DELETED) == (one_block(second),)
    assert one.own() == (first,)
    assert one.block_controller.ledger.withdrawn(Stage.DELETED) == ()
    assert not one.round()
    assert not one.round()
    assert in_store(folder) == {first: "one"}


def one_block(cidr: Subnet, node: str = "one") -> IPBlock:
    return IPBlock(cidr, node, "lan", shared=True)


def test_all_go_when_no_network_is_in_force(folder: Path) -> None:
    one = Member(folder, "one")
    one.claim(3)
    one.see()
    for _ in range(2):
        one.round(wanted=0)
    one.block_controller.once()
    assert in_store(folder) == {}


def test_an_add_that_was_quicker_keeps_the_block(folder: Path) -> None:
    one = Member(folder, "one")
    first, second = one.claim(2)
    one.see()
    assert one.round()
    pod = one.take(second)  # it had looked before the block was withdrawn
    assert one.round()
    one.block_controller.once()
    assert one.own() == (first, second)
    assert len(in_store(folder)) == 2
    one.attachments.remove(pod)
    for _ in range(2):
        one.round()
    one.block_controller.once()
    assert in_store(folder) == {first: "one"}


def test_a_block_whose_addresses_cool_is_kept(folder: Path) -> None:
    one = Member(folder, "one")
    first, second = one.claim(2)
    one.see()
    one.attachments = AttachmentStore(folder / ".cooling", cool_down=600, types=OPTIONS)
    one.attachments.load()
    one.releaser = IdleBlockReleaser("one", one.block_controller, one.attachments, idle=0.0)
    one.attachments.remove(one.take(second))
    one.round()
    assert one.own() == (second,), "the other one goes"
    assert first


def test_a_block_is_idle_for_a_while_first(folder: Path) -> None:
    one = Member(folder, "one")
    one.claim(2)
    one.see()
    one.releaser = IdleBlockReleaser("one", one.block_controller, one.attachments, idle=60.0)
    assert not one.round()
    assert not one.round()
    assert one.block_controller.ledger.withdrawn(Stage.WITHDRAWN) == ()


def test_nothing_goes_back_while_the_datastore_is_not_well(folder: Path) -> None:
    well = [True]
    one = Member(folder, "one", ReclaimRules(whole=lambda: well[0]))
    both = one.claim(2)
    one.see()
    assert one.round()
    well[0] = False
    assert one.round(), "what is not on its way yet is kept"
    assert one.own() == both
    assert not one.round()
    well[0] = True
    one.round()
    snapshot = one.block_controller.complete(one.snapshot.get())
    assert one.releaser.release_idle(snapshot, {NETWORK: 1}, noted=False), "a restart would not know of it"
    assert one.own() == both


class LostError(StoreError):
    outcome_unknown = True


def fail(error: StoreError) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


def test_a_delete_whose_answer_is_lost_is_repeated_and_hurts_nobody(folder: Path) -> None:
    one, two = Member(folder, "one"), Member(folder, "two")
    first, second = one.claim(2)
    one.see()
    for _ in range(2):
        one.round()
    one.store.after = fail(LostError("the answer did not come"))
    one.block_controller.once()
    assert in_store(folder) == {first: "one"}
    assert one.own() == (first,), "it may be gone"
    (problem,) = one.block_controller.problems.get().values()
    assert "can't be given back: the answer did not come" in problem.what
    two.see()
    theirs = two.claim(3)
    assert second in theirs
    one.store.after = lambda: None
    one.block_controller.once()  # before any list has shown what happened
    assert in_store(folder)[second] == "two"
    assert one.own() == (first,)
    one.see()
    assert one.own() == (first,)
    assert one.block_controller.complete(one.snapshot.get()).blocks[one_block(second).name].node == "two"


def test_a_delete_that_was_refused_leaves_the_block_in_use(folder: Path) -> None:
    one = Member(folder, "one")
    both = one.claim(2)
    one.see()
    for _ in range(2):
        one.round()
    one.store.before = fail(StoreError("HTTP 403: may not delete"))
    one.block_controller.once()
    assert one.own() == both
    (problem,) = one.block_controller.problems.get().values()
    assert "HTTP 403" in problem.what
    assert "delete ipblocks" in problem.remedy


def test_while_the_datastore_is_away_a_block_is_nobodys_and_goes_when_it_is_back(folder: Path) -> None:
    one = Member(folder, "one")
    first, _second = one.claim(2)
    one.see()
    for _ in range(2):
        one.round()
    one.store.before = fail(LostError("connection refused"))
    for _ in range(3):
        one.block_controller.once()
        assert one.own() == (first,)
    one.store.before = lambda: None
    one.block_controller.once()
    assert in_store(folder) == {first: "one"}


def test_a_crash_at_any_point_leaves_a_block_that_is_ours_or_nobodys(folder: Path) -> None:
    one = Member(folder, "one")
    first, second = one.claim(2)
    one.see()
    one.round()
    again = Member(folder, "one")  # as after a crash: it knows what the datastore has
    assert again.own() == (first, second)
    for _ in range(2):
        again.round()
    again.block_controller.once()
    assert Member(folder, "one").own() == (first,)


def test_what_we_gave_back_is_not_claimed_by_us_before_it_was_seen_to_be_gone(folder: Path) -> None:
    one = Member(folder, "one")
    mine = one.claim(4)
    one.see()
    for _ in range(2):
        one.round()
    one.block_controller.once()
    assert in_store(folder) == {mine[0]: "one"}
    one.claim(2)
    assert one.own() == mine[:1]
    one.see()
    assert len(one.claim(2)) == 2


def gone(folder: Path, name: str) -> None:
    DirectoryStore(folder).delete("Node", name)


def test_blocks_of_a_node_that_is_gone_for_good_are_taken_where_none_is_left(folder: Path) -> None:
    one, two = Member(folder, "one"), Member(folder, "two")
    left = two.claim(3)
    one.see()
    (mine,) = one.claim(1)
    gone(folder, "two")
    one.see()
    one.block_controller.once()
    assert in_store(folder) == {mine: "one", **dict.fromkeys(left, "two")}, "nobody needs them"
    assert len(one.claim(3)) == 3
    assert sorted(in_store(folder).values()) == ["one", "one", "one", "two"]


def test_a_node_must_be_gone_for_a_while_and_the_picture_complete(folder: Path) -> None:
    whole = [True]
    one = Member(folder, "one", ReclaimRules(node_gone=0.2, whole=lambda: whole[0]))
    two = Member(folder, "two")
    two.claim(4)
    one.see()
    gone(folder, "two")
    one.see()
    assert one.claim(1) == (), "it has just gone"
    (problem,) = one.block_controller.problems.get().values()
    assert "no block is left in lan (192.0.2.0/27)" in problem.what
    threading.Event().wait(0.25)
    whole[0] = False
    assert one.claim(1) == (), "an object that can't be read may be the node"
    whole[0] = True
    assert one.claim(1) == (), "only what was missing all the time counts"
    threading.Event().wait(0.25)
    assert len(one.claim(1)) == 1
    assert one.block_controller.problems.get() == {}


def test_that_no_block_is_left_is_known_until_blocks_or_pools_change(folder: Path) -> None:
    """A pod asks for a block now and then only, while its runtime tries it again."""
    one, two = Member(folder, "one"), Member(folder, "two")
    two.claim(4)
    one.see()
    assert one.claim(1) == ()
    assert "no block is left" in one.block_controller.why_refused(NETWORK, 4)
    assert one.block_controller.why_refused(replace(NETWORK, pool="other"), 4) == ""
    one.block_controller.want({})
    one.block_controller.once()
    assert one.block_controller.why_full(NETWORK, 4) == ""
    assert "no block is left" in one.block_controller.why_refused(NETWORK, 4)
    (problem,) = one.block_controller.problems.get().values()
    assert "no block is left in lan" in problem.what
    two.store.delete("IPBlock", next(iter(two.see().blocks)))
    one.see()
    one.block_controller.once()
    assert one.block_controller.why_refused(NETWORK, 4) == ""
    assert one.block_controller.problems.get() == {}


def test_a_node_that_lacks_no_block_has_no_problem_of_the_claim(folder: Path) -> None:
    one, two = Member(folder, "one"), Member(folder, "two")
    two.claim(3)
    one.see()
    assert len(one.claim(1)) == 1
    one.see()
    one.claim(2)
    assert "no block is left" in one.block_controller.why_full(NETWORK, 4)
    assert one.block_controller.problems.get() == {}, "it is one only when pods use every address"


def test_a_node_that_is_back_though_the_watch_has_not_told_keeps_its_blocks(folder: Path) -> None:
    one, two = Member(folder, "one"), Member(folder, "two")
    two.claim(4)
    gone(folder, "two")
    one.see()
    DirectoryStore(folder).create(Node("two"))
    assert one.claim(1) == ()
    assert set(in_store(folder).values()) == {"two"}


def test_who_frees_a_block_that_another_has_freed_and_a_third_has_claimed_takes_the_next(folder: Path) -> None:
    one, two, three = (Member(folder, name) for name in ("one", "two", "three"))
    DirectoryStore(folder).create(Node("three"))
    two.claim(4)
    gone(folder, "two")
    one.see()
    three.see()
    three.block_controller.want({NETWORK: 1})

    def quicker() -> None:
        one.store.before = lambda: None
        three.block_controller.once()

    one.store.before = quicker
    assert len(one.claim(1)) == 1
    assert sorted(in_store(folder).values()) == ["one", "three", "two", "two"]


def test_agents_that_claim_and_give_back_never_share_a_block(folder: Path) -> None:
    names = [f"n{number}" for number in range(12)]  # for four blocks
    for name in names:
        DirectoryStore(folder).create(Node(name))
    held: dict[Subnet, str] = {}
    clash: list[str] = []
    won = 0
    guard = threading.Lock()

    def live(name: str) -> None:
        nonlocal won
        member = Member(folder, name)
        for turn in range(4):
            member.see()
            for block in member.claim(2):
                with guard:
                    won += 1
                    if held.setdefault(block, name) != name:
                        clash.append(f"{block} of {held[block]} is {name}'s in turn {turn}")
            member.see()
            with guard:
                for block in [block for block, owner in held.items() if owner == name]:
                    del held[block]
            for _ in range(2):
                member.round(wanted=0)
            member.block_controller.once()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(live, names))
    assert clash == []
    assert won > 12
    assert in_store(folder) == {}


def test_a_node_with_pod_cidrs_claims_nothing_however_much_it_wants(folder: Path) -> None:
    DirectoryStore(folder).update(replace(node_of(folder), blocks=(net("192.0.2.64/28"),)))
    one = Member(folder, "one")
    assert one.claim(5) == (net("192.0.2.64/28"),)
    assert in_store(folder) == {}


def node_of(folder: Path) -> Node:
    return next(n for n in DirectoryStore(folder).list("Node") if isinstance(n, Node) and n.name == "one")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_controller, "TRIES", 1)
