"""Which blocks a node has and may claim."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ipam import blocks
from agent.model import IPBlock, IPPool, Network, Node, Snapshot, Subnet, block_name


def net(text: str) -> Subnet:
    return ipaddress.ip_network(text)


POOL = IPPool("pods", net("10.244.0.0/20"), 24)
NETWORK = Network("net", subnet=net("10.244.0.0/16"))


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
    assert blocks.pools(cluster(pools=()), Network("net")) == ()


def test_nodes_begin_their_search_at_different_places() -> None:
    firsts = {next(blocks.candidates(cluster(), NETWORK, f"node{n}")).cidr for n in range(40)}
    assert len(firsts) > 10


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(0, 15)), st.sets(st.integers(0, 60), max_size=4), st.text("abc", min_size=1, max_size=3)
)
def test_candidates_are_all_that_nobody_has(claimed: set[int], odd: set[int], node: str) -> None:
    taken = [IPBlock(net(f"10.244.{n}.0/24"), "other", "pods") for n in claimed]
    owner = Node("owner", (), tuple(net(f"10.244.{n // 4}.{n % 4 * 64}/26") for n in odd))
    found = [c.cidr for c in blocks.candidates(cluster(*taken, nodes=(owner,)), NETWORK, node)]
    free = set(range(16)) - claimed - {n // 4 for n in odd}
    assert sorted(found) == [net(f"10.244.{n}.0/24") for n in sorted(free)]


def test_a_vast_pool_costs_nothing_before_it_is_searched() -> None:
    vast = IPPool("vast", net("fd00::/48"), 112)
    network = Network("net", subnet=net("fd00::/48"))
    found = list(islice(blocks.candidates(cluster(pools=(vast,)), network, "one"), 3))
    assert len({block.cidr for block in found}) == 3


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
    assert all(block.pool == "gold" for block in islice(blocks.candidates(snapshot, named, "one"), 5))
    assert blocks.pools(snapshot, replace(NETWORK, pool="silver")) == ()
    assert blocks.node_blocks(snapshot, NETWORK, "one") == me.blocks
