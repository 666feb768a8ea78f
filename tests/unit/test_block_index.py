"""In whose block an address lies: the smallest block, of whichever kind, and cheap with thousands of nodes."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.ipam import block_index
from agent.ipam.reservations import problems as reservation_problems
from agent.ipam.reservations import rules as reservation_rules
from agent.ipam.reservations.rules import LocalPods
from agent.model.cluster import WHILE_POD, IPBlock, IPReservation, Node, Snapshot
from tests.networks import network_of

NET = network_of("net")
NODES, RESERVED = 5000, 1000
MOST = 2.0  # seconds of CPU for all of it; a search of every block for each reservation takes 30


def node(number: int) -> Node:
    block = ipaddress.IPv4Network((int(ipaddress.IPv4Address("10.0.0.0")) + number * 256, 24))
    return Node(f"node{number}", (ipaddress.IPv4Address("172.16.0.0") + number,), (block,))


def reserved(number: int, **what: Any) -> IPReservation:
    address = ipaddress.IPv4Address("10.200.0.2") + number // 100 * 256 + number % 100
    return IPReservation(address, f"ns/pod{number}", **what)


@pytest.mark.parametrize("node_of", [{"node": "node1", "pod": "ns/a"}, {"node": "gone", "pod": "ns/a"}, {}])
def test_a_thousand_reservations_outside_of_five_thousand_nodes_blocks(node_of: dict[str, str]) -> None:
    """What each round, or each look of the reservation controller, does about all of them."""
    what = {**node_of, "network": "net", "keep": WHILE_POD} if node_of else {}
    held = {one.name: one for one in (reserved(number, **what) for number in range(RESERVED))}
    snapshot = Snapshot(True, {n.name: n for n in map(node, range(NODES))}, reservations=held)
    began = time.process_time()
    roaming = list(reservation_rules.roaming(snapshot, NET, "node9"))
    told = [
        *reservation_problems.misplaced(snapshot, [NET], "node9"),
        *reservation_problems.useless(snapshot, [NET], "node0"),
    ]
    now = datetime(2030, 1, 1, tzinfo=UTC)
    steps = list(reservation_rules.steps(snapshot, LocalPods("node0"), now, timedelta(seconds=600)))
    assert time.process_time() - began < MOST
    assert len(roaming) == (RESERVED if node_of.get("node") == "node1" else 0)
    assert len(steps) == (RESERVED if node_of.get("node") == "gone" else 0)
    assert len(told) == (0 if node_of else RESERVED)


def test_the_smallest_block_is_the_home_and_a_podcidr_counts_before_a_claim() -> None:
    large, small = ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("10.1.2.0/24")
    six = ipaddress.ip_network("fd00:1::/64")
    nodes = {"a": Node("a", blocks=(large, six)), "b": Node("b", blocks=(small,))}
    claimed = {block.name: block for block in (IPBlock(small, "c", "pool"), IPBlock(large, "c", "pool"))}
    snapshot = Snapshot(True, nodes, blocks=claimed)
    for text, found in {
        "10.1.2.3": (small, "b"),
        "10.1.3.0": (large, "a"),
        "10.1.255.255": (large, "a"),
        "10.2.0.0": None,
        "10.0.255.255": None,
        "fd00:1::1": (six, "a"),
        "fd00:2::1": None,
    }.items():
        assert reservation_rules.home(snapshot, ipaddress.ip_address(text)) == found, text


def test_a_snapshot_with_other_nodes_or_blocks_has_homes_of_its_own() -> None:
    address, block = ipaddress.ip_address("10.1.2.3"), ipaddress.ip_network("10.1.2.0/24")
    first = Snapshot(True, {"a": Node("a", blocks=(block,))})
    moved = replace(first, nodes={"b": Node("b", blocks=(block,))})
    left = replace(moved, nodes={})
    claimed = replace(left, blocks={"x": IPBlock(block, "c", "pool")})
    for _ in range(2):
        found = [reservation_rules.home(snapshot, address) for snapshot in (first, moved, left, claimed)]
        assert found == [(block, "a"), (block, "b"), None, (block, "c")]
    assert block_index.of(first) is block_index.of(replace(first, reservations={}))
