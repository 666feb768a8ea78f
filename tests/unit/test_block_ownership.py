"""Whose each block is, and which blocks a node may program: none that leads nodes' packets astray."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ip import Subnet
from agent.ipam import block_ownership, blocks
from agent.model.cluster import IPBlock, Node, Snapshot
from agent.modes.base import ModeContext
from agent.modes.ipip.state import IpipState
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan.state import VxlanState
from agent.node.last_known_nodes import LastKnownNodes
from agent.objects.state import LocalAddress, NodeState
from tests.fake_clock import FakeClock
from tests.networks import network_of
from tests.support import net
from tests.unit.properties import examples

MODES = ("host-gw", "vxlan", "ipip")
LOCAL = (
    LocalAddress("eth0", 1500, ipaddress.ip_interface("172.18.0.1/16")),
    LocalAddress("eth1", 1500, ipaddress.ip_interface("10.99.0.1/24")),
)


def node(name: str, number: int, *cidrs: str, created: str = "") -> Node:
    return Node(name, (ipaddress.ip_address(f"172.18.0.{number}"),), tuple(map(net, cidrs)), created=created)


ONE, TWO = node("one", 1, "10.244.1.0/24"), node("two", 2, "10.244.2.0/24")


def snapshot(*nodes: Node, claimed: tuple[IPBlock, ...] = ()) -> Snapshot:
    return Snapshot(True, {n.name: n for n in nodes}, blocks={b.name: b for b in claimed})


def owners(
    *nodes: Node, before: dict[Subnet, str] | None = None, claimed: tuple[IPBlock, ...] = ()
) -> dict[str, str]:
    found = block_ownership.resolve(snapshot(*nodes, claimed=claimed), before)
    return {str(block): owner for block, owner in found.owners.items()}


def desired(way: str, *nodes: Node, used: bool = False, routers: tuple[str, ...] = ()) -> NodeState:
    """What the first of the nodes wants."""
    me = nodes[0]
    using = frozenset(me.blocks if used else ())
    seen = ModeContext(
        snapshot(*nodes),
        me.name,
        LOCAL,
        network_of("net", way),
        me.blocks,
        used=using,
        routers=frozenset(map(ipaddress.ip_address, routers)),
        routed=BUILT_IN.routed,
    )
    return BUILT_IN[way].desired(seen)


def reached(state: NodeState) -> set[str]:
    """Blocks that packets go to, this node's included."""
    if tunnel := state.section(VxlanState) or state.section(IpipState):
        return {str(block) for block, _node in tunnel.blocks}
    mine = {str(interface.network) for bridge in state.bridges for interface in bridge.addresses}
    return mine | {str(route.dst) for route in state.routes}


@pytest.mark.parametrize("way", MODES)
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("172.18.255.0/24", "overlaps 172.18.0.1/16 of this node's eth0"),
        ("172.16.0.0/12", "overlaps 172.18.0.1/16 of this node's eth0"),
        ("203.0.113.0/24", "contains 203.0.113.254, which is a node's address or gateway"),
        ("192.0.2.0/24", "contains 192.0.2.7, which is a node's address or gateway"),
    ],
)
def test_a_block_that_cuts_the_node_off_is_not_programmed(way: str, used: bool, block: str, why: str) -> None:
    far = Node("far", (ipaddress.ip_address("192.0.2.7"),), ())
    routers = ("203.0.113.254",)
    state = desired(way, node("one", 1, block, "10.244.1.0/24"), far, used=used, routers=routers)
    assert reached(state) == {"10.244.1.0/24"}
    assert state.refused == {net(block)}
    assert state.masquerade.sources == {net("10.244.1.0/24")}
    assert [(p.where, why in p.what) for p in state.problems if p.where == "node one"] == [("node one", True)]
    # as peers' blocks are
    state = desired(way, ONE, far, node("two", 2, block), routers=routers)
    assert reached(state) == {"10.244.1.0/24"}
    assert [(p.where, why in p.what) for p in state.problems if p.where == "node two"] == [("node two", True)]


