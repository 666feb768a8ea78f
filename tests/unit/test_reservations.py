"""Who may have a reserved address, and what a node does about reservations."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ipam.reservations import rules as reservation_rules
from agent.ipam.reservations.rules import Claim, Delete, LocalPods, RefusedError, Update, claimed, steps
from agent.model.cluster import IPBlock, IPReservation, Node, Snapshot
from agent.model.network import Network
from tests.networks import network_of
from tests.support import net
from tests.unit.properties import examples

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
KEEP = timedelta(hours=1)
X = ipaddress.ip_address("10.244.1.7")
MINE = Claim(X, "default/web-0", "default/web-0", "one", "testcni")
HELD = IPReservation(X, "default/web-0", "default/web-0", "one", "testcni", NOW, resource_version="7")


def cluster(*held: IPReservation, nodes: tuple[str, ...] = ("one", "two", "three")) -> Snapshot:
    numbers = {"one": 1, "two": 2, "three": 3}
    found = {name: Node(name, (), (net(f"10.244.{numbers[name]}.0/24"),)) for name in nodes}
    return Snapshot(True, found, reservations={one.name: one for one in held})


def test_a_free_address_is_claimed() -> None:
    made = claimed(None, MINE, "two", NOW, KEEP)
    assert (made.name, made.owner, made.node, made.asks, made.released) == (
        "10-244-1-7", "default/web-0", "one", "two", None,
    )  # fmt: skip


@pytest.mark.parametrize("released", [None, NOW - timedelta(minutes=1), NOW - timedelta(days=1)])
def test_a_pod_of_the_same_name_takes_it_along(released: datetime | None) -> None:
    made = claimed(replace(HELD, node="two", released=released), MINE, "three", NOW, KEEP)
    assert (made.node, made.released, made.asks, made.resource_version) == ("one", None, "", "7")


def test_a_claim_that_was_not_answered_is_made_again() -> None:
    asked = replace(HELD, asks="two", refused="pod a/b has it")
    made = claimed(asked, MINE, "three", NOW, KEEP)
    assert (made.asks, made.refused) == ("three", "")


def test_another_pod_of_the_owner_waits_until_it_is_released() -> None:
    next_one = replace(MINE, pod="default/web-1")
    with pytest.raises(RefusedError, match="pod default/web-0 on node one has it since 2026-01-31T12:00:00Z"):
        claimed(HELD, next_one, "", NOW, KEEP)
    assert claimed(replace(HELD, released=NOW), next_one, "", NOW, KEEP).pod == "default/web-1"


@pytest.mark.parametrize("stranger", [replace(MINE, owner="a/b", pod="a/b"), replace(MINE, network="second")])
def test_anybody_else_waits_until_it_is_over(stranger: Claim) -> None:
    with pytest.raises(RefusedError, match="is reserved for default/web-0"):
        claimed(HELD, stranger, "", NOW, KEEP)
    kept = replace(HELD, released=NOW - KEEP + timedelta(seconds=1))
    with pytest.raises(RefusedError, match="is kept for default/web-0 until 2026-01-31T12:00:01Z") as caught:
        claimed(kept, stranger, "", NOW, KEEP)
    assert "kubectl delete ipreservation 10-244-1-7" in caught.value.remedy
    assert claimed(kept, stranger, "", NOW + timedelta(seconds=1), KEEP).owner == stranger.owner


times = st.none() | st.integers(-7200, 0).map(lambda seconds: NOW + timedelta(seconds=seconds))
texts = st.sampled_from(["default/web-0", "default/web-1", "a/Deployment/b"])
held = st.builds(
    IPReservation,
    st.just(X),
    texts,
    texts,
    st.sampled_from(["one", "two", "three", "gone"]),
    st.just("testcni"),
    st.just(NOW),
    times,
    st.sampled_from(["", "one", "two"]),
    st.sampled_from(["", "no"]),
    st.just("7"),
)
claims = st.builds(Claim, st.just(X), texts, texts, st.sampled_from(["one", "two"]), st.just("testcni"))


@settings(max_examples=examples(300))
@given(held, claims)
def test_nobody_takes_what_another_uses(there: IPReservation, claim: Claim) -> None:
    try:
        made = claimed(there, claim, "two", NOW, KEEP)
    except RefusedError:
        assert (there.owner, there.pod) != (claim.owner, claim.pod)
        return
    assert (made.owner, made.pod, made.node, made.released) == (claim.owner, claim.pod, claim.node, None)
    assert made.resource_version == "7"
    if (there.owner, there.pod) != (claim.owner, claim.pod):
        assert there.released
        assert there.owner == claim.owner or there.released + KEEP <= NOW


@settings(max_examples=examples(300))
@given(held, st.none() | claims, st.booleans())
def test_steps_of_all_nodes_come_to_rest(there: IPReservation, claim: Claim | None, busy: bool) -> None:
    """Whatever a node does, it has nothing more to do then, and of several nodes one acts."""
    acting = []
    for node in ("one", "two", "three"):
        mine = frozenset({replace(claim, node=node)}) if claim and claim.node == node else frozenset()
        here = LocalPods(node, {X: "pod a"} if mine else {}, mine, frozenset({X}) if busy else frozenset())
        snapshot = cluster(there)
        for step in steps(snapshot, here, NOW, KEEP):
            acting.append(node)
            after = cluster(step.reservation) if isinstance(step, Update) else cluster()
            again = list(steps(after, here, NOW, KEEP))
            # what was just released may be over for good, where it is kept for no time
            assert not again or isinstance(step, Update)
    assert len(acting) <= 1 or there.asks


def test_a_node_releases_what_its_pod_left_and_deletes_it_in_the_end() -> None:
    (step,) = steps(cluster(HELD), LocalPods("one"), NOW, KEEP)
    assert step == Update(replace(HELD, released=NOW))
    released = step.reservation
    assert not list(steps(cluster(released), LocalPods("one"), NOW + KEEP - timedelta(seconds=1), KEEP))
    assert list(steps(cluster(released), LocalPods("one"), NOW + KEEP, KEEP)) == [Delete(released)]
    assert not list(steps(cluster(HELD), LocalPods("two"), NOW, KEEP))


def test_a_node_leaves_alone_what_its_pods_have_and_what_an_add_is_at() -> None:
    assert not list(steps(cluster(HELD), LocalPods("one", claims=frozenset({MINE})), NOW, KEEP))
    assert not list(steps(cluster(HELD), LocalPods("one", busy={X}), NOW, KEEP))
    told_late = replace(HELD, released=NOW)
    here = LocalPods("one", claims=frozenset({MINE}))
    assert list(steps(cluster(told_late), here, NOW + 2 * KEEP, KEEP)) == [Update(HELD)]


def test_the_blocks_node_answers() -> None:
    asked = replace(HELD, node="two", asks="one")
    assert list(steps(cluster(asked), LocalPods("one"), NOW, KEEP)) == [Update(replace(asked, asks=""))]
    (refused,) = steps(cluster(asked), LocalPods("one", used={X: "pod a/b"}), NOW, KEEP)
    assert refused == Update(replace(asked, refused="pod a/b on node one has it"))
    assert not list(steps(cluster(refused.reservation), LocalPods("one"), NOW, KEEP))
    assert list(steps(cluster(refused.reservation), LocalPods("two"), NOW, KEEP)) == [Delete(refused.reservation)]


def test_one_node_looks_after_those_of_a_node_that_is_gone() -> None:
    gone = replace(HELD, node="gone")
    far = replace(gone, address=ipaddress.ip_address("10.244.200.7"))
    for node, wanted in (("one", [gone, far]), ("two", []), ("three", [])):
        # the block of the first is that of node one; the other is in nobody's, and one is not first by name
        found = [step.reservation for step in steps(cluster(gone), LocalPods(node), NOW, KEEP)]
        assert found == [replace(held, released=NOW) for held in wanted[:1]]
    acting = [node for node in ("one", "two", "three") if list(steps(cluster(far), LocalPods(node), NOW, KEEP))]
    assert acting == ["one"]


def test_what_somebody_deleted_is_made_again() -> None:
    here = LocalPods("one", claims=frozenset({MINE}))
    assert [made.name for made in reservation_rules.lost(cluster(), here, NOW)] == ["10-244-1-7"]
    assert not list(reservation_rules.lost(cluster(HELD), here, NOW))
    assert not list(reservation_rules.lost(cluster(), replace(here, busy={X}), NOW))


def test_away_is_what_is_in_use_and_in_no_block_of_its_node() -> None:
    network = network_of("testcni", subnet=net("10.244.0.0/16"))
    moved = replace(HELD, node="two")

    def found(held: IPReservation, network: Network = network, node: str = "three") -> list[IPReservation]:
        return list(reservation_rules.roaming(cluster(held), network, node))

    assert found(moved) == [moved]
    assert found(moved, node="one") == [moved]
    assert found(moved, node="two") == []
    assert found(HELD) == []
    assert found(replace(moved, released=NOW)) == []
    assert found(replace(moved, asks="one")) == []
    assert found(replace(moved, node="gone")) == []
    assert found(moved, network_of("other")) == []
    assert found(moved, network_of("testcni", subnet=net("10.9.0.0/16"))) == []
    claimed_block = cluster(moved, nodes=("two", "three"))
    claimed_block = replace(claimed_block, blocks={"b": IPBlock(net("10.244.1.0/24"), "two", "p")})
    assert list(reservation_rules.roaming(claimed_block, network, "three")) == []
