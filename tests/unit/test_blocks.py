"""Which blocks a node has and may claim."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st

from agent.ipam import blocks
from agent.ipam.block_claims import free_blocks
from agent.ipam.reservations import problems as reservation_problems
from agent.ipam.reservations import rules as reservation_rules
from agent.model.cluster import IPBlock, IPPool, IPReservation, Node, Snapshot, block_name
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from tests.networks import MODES, changed, network_of, parse_conf
from tests.support import ip, net
from tests.unit.properties import examples

POOL = IPPool("pods", net("10.244.0.0/20"), 24)
NETWORK = network_of("net", subnet=net("10.244.0.0/16"))


def cluster(*claimed: IPBlock, nodes: tuple[Node, ...] = (), pools: tuple[IPPool, ...] = (POOL,)) -> Snapshot:
    return Snapshot(
        synced=True,
        nodes={n.name: n for n in nodes},
        pools={p.name: p for p in pools},
        blocks={b.name: b for b in claimed},
    )


def test_pod_cidrs_come_before_claims() -> None:
    me = Node("one", (), (net("10.244.9.0/24"), net("192.168.0.0/24")))
    claimed = IPBlock(net("10.244.1.0/24"), "one", "pods")
    assert blocks.node_blocks(cluster(claimed, nodes=(me,)), NETWORK, "one") == (net("10.244.9.0/24"),)
    assert blocks.node_blocks(cluster(claimed), NETWORK, "one") == (net("10.244.1.0/24"),)
    assert blocks.node_blocks(cluster(claimed), NETWORK, "two") == ()


def test_a_netconfs_subnet_is_a_pool_where_no_ippool_covers_it() -> None:
    (pool,) = blocks.pools(cluster(pools=()), NETWORK)
    assert (pool.cidr, pool.block_size) == (net("10.244.0.0/16"), 24)
    assert blocks.pools(cluster(), NETWORK) == (POOL,)
    assert blocks.pools(cluster(pools=()), network_of("net")) == ()


def test_nodes_begin_their_search_at_different_places() -> None:
    firsts = {next(free_blocks.candidates(cluster(), NETWORK, f"node{n}")).cidr for n in range(40)}
    assert len(firsts) > 10


@settings(max_examples=examples(60), deadline=None)
@given_by(
    st.sets(st.integers(0, 15)), st.sets(st.integers(0, 60), max_size=4), st.text("abc", min_size=1, max_size=3)
)
def test_candidates_are_all_that_nobody_has(claimed: set[int], odd: set[int], node: str) -> None:
    taken = [IPBlock(net(f"10.244.{n}.0/24"), "other", "pods") for n in claimed]
    owner = Node("owner", (), tuple(net(f"10.244.{n // 4}.{n % 4 * 64}/26") for n in odd))
    found = [c.cidr for c in free_blocks.candidates(cluster(*taken, nodes=(owner,)), NETWORK, node)]
    free = set(range(16)) - claimed - {n // 4 for n in odd}
    assert sorted(found) == [net(f"10.244.{n}.0/24") for n in sorted(free)]


def test_a_vast_pool_costs_nothing_before_it_is_searched() -> None:
    vast = IPPool("vast", net("fd00::/48"), 112)
    network = network_of("net", subnet=net("fd00::/48"))
    found = list(islice(free_blocks.candidates(cluster(pools=(vast,)), network, "one"), 3))
    assert len({block.cidr for block in found}) == 3


PART = IPPool(
    "part",
    net("192.0.2.0/24"),
    29,
    start=ip("192.0.2.20"),
    end=ip("192.0.2.99"),
    exclude=(net("192.0.2.32/28"), net("192.0.2.64/30"), net("192.0.2.68/30"), net("192.0.2.81/32")),
    gateway=ip("192.0.2.80"),
)
LAN = network_of("lan", "macvlan", net("192.0.2.0/24"), link_mode="bridge")


def given(network: Network, block: str, *pools: IPPool) -> list[str]:
    """What pods may have of a block: the last bytes of the addresses."""
    own, snapshot = (net(block),), cluster(pools=pools)
    barred = blocks.excluded(snapshot, network, "one", own)
    (there,) = blocks.prepared(NodeStatus(excluded={network: barred}), network, own)
    return [str(address).rpartition(".")[2] for address in own[0] if address in there]


def test_blocks_wholly_outside_or_excluded_are_never_claimed() -> None:
    found = [str(block.cidr) for block in free_blocks.candidates(cluster(pools=(PART,)), LAN, "one")]
    firsts = [16, 24, 48, 56, 72, 80, 88, 96]  # 64: two exclusions together are the whole block
    assert sorted(found, key=lambda cidr: int(net(cidr)[0])) == [f"192.0.2.{first}/29" for first in firsts]


@pytest.mark.parametrize(
    ("block", "rest"),
    [
        ("192.0.2.16/29", ["20", "21", "22", "23"]),
        ("192.0.2.80/29", ["82", "83", "84", "85", "86", "87"]),
        ("192.0.2.96/29", ["96", "97", "98", "99"]),
        ("192.0.2.64/29", []),
    ],
)
def test_addresses_outside_or_excluded_are_never_given(block: str, rest: list[str]) -> None:
    assert given(LAN, block, PART) == rest


@pytest.mark.parametrize("mode", MODES)
def test_that_holds_in_every_mode(mode: str) -> None:
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "n", "mode": mode, "subnet": "192.0.2.0/24"}
    network = parse_conf(conf).network
    left = given(network, "192.0.2.80/28", PART)
    assert left == [str(n) for n in range(82, 96 if network.needs_parent else 95)]


def test_a_podcidr_that_lies_in_a_pool_is_bound_by_it_too() -> None:
    me = Node("one", (), (net("192.0.2.96/28"),))
    snapshot = cluster(nodes=(me,), pools=(PART,))
    network = network_of("n")
    own = blocks.node_blocks(snapshot, network, "one")
    barred = blocks.excluded(snapshot, network, "one", own)
    assert [r.size for r in blocks.ranges(network, own, barred, frozenset())] == [2]  # .98 and .99


def test_a_range_by_hand_may_be_where_a_pool_gives_none_but_not_what_is_others() -> None:
    network = replace(LAN, range_start=ip("192.0.2.78"), range_end=ip("192.0.2.110"))
    snapshot = cluster(IPBlock(net("192.0.2.88/29"), "two", "part"), pools=(PART,))
    own = blocks.node_blocks(snapshot, network, "one")
    (there,) = blocks.ranges(network, own, blocks.excluded(snapshot, network, "one", own), frozenset())
    free = [int(str(a).rpartition(".")[2]) for a in own[0] if a in there]
    assert free == [78, 79, *range(82, 88), *range(96, 111)]


@pytest.mark.parametrize(
    ("start", "end", "exclude", "found"),
    [
        ("fd00::5:0", "fd00::6:9", [], ["fd00::5:0/112", "fd00::6:0/112"]),
        ("fd00::5:0", "fd00::6:1", [], ["fd00::5:0/112"]),  # of fd00::6:0/112 a pod can have nothing below ::6:2
        ("fd00::5:0", "fd00::8:9", ["fd00::6:0/111"], ["fd00::5:0/112", "fd00::8:0/112"]),
        ("fd00::", "fd00::8:9", ["fd00::/110", "fd00::4:0/110"], ["fd00::8:0/112"]),
    ],
)
def test_a_vast_pool_of_which_little_is_used(start: str, end: str, exclude: list[str], found: list[str]) -> None:
    vast = IPPool("vast", net("fd00::/48"), 112, "", ip(start), ip(end), tuple(map(net, exclude)))
    network = network_of("net", subnet=net("fd00::/48"))
    assert sorted(str(c.cidr) for c in free_blocks.candidates(cluster(pools=(vast,)), network, "one")) == found


POD_CIDRS = tuple(net(f"fd00:0:0:{number:x}::/64") for number in range(255))
"""All but the last /64 of fd00::/56."""


@pytest.mark.parametrize(
    ("network", "claimed", "pools", "inside"),
    [
        pytest.param(
            network_of("n", subnet=net("fd00:0:0:1::/64")),
            "",
            {"fd00::/32": {}},
            "fd00:0:0:1::/64",
            id="its subnet",
        ),
        pytest.param(
            network_of("n", range_start=ip("fd00:0:1::"), range_end=ip("fd00:0:1::ffff")),
            "",
            {"fd00::/32": {}},
            "fd00:0:1::/112",
            id="a netconf's range",
        ),
        pytest.param(
            network_of("n"), "fd00::/65", {"fd00::/64": {}}, "fd00::8000:0:0:0/65", id="a larger block of old"
        ),
        pytest.param(network_of("n"), "fd00::/64", {"fd00::/64": {}}, "", id="a block of old that is the pool"),
        pytest.param(
            network_of("n"),
            "",
            {"fd00::/64": {}, "fd00::/65": {"exclude": (net("fd00::/65"),)}},
            "fd00::8000:0:0:0/65",
            id="what another pool leaves out",
        ),
        pytest.param(network_of("n"), "owner", {"fd00::/56": {}}, "fd00:0:0:ff::/64", id="podCIDRs"),
    ],
)
def test_a_vast_pool_of_which_most_can_not_be_claimed_is_not_searched_one_by_one(
    network: Network, claimed: str, pools: dict[str, dict[str, Any]], inside: str
) -> None:
    """The block controller was busy for good with the 2^58 blocks of a /64 that was another node's podCIDR."""
    there = tuple(IPPool(cidr, net(cidr), 122, **kept) for cidr, kept in pools.items())
    owner = (Node("owner", (), POD_CIDRS),) if claimed == "owner" else ()
    others = (IPBlock(net(claimed), "other", "old"),) if "/" in claimed else ()
    for node in ("one", "two", "three", "four"):
        found = [*islice(free_blocks.candidates(cluster(*others, nodes=owner, pools=there), network, node), 3)]
        assert bool(found) == bool(inside)
        assert all(blocks.within(block.cidr, net(inside)) for block in found)


