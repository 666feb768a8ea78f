"""How many addresses of pools are in use and free: pure functions of what all nodes say."""

from __future__ import annotations

import ipaddress
import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ipam import blocks, usage
from agent.model.cluster import IPBlock, IPPool, IPReservation, Node, Snapshot
from agent.model.node_status import NodeStatus
from agent.model.usage import BlockUsage, PoolCounts
from tests.networks import network_of
from tests.support import net

NETWORK = network_of("pods")
NOW = datetime(2026, 1, 31, tzinfo=UTC)


def held(address: str, node: str = "two", released: datetime | None = NOW) -> IPReservation:
    return IPReservation(ipaddress.ip_address(address), "a/b", "a/b", node, "pods", NOW, released)


def pool(cidr: str, size: int, **more: Any) -> IPPool:
    return IPPool("p", net(cidr), size, **more)


@pytest.mark.parametrize(
    ("it", "expected"),
    [
        (pool("10.0.0.0/16", 24), 256 * 253),
        (pool("10.0.0.0/29", 30), 2),
        (pool("fd00::/64", 122), 2**58 * 62),
        (pool("10.0.0.0/24", 26, exclude=(net("10.0.0.0/26"),)), 3 * 61),
        (pool("10.0.0.0/24", 24, gateway=ipaddress.ip_address("10.0.0.1")), 253),
        (pool("10.0.0.0/24", 24, gateway=ipaddress.ip_address("10.0.0.254")), 252),
        (
            pool(
                "10.0.0.0/24", 24, start=ipaddress.ip_address("10.0.0.10"), end=ipaddress.ip_address("10.0.0.19")
            ),
            10,
        ),
        (pool("10.0.0.0/24", 24, exclude=(net("10.0.0.0/24"),)), 0),
    ],
)
def test_how_many_addresses_a_pool_has(it: IPPool, expected: int) -> None:
    assert usage.capacity(it, Snapshot(True, pools={"p": it})) == expected


def test_pod_cidrs_in_a_pool_are_not_the_pools() -> None:
    it = pool("10.0.0.0/16", 24)
    nodes = {"a": Node("a", blocks=(net("10.0.3.0/24"), net("fd00::/64")))}
    assert usage.capacity(it, Snapshot(True, nodes, {"p": it})) == 255 * 253


def test_where_pods_share_a_subnet_blocks_lose_no_address() -> None:
    it = pool("192.0.2.0/24", 28)
    block = IPBlock(net("192.0.2.16/28"), "a", "p", shared=True)
    snapshot = Snapshot(True, {}, {"p": it}, {block.name: block})
    assert usage.capacity(it, snapshot) == 256
    counts = lambda part: (0, 0, part.size)  # noqa: E731
    (shown,) = usage.of_node("a", snapshot, NodeStatus(True), {}, counts).values()
    assert shown.free == 16


@given(
    st.integers(24, 30),
    st.lists(st.tuples(st.integers(0, 255), st.integers(26, 32)), max_size=4),
    st.tuples(st.integers(0, 255), st.integers(0, 255)),
)
def test_the_capacity_of_a_pool_is_that_of_its_blocks(
    size: int, holes: list[tuple[int, int]], bounds: tuple[int, int]
) -> None:
    base = ipaddress.ip_address("10.0.0.0")
    exclude = tuple(ipaddress.ip_network((int(base) + at, prefix), strict=False) for at, prefix in holes)
    low, high = sorted(bounds)
    it = pool("10.0.0.0/24", size, exclude=exclude, start=base + low, end=base + high)
    snapshot = Snapshot(True, {}, {"p": it})
    cut = it.cidr.subnets(new_prefix=size)
    parts = ((block, blocks.excluded(snapshot, NETWORK, "n", (block,))) for block in cut)
    expected = sum(blocks.ranges(NETWORK, (b,), barred, frozenset())[0].size for b, barred in parts)
    assert usage.capacity(it, snapshot) == expected


def test_pools_count_blocks_pods_off_block_and_kept_addresses() -> None:
    it = pool("10.0.0.0/24", 26)
    own = (IPBlock(net(f"10.0.0.{n * 64}/26"), f"n{n}", "p") for n in range(2))
    snapshot = Snapshot(
        True, {}, {"p": it}, {b.name: b for b in own},
        {r.name: r for r in (held("10.0.0.9"), held("10.0.0.70", released=None), held("10.8.0.1"))},
    )  # fmt: skip
    found = usage.of_pools(snapshot, [
        BlockUsage("a", "n0", "p", net("10.0.0.0/26"), 5, 1, 55, ()),
        BlockUsage("b", "n1", "p", net("10.0.0.64/26"), 7, 0, 54, ()),
        BlockUsage("c", "n2", "other", net("10.1.0.0/26"), 9, 0, 54, ()),
        BlockUsage("off-block.n3", "n3", "", None, 2, 0, None, ("10.0.0.200 a/b", "10.8.0.1 a/c", "and 3 more")),
    ])  # fmt: skip
    assert found == {"p": PoolCounts(used=13, free=4 * 61 - 13 - 1, blocks=2)}


def test_a_pool_that_nobody_uses_is_free_and_a_full_one_is_not_below_nothing() -> None:
    it = pool("10.0.0.0/29", 30)
    assert usage.of_pools(Snapshot(True, {}, {"p": it}), []) == {"p": PoolCounts(0, 2, 0)}
    over = BlockUsage("a", "n", "p", net("10.0.0.0/30"), 9, 0, 0, ())
    assert usage.of_pools(Snapshot(True, {}, {"p": it}), itertools.repeat(over, 1))["p"].free == 0