SPECIAL = [
    ("0.1.0.0/16", "0.0.0.0/8", "RFC 1122"),
    ("127.1.0.0/16", "127.0.0.0/8", "RFC 1122"),
    ("169.254.0.0/16", "169.254.0.0/16", "RFC 3927"),
    ("169.254.169.0/24", "169.254.0.0/16", "RFC 3927"),
    ("224.0.0.0/24", "224.0.0.0/4", "RFC 5771"),
    ("239.255.0.0/16", "224.0.0.0/4", "RFC 5771"),
    ("240.10.0.0/16", "240.0.0.0/4", "RFC 1112"),
    ("128.0.0.0/1", "169.254.0.0/16", "RFC 3927"),
]
SPECIAL_6 = [
    ("::/64", "::/8", "RFC 4291"),
    ("::ffff:10.244.1.0/120", "::ffff:0:0/96", "RFC 4291"),
    ("64:ff9b::/112", "::/8", "RFC 4291"),
    ("100::/64", "100::/64", "RFC 6666"),
    ("fe80:1::/64", "fe80::/10", "RFC 4291"),
    ("ff02::/64", "ff00::/8", "RFC 4291"),
]
EVERYWHERE = [(way, *case) for way in MODES for case in SPECIAL] + [("host-gw", *case) for case in SPECIAL_6]


@pytest.mark.parametrize(("way", "block", "kept", "source"), EVERYWHERE)
@pytest.mark.parametrize("used", [False, True])
def test_a_block_of_addresses_that_are_kept_for_other_uses_is_refused_as_own_and_as_peers(
    way: str, block: str, kept: str, source: str, used: bool
) -> None:
    """169.254.0.0/16 would take the cloud's metadata address from all nodes and pods."""
    block, kept = str(net(block)), str(net(kept))
    for created in ("", "2026-01-01"):
        me = replace(node("one", 1, block, "10.244.1.0/24"), created=created)
        state = desired(way, me, used=used)
        # pods run on where Linux routes their addresses as all others
        stays = used and (kept in ("0.0.0.0/8", "240.0.0.0/4", "100::/64") or block == "64:ff9b::/112")
        assert reached(state) == {"10.244.1.0/24", *([block] if stays else [])}
        assert state.refused == {net(block)}
        (problem,) = state.problems
        assert problem.where == "node one"
        assert f"block {block} overlaps {kept}, which is kept for" in problem.what
        assert source in problem.what
        state = desired(way, ONE, replace(node("two", 2, block, "10.244.2.0/24"), created=created))
        assert reached(state) == {"10.244.1.0/24", "10.244.2.0/24"}
        assert net(block) not in state.masquerade.exempt, "pods would lose what is there"
        (problem,) = state.problems
        assert problem.where == "node two"
        assert f"block {block} overlaps {kept}, which is kept for" in problem.what


@pytest.mark.parametrize(("way", "block"), [*((way, "0.0.0.0/0") for way in MODES), ("host-gw", "::/0")])
def test_a_block_of_all_addresses_is_refused(way: str, block: str) -> None:
    for used in (False, True):
        state = desired(way, node("one", 1, block, "10.244.1.0/24"), used=used)
        assert reached(state) == {"10.244.1.0/24"}
        assert [f"block {block} overlaps" in problem.what for problem in state.problems] == [True]
    state = desired(way, ONE, node("two", 2, block, "10.244.2.0/24"))
    assert reached(state) == {"10.244.1.0/24", "10.244.2.0/24"}
    assert [f"block {block} overlaps" in problem.what for problem in state.problems] == [True]


@pytest.mark.parametrize("way", MODES)
@pytest.mark.parametrize("block", ["10.244.9.7/32", "10.244.9.6/31"])
def test_a_block_without_room_for_a_pod_is_refused(way: str, block: str) -> None:
    state = desired(way, node("one", 1, block, "10.244.1.0/24"), node("two", 2, "10.244.2.0/24"))
    assert reached(state) == {"10.244.1.0/24", "10.244.2.0/24"}
    assert [f"block {block} is too small for a gateway and a pod" in p.what for p in state.problems] == [True]
    state = desired(way, ONE, node("two", 2, block, "10.244.2.0/24"))
    assert reached(state) == {"10.244.1.0/24", "10.244.2.0/24"}
    assert [f"block {block} is too small for a gateway and a pod" in p.what for p in state.problems] == [True]