def test_a_block_of_a_pool_is_no_candidate_of_another_one_with_smaller_blocks() -> None:
    large, small = IPPool("large", net("10.244.0.0/24"), 25), IPPool("small", net("10.244.0.0/24"), 27)
    taken = IPBlock(net("10.244.0.0/25"), "other", "large")
    found = {block.cidr for block in free_blocks.candidates(cluster(taken, pools=(large, small)), NETWORK, "one")}
    assert found == {net("10.244.0.128/25"), *net("10.244.0.128/25").subnets(2)}


def test_a_vast_pool_of_which_half_is_excluded() -> None:
    vast = IPPool("vast", net("fd00::/48"), 112, exclude=(net("fd00::/49"),))
    for node in ("one", "two", "three", "four"):
        found = islice(free_blocks.candidates(cluster(pools=(vast,)), network_of("n"), node), 3)
        assert all(int(block.cidr[0]) >= int(ip("fd00:0:0:8000::")) for block in found)


@settings(max_examples=examples(40), deadline=None)
@given_by(st.data())
def test_what_is_left_of_a_pool_is_what_a_simple_count_says(data: st.DataObject) -> None:
    """Against each address looked at by itself."""
    numbers = st.integers(0, 127)
    start, end = sorted(data.draw(st.tuples(numbers, numbers)))
    nets = st.integers(25, 32).flatmap(
        lambda length: st.integers(0, (1 << (length - 25)) - 1).map(
            lambda n: net(f"192.0.2.{n << (32 - length)}/{length}")
        )
    )
    exclude = tuple(data.draw(st.lists(nets, max_size=4, unique=True)))
    pool = IPPool("p", net("192.0.2.0/25"), 29, "", net("192.0.2.0/25")[start], net("192.0.2.0/25")[end], exclude)
    allowed = {n for n in range(start, end + 1) if not any(net("192.0.2.0/25")[n] in e for e in exclude)}
    found = [
        c.cidr for c in free_blocks.candidates(cluster(pools=(pool,)), LAN, data.draw(st.text("ab", min_size=1)))
    ]
    assert len(found) == len(set(found))
    assert {int(cidr[0]) % 256 for cidr in found} == {n // 8 * 8 for n in allowed}
    for cidr in found:
        first = int(cidr[0]) % 256
        left = {int(last) for last in given(LAN, str(cidr), pool)}
        assert left == allowed & set(range(first, first + 8))


@settings(deadline=None)
@given_by(
    st.dictionaries(st.integers(0, 15), st.booleans(), max_size=12),
    st.sets(st.integers(0, 15)),
    st.integers(0, 5),
    st.booleans(),
)
def test_what_is_given_back_is_neither_busy_nor_wanted_nor_the_last(
    claimed: dict[int, bool], busy: set[int], wanted: int, in_force: bool
) -> None:
    mine = [
        IPBlock(net(f"10.244.{n}.0/24"), "one" if is_mine else "two", "pods") for n, is_mine in claimed.items()
    ]
    snapshot = cluster(*mine)
    networks = {NETWORK: max(1, wanted)} if in_force else {}
    used = {net(f"10.244.{n}.0/24") for n in busy}
    gone = blocks.surplus(snapshot, "one", networks, used)
    assert all(block.node == "one" and block.cidr not in used for block in gone)
    had = set(blocks.node_blocks(snapshot, NETWORK, "one"))
    left = had - {block.cidr for block in gone}
    if in_force:
        assert len(left) >= min(len(had), max(1, wanted))
        assert len(left) == min(len(had), max(1, wanted)) or left <= used, "nothing idle is kept for nothing"
    else:
        assert left == had & used


def test_each_network_keeps_its_own_and_each_ip_version() -> None:
    four, six = net("10.244.1.0/24"), net("fd00::/122")
    other = net("10.9.1.0/24")
    snapshot = cluster(*(IPBlock(cidr, "one", "p") for cidr in (four, six, other, net("10.9.2.0/24"))))
    networks = {network_of("all"): 1, network_of("nine", subnet=net("10.9.0.0/16")): 1}
    assert {str(b.cidr) for b in blocks.surplus(snapshot, "one", networks, set())} == {
        "10.9.2.0/24",
        "10.244.1.0/24",
    }


def test_blocks_that_were_claimed_before_the_node_got_a_podcidr_go_back() -> None:
    me = Node("one", (), (net("10.244.9.0/24"),))
    claimed = IPBlock(net("10.244.1.0/24"), "one", "pods")
    assert blocks.surplus(cluster(claimed, nodes=(me,)), "one", {NETWORK: 1}, set()) == {claimed}


def test_a_blocks_name_is_its_cidr() -> None:
    assert block_name(net("10.244.3.0/24")) == "10-244-3-0-24"
    assert block_name(net("fd00::/122")) == "fd00-0000-0000-0000-0000-0000-0000-0000-122"


def test_who_asks_for_a_pool_by_name_has_blocks_of_that_pool_only() -> None:
    gold = IPPool("gold", net("10.244.64.0/20"), 26)
    me = Node("one", (), (net("10.244.9.0/24"),))
    named = replace(NETWORK, pool="gold")
    mine = IPBlock(net("10.244.64.0/26"), "one", "gold")
    others = IPBlock(net("10.244.1.0/24"), "one", "pods")
    snapshot = cluster(mine, others, nodes=(me,), pools=(POOL, gold))
    assert blocks.node_blocks(snapshot, named, "one") == (mine.cidr,)
    assert blocks.pools(snapshot, named) == (gold,)
    assert all(block.pool == "gold" for block in islice(free_blocks.candidates(snapshot, named, "one"), 5))
    assert blocks.pools(snapshot, replace(NETWORK, pool="silver")) == ()
    assert blocks.node_blocks(snapshot, NETWORK, "one") == me.blocks


def test_a_mode_that_carries_ipv4_only_has_no_ipv6_blocks() -> None:
    six = IPPool("six", net("fd00::/64"), 122)
    me = Node("one", (), (net("10.244.9.0/24"), net("fd00:9::/64")))
    both = cluster(IPBlock(net("fd00::/122"), "one", "six"), nodes=(Node("one"),), pools=(POOL, six))
    for mode, versions in (("host-gw", {4, 6}), ("vxlan", {4}), ("ipip", {4})):
        network = network_of("n", mode)
        assert blocks.families(both, network, "one") == versions
        assert {pool.cidr.version for pool in blocks.pools(both, network)} == versions
        assert {b.version for b in blocks.node_blocks(cluster(nodes=(me,)), network, "one")} == versions
    assert blocks.node_blocks(both, network_of("n", "vxlan"), "one") == ()
    assert {b.cidr.version for b in islice(free_blocks.candidates(both, network_of("n"), "one", 6), 3)} == {6}


@settings(deadline=None)
@given_by(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_a_network_keeps_as_many_blocks_of_each_ip_version_as_it_wants(
    fours: int, sixes: int, four: int, six: int
) -> None:
    mine = [*(net(f"10.244.{n}.0/24") for n in range(fours)), *(net(f"fd00:{n}::/122") for n in range(sixes))]
    snapshot = cluster(*(IPBlock(cidr, "one", "p") for cidr in mine))
    gone = blocks.surplus(snapshot, "one", {network_of("n"): {4: four, 6: six}}, set())
    left = [cidr.version for cidr in {*mine} - {block.cidr for block in gone}]
    assert left.count(4) == min(fours, max(1, four))
    assert left.count(6) == min(sixes, max(1, six))


def held(text: str, network: str = "net", node: str = "two") -> IPReservation:
    return IPReservation(ip(text), "ns/pod", "ns/pod", node, network, datetime(2026, 1, 31, tzinfo=UTC))


@settings(deadline=None)
@given_by(st.sets(st.integers(0, 255), max_size=12), st.sampled_from(MODES))
def test_no_node_claims_a_block_whose_gateway_is_reserved(numbers: set[int], mode: str) -> None:
    pool = IPPool("pods", net("10.244.0.0/24"), 28)
    taken = [held(f"10.244.0.{number}") for number in numbers]
    snapshot = replace(cluster(pools=(pool,)), reservations={r.name: r for r in taken})
    link_mode = {"macvlan": "bridge", "ipvlan": "l2"}.get(mode, "")
    network = network_of("net", mode, net("10.244.0.0/16"), link_mode=link_mode)
    found = {candidate.cidr for candidate in free_blocks.candidates(snapshot, network, "one")}
    for cidr in pool.cidr.subnets(new_prefix=28):
        low = int(cidr[0]) % 256
        barred = numbers & ({low, low + 1, low + 15} if not link_mode else set())
        full = set(range(low, low + 16)) <= numbers
        assert (cidr in found) == (not barred and not full)


def test_a_reservation_of_a_blocks_gateway_is_a_problem_on_both_nodes_and_leads_nowhere() -> None:
    nodes = (Node("one", (), (net("10.244.1.0/24"),)), Node("two", (), (net("10.244.2.0/24"),)), Node("three"))
    wrong = held("10.244.1.1")
    snapshot = replace(cluster(nodes=nodes), reservations={wrong.name: wrong})
    for node in ("one", "two"):
        (problem,) = reservation_problems.misplaced(snapshot, [NETWORK], node)
        assert "10.244.1.1" in problem.what
        assert "block 10.244.1.0/24 of node one" in problem.what
        assert "ns/pod" in problem.remedy
    assert list(reservation_problems.misplaced(snapshot, [NETWORK], "three")) == []
    assert list(reservation_rules.roaming(snapshot, NETWORK, "one")) == []
    shared = changed(NETWORK, mode="macvlan", link_mode="bridge")
    assert list(reservation_problems.misplaced(snapshot, [shared], "one")) == []
