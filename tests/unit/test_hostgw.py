"""host-gw's desired state: pure, complete, and nothing guessed."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model.cluster import IPBlock, Node, Snapshot
from agent.model.marks import bridge_mac
from agent.model.network import Network
from agent.modes.base import ModeContext
from agent.modes.hostgw import HostGw
from agent.modes.registry import BUILT_IN
from agent.objects.state import Bridge, LocalAddress, Masquerade, NodeState, Route, union
from tests.networks import network_of
from tests.support import ip, net
from tests.unit.properties import examples

MODE = HostGw()


NETWORK = network_of("net", subnet=net("10.244.0.0/16"))
LOCAL = (LocalAddress("eth0", 1400, ipaddress.ip_interface("192.0.2.1/24")),)
ME = Node("one", (ip("192.0.2.1"),), (net("10.244.1.0/24"),))


def peer(name: str, address: str, *cidrs: str) -> Node:
    return Node(name, (ip(address),) if address else (), tuple(map(net, cidrs)))


def view(*peers: Node, claimed: Sequence[IPBlock] = (), network: Network = NETWORK) -> ModeContext:
    nodes = {n.name: n for n in (ME, *peers)}
    snapshot = Snapshot(synced=True, nodes=nodes, blocks={b.name: b for b in claimed})
    return ModeContext(snapshot, "one", LOCAL, network, ME.blocks, routed=BUILT_IN.routed)


def test_a_bridge_with_the_gateway_the_underlays_mtu_and_a_mac_of_the_nodes() -> None:
    (bridge,) = MODE.desired(view()).bridges
    assert bridge == Bridge(
        "testcni0", bridge_mac("one", "testcni0"), 1400, frozenset({ipaddress.ip_interface("10.244.1.1/24")})
    )


def test_a_route_for_each_block_of_each_peer() -> None:
    claimed = IPBlock(net("10.244.30.0/24"), "two", "pods")
    desired = MODE.desired(view(peer("two", "192.0.2.2", "10.244.2.0/24"), claimed=[claimed]))
    assert desired.routes == {
        Route(net("10.244.2.0/24"), ip("192.0.2.2"), "eth0"),
        Route(net("10.244.30.0/24"), ip("192.0.2.2"), "eth0"),
    }
    assert desired.problems == frozenset()
    assert desired.forwarding == {4}


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (peer("two", "198.51.100.2", "10.244.2.0/24"), "198.51.100.2 is not on-link"),
        (peer("two", "", "10.244.2.0/24"), "has no IPv4 InternalIP"),
        (peer("two", "192.0.2.1", "10.244.2.0/24"), "this node's own address"),
        (peer("two", "192.0.2.2", "10.244.1.128/25"), "overlaps this node's 10.244.1.0/24"),
        (peer("two", "192.0.2.2", "10.244.1.0/24"), "is that of node one too"),
    ],
)
def test_what_can_not_be_routed_is_a_problem_not_a_guess(node: Node, why: str) -> None:
    desired = MODE.desired(view(node))
    assert desired.routes == frozenset()
    (problem,) = desired.problems
    assert (problem.where, why in problem.what) == ("node two", True)


def test_a_block_that_is_the_nodes_network_is_refused() -> None:
    wide = network_of("net")
    (problem,) = MODE.desired(view(peer("two", "192.0.2.2", "192.0.2.0/25"), network=wide)).problems
    assert "overlaps 192.0.2.1/24 of this node's eth0" in problem.what


def test_of_two_owners_the_first_by_name_has_the_route() -> None:
    desired = MODE.desired(view(peer("b", "192.0.2.3", "10.244.2.0/24"), peer("a", "192.0.2.2", "10.244.2.0/24")))
    assert desired.routes == {Route(net("10.244.2.0/24"), ip("192.0.2.2"), "eth0")}
    assert [p.where for p in desired.problems] == ["node b"]


def test_masquerade_of_all_but_pods_and_nodes() -> None:
    masquerade = MODE.desired(view(peer("two", "192.0.2.2", "10.244.2.0/24"))).masquerade
    assert masquerade.sources == {net("10.244.1.0/24")}
    assert {net("10.244.0.0/16"), net("192.0.2.1/32"), net("192.0.2.2/32")} <= masquerade.exempt
    without = network_of("net", masquerade=False)
    assert MODE.desired(view(network=without)).masquerade == Masquerade()


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.tuples(st.integers(2, 60), st.integers(1, 30)), unique=True), st.randoms())
def test_each_on_link_peer_has_one_route_whatever_the_order(
    peers: list[tuple[int, int]], shuffle: random.Random
) -> None:
    nodes = [peer(f"n{host}-{block}", f"192.0.2.{host}", f"10.244.{block}.0/24") for host, block in peers]
    first = MODE.desired(view(*nodes))
    shuffle.shuffle(nodes)
    assert MODE.desired(view(*nodes)) == first
    destinations = [route.dst for route in first.routes]
    assert len(destinations) == len(set(destinations))
    assert set(destinations) == {net(f"10.244.{block}.0/24") for _, block in peers} - {net("10.244.1.0/24")}


def test_bridges_of_two_networks_under_one_name_are_one() -> None:
    one, two = (
        NodeState(
            bridges=frozenset({Bridge("br", "0a:58:00:00:00:01", mtu, frozenset({ipaddress.ip_interface(a)}))})
        )
        for mtu, a in ((1500, "10.0.0.1/24"), (1400, "10.0.1.1/24"))
    )
    (bridge,) = union([one, two]).bridges
    assert (bridge.mtu, len(bridge.addresses)) == (1400, 2)
    assert union([one, two]) == union([two, one])