@pytest.mark.parametrize("way", MODES)
def test_nodes_that_are_in_each_others_blocks_have_none_unless_one_was_there_before(way: str) -> None:
    one = node("one", 5, "192.0.2.0/24", "10.244.1.0/24")
    two = Node("two", (net("192.0.2.9/32")[0],), (net("172.18.0.0/24"),))
    three = node("three", 3, "10.244.3.0/24")
    for nodes in ((one, two, three), (three, one, two)):
        state = desired(way, *nodes)
        assert reached(state) & {"192.0.2.0/24", "172.18.0.0/24"} == set()
        assert {p.where for p in state.problems} >= {"node one", "node two"}
    state = desired(way, three, replace(one, created="2026-01-01"), replace(two, created="2026-02-02"))
    assert "192.0.2.0/24" in reached(state)
    what = "its InternalIP 192.0.2.9 is in block 192.0.2.0/24 of node one, which was there before"
    assert [p.where for p in state.problems if p.what == what] == ["node two"]


@pytest.mark.parametrize("way", MODES)
def test_a_block_of_another_local_network_stays_only_for_pods_that_have_it(way: str) -> None:
    for used in (True, False):
        state = desired(way, node("one", 1, "10.99.0.0/25", "10.244.1.0/24"), used=used)
        assert state.refused == {net("10.99.0.0/25")}
        assert ("10.99.0.0/25" in reached(state)) == used
        assert any("overlaps 10.99.0.1/24 of this node's eth1" in problem.what for problem in state.problems)


@pytest.mark.parametrize("way", MODES)
def test_an_address_that_a_node_lists_beside_its_own_costs_no_block(way: str) -> None:
    """A source of addresses may list those of bridges, and a bad node those of others."""
    listed = tuple(map(ipaddress.ip_address, ("172.18.0.3", "10.244.1.2", "10.244.2.2")))
    state = desired(way, ONE, TWO, Node("three", listed, (net("10.244.3.0/24"),)))
    assert reached(state) == {"10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"}
    assert not state.refused


@pytest.mark.parametrize("way", MODES)
def test_a_new_node_that_says_to_be_in_a_block_cuts_nobody_off(way: str) -> None:
    old = [replace(one, created="2026-01-01") for one in (ONE, TWO)]
    ends = [ipaddress.ip_address(text) for text in ("10.244.1.2", "10.244.2.2")]
    new = [Node(f"new{number}", (end,), (), created="2026-06-01") for number, end in enumerate(ends)]
    state = desired(way, *old, *new)
    assert reached(state) == {"10.244.1.0/24", "10.244.2.0/24"}
    assert not state.refused
    assert [f"its InternalIP {end} is in block" in str(state.problems) for end in ends] == [True, True]


@pytest.mark.parametrize("way", MODES)
@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("address", ["10.244.1.200/32", "10.244.2.200/32"])
def test_a_single_address_of_the_node_costs_no_block(
    way: str, used: bool, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = (*LOCAL, LocalAddress("eth0", 1500, ipaddress.ip_interface(address)))
    monkeypatch.setitem(desired.__globals__, "LOCAL", local)
    state = desired(way, ONE, TWO, used=used)
    assert reached(state) == {"10.244.1.0/24", "10.244.2.0/24"}
    assert not state.refused


@pytest.mark.parametrize("way", MODES)
@pytest.mark.parametrize("thief", ["10.244.2.0/25", "10.244.2.0/24", "10.244.0.0/16", "0.0.0.0/0"])
def test_a_block_inside_of_a_peers_does_not_take_its_pods(way: str, thief: str) -> None:
    nodes = (ONE, TWO, node("zzz", 9, thief, "10.244.9.0/24"))
    state = desired(way, *nodes)
    assert reached(state) == {"10.244.1.0/24", "10.244.2.0/24", "10.244.9.0/24"}
    (problem,) = state.problems
    assert problem.where == "node zzz"
    assert net(thief) not in state.masquerade.exempt or thief == "10.244.2.0/24"


def test_who_had_a_block_first_keeps_it() -> None:
    old, new = replace(TWO, created="2026-01-01"), node("aaa", 9, "10.244.2.0/24", created="2026-06-01")
    assert owners(old, new) == {"10.244.2.0/24": "two"}
    assert owners(TWO, new) == {"10.244.2.0/24": "aaa"}  # nobody knows when the other came
    assert owners(TWO, new, before={net("10.244.2.0/24"): "two"}) == {"10.244.2.0/24": "two"}
    assert owners(new, before={net("10.244.2.0/24"): "two"}) == {"10.244.2.0/24": "aaa"}
    half = node("aaa", 9, "10.244.2.0/25")
    assert owners(TWO, half, before={net("10.244.2.0/24"): "two"}) == {"10.244.2.0/24": "two"}
    claimed = IPBlock(net("10.244.2.0/26"), "three", "pods", created="2025-01-01")
    assert owners(old, claimed=(claimed,)) == {"10.244.2.0/26": "three"}


def test_a_nodes_own_blocks_may_lie_in_each_other() -> None:
    both = node("two", 2, "10.244.0.0/16", "10.244.2.0/24")
    claimed = IPBlock(net("10.244.2.0/24"), "two", "pods")
    assert owners(both, claimed=(claimed,)) == {"10.244.0.0/16": "two", "10.244.2.0/24": "two"}
    found = block_ownership.resolve(snapshot(both, claimed=(claimed,)))
    assert found.by_node["two"] == (net("10.244.0.0/16"), net("10.244.2.0/24"))
    assert not found.refused


claims = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 15), st.integers(28, 32)), max_size=12)


@settings(max_examples=examples(200), deadline=None)
@given(claims, st.randoms())
def test_no_two_nodes_have_one_address_whatever_the_order(
    claims: list[tuple[str, int, int]], shuffle: random.Random
) -> None:
    by_node: dict[str, list[str]] = {}
    for name, host, length in claims:
        block = str(ipaddress.ip_network(f"10.0.0.{host}/{length}", strict=False))
        by_node.setdefault(name, []).append(block)
    nodes = [node(name, 1, *dict.fromkeys(cidrs)) for name, cidrs in by_node.items()]
    whole = block_ownership.resolve(snapshot(*nodes))
    shuffle.shuffle(nodes)
    again = block_ownership.resolve(snapshot(*nodes))
    assert (again.owners, again.refused) == (whole.owners, whole.refused)
    for taken, owner in whole.owners.items():
        for other, its in whole.owners.items():
            assert owner == its or not blocks.overlaps(taken, other)
    for one in nodes:
        for own in one.blocks:
            refused = whole.refused.get((one.name, own))
            assert (refused is None) == (whole.owners.get(own) == one.name)
            if refused:
                assert blocks.overlaps(own, refused.block)
                assert refused.node != one.name


@pytest.mark.parametrize("restart", [False, True])
def test_a_new_node_does_not_take_over_a_block_over_a_restart_either(tmp_path: Path, restart: bool) -> None:
    path, clock = tmp_path / "nodes.json", FakeClock()
    agent = LastKnownNodes("one", path, clock=clock)
    agent.look(snapshot(ONE, TWO))
    if restart:
        agent = LastKnownNodes("one", path, clock=clock)
    known = agent.look(snapshot(ONE, TWO, node("aaa", 9, "10.244.2.0/24", "10.244.1.0/25")))
    assert known.claims.owners == {net("10.244.1.0/24"): "one", net("10.244.2.0/24"): "two"}
    assert known.claims.refused.keys() == {("aaa", net("10.244.2.0/24")), ("aaa", net("10.244.1.0/25"))}
    left = snapshot(ONE, node("aaa", 9, "10.244.2.0/24"))
    known = agent.look(left)
    assert known.claims.owners[net("10.244.2.0/24")] == "two", "it may be created again"
    clock.time = known.until
    assert agent.look(left).claims.owners[net("10.244.2.0/24")] == "aaa"
    assert not list(agent.look(left).disputes())


THIEVES = ("10.244.2.0/24", "10.244.2.0/25", "10.244.0.0/16")


@pytest.mark.parametrize("thief", THIEVES)
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("lost", ["podCIDR", "object", "object, then podCIDR"])
@pytest.mark.parametrize("me", ["one", "two"])
def test_a_node_keeps_its_block_while_its_pod_cidr_or_object_is_missing_and_another_claims_it(
    tmp_path: Path, thief: str, restart: bool, lost: str, me: str
) -> None:
    """On its own agent and on a peer's; the newcomer is older by its time of creation once two is made anew."""
    path = tmp_path / "nodes.json"
    agent = LastKnownNodes(me, path)
    agent.look(snapshot(ONE, TWO))
    new = node("aaa", 9, thief, created="2026-01-01")
    blank = replace(TWO, blocks=(), created="2026-02-02")
    moments: dict[str, list[Node | None]] = {"podCIDR": [blank], "object": [None]}
    for seen in moments.get(lost, [None, blank]):
        if restart:
            agent = LastKnownNodes(me, path)
        known = agent.look(snapshot(ONE, new, *([seen] if seen else [])))
        assert known.claims.owners == {net("10.244.1.0/24"): "one", net("10.244.2.0/24"): "two"}
        assert known.claims.refused[("aaa", net(thief))].node in {"one", "two"}
        said = [*known.problems, *known.disputes()]
        if seen or (me == "one" and thief != "10.244.0.0/16"):
            assert [p.where for p in said] == ["node two"], "each agent says so"
    if restart:
        agent = LastKnownNodes(me, path)
    known = agent.look(snapshot(ONE, new, replace(TWO, created="2026-02-02")))
    assert known.claims.owners[net("10.244.2.0/24")] == "two"
    assert not [*known.problems, *known.disputes()]


def test_a_newcomer_with_address_and_block_of_a_node_that_comes_back_has_to_give_them_back(tmp_path: Path) -> None:
    """While two is blank, it may be the same machine under another name."""
    agent = LastKnownNodes("one", tmp_path / "nodes.json")
    agent.look(snapshot(ONE, TWO))
    same = Node("aaa", TWO.addresses, TWO.blocks)
    for seen in ((ONE, same), (ONE, same, Node("two"))):
        known = agent.look(snapshot(*seen))
        assert known.claims.owners[net("10.244.2.0/24")] == "aaa"
    assert agent.look(snapshot(ONE, same, TWO)).claims.owners[net("10.244.2.0/24")] == "two"


def test_a_node_whose_address_another_one_claims_while_it_is_missing_keeps_it(tmp_path: Path) -> None:
    agent = LastKnownNodes("one", tmp_path / "nodes.json")
    agent.look(snapshot(ONE, TWO))
    known = agent.look(snapshot(ONE, node("aaa", 2, "10.244.9.0/24"), replace(TWO, addresses=())))
    assert known.ends.of("two", 4) == TWO.addresses[0]
    assert {p.where for p in known.problems} == {"node two", "InternalIP 172.18.0.2"}


def test_a_block_that_a_node_gives_up_for_another_is_free_at_once(tmp_path: Path) -> None:
    agent = LastKnownNodes("one", tmp_path / "nodes.json")
    agent.look(snapshot(ONE, TWO))
    known = agent.look(snapshot(ONE, node("two", 2, "10.244.3.0/24"), node("aaa", 9, "10.244.2.0/24")))
    assert known.claims.owners[net("10.244.2.0/24")] == "aaa"


def test_an_upgraded_agent_keeps_the_blocks_that_its_pods_have(tmp_path: Path) -> None:
    agent = LastKnownNodes("one", tmp_path / "nodes.json", ONE.blocks)
    known = agent.look(snapshot(ONE, node("aaa", 9, "10.244.1.0/24")))
    assert known.claims.owners == {net("10.244.1.0/24"): "one"}
