"""Addresses of pods that roam, as each mode wants them of the kernel: pure functions."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.model.cluster import IPPool, IPReservation, Node, Snapshot
from agent.modes.base import ModeContext
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.state import IpipState
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan.options import EBPF, KERNEL
from agent.modes.vxlan.state import VxlanState
from agent.objects.state import LocalAddress, NodeState, Proxy, Route, Underlay
from tests.networks import network_of
from tests.unit.sections import section

X = IPv4Address("10.244.1.7")
ALONE = IPv4Network("10.244.1.7/32")
NODES = {
    name: Node(name, (IPv4Address(f"192.0.2.{number}"),), (IPv4Network(f"10.244.{number}.0/24"),))
    for number, name in enumerate(("one", "two", "three"), 1)
}
SINCE = datetime(2026, 1, 31, 12, tzinfo=UTC)
ROAMING = IPReservation(X, "default/web-0", "default/web-0", "two", "net", SINCE)
POOLS = {"pods": IPPool("pods", IPv4Network("10.244.0.0/16"), 24)}


def desired(
    way: str, node: str, held: IPReservation = ROAMING, *, here: bool = False, backend: str = EBPF
) -> NodeState:
    """What a node wants while `held` is reserved, and `here` where its pod is on this node."""
    network = network_of("net", way, IPv4Network("10.244.0.0/16"), vxlan_backend=backend)
    snapshot = Snapshot(True, NODES, POOLS, {}, {held.name: held})
    me = NODES[node]
    local = (LocalAddress("eth0", 1500, ipaddress.ip_interface(f"{me.addresses[0]}/24")),)
    alone = frozenset({ALONE}) if here else frozenset()
    off_block = frozenset() if node == "one" else alone
    view = ModeContext(
        snapshot,
        node,
        local,
        network,
        me.blocks,
        underlay=Underlay(),
        off_block_pods=off_block,
        reserved_addresses=alone,
        routed=BUILT_IN.routed,
    )
    return BUILT_IN[way].desired(view)


def routes(state: NodeState) -> list[Route]:
    return [route for route in state.routes if route.dst == ALONE]


@pytest.mark.parametrize("node", ["one", "three"])
def test_host_gw_routes_it_to_where_it_is(node: str) -> None:
    state = desired("host-gw", node)
    assert routes(state) == [Route(ALONE, IPv4Address("192.0.2.2"), "eth0")]
    assert state.proxies == (frozenset({Proxy("testcni0", X)}) if node == "one" else frozenset())
    assert not state.problems
    assert not state.no_redirects_on


def test_host_gw_has_an_off_block_pod_on_its_bridge() -> None:
    state = desired("host-gw", "two", here=True)
    assert routes(state) == [Route(ALONE, None, "testcni0")]
    assert state.no_redirects_on == {"testcni0"}
    assert ALONE in state.masquerade.sources
    assert all(bridge.addresses == {ipaddress.ip_interface("10.244.2.1/24")} for bridge in state.bridges)


def test_the_bridge_answers_for_pods_of_another_mode_that_have_addresses_of_its_block() -> None:
    network = network_of("net", "host-gw", IPv4Network("10.244.0.0/16"))
    local = (LocalAddress("eth0", 1500, ipaddress.ip_interface("192.0.2.1/24")),)
    other_mode = frozenset({IPv4Address("10.244.1.9"), IPv4Address("10.244.2.9")})  # one of no block of its own
    view = ModeContext(
        Snapshot(True, NODES, POOLS),
        "one",
        local,
        network,
        NODES["one"].blocks,
        other_mode_pods=other_mode,
        routed=BUILT_IN.routed,
    )
    assert BUILT_IN["host-gw"].desired(view).proxies == {Proxy("testcni0", IPv4Address("10.244.1.9"))}


def test_one_that_came_home_needs_nothing_though_the_datastore_says_otherwise() -> None:
    for way in ("host-gw", "vxlan"):
        state = desired(way, "one", here=True)
        assert not routes(state)
        assert not state.proxies


@pytest.mark.parametrize("way", ["host-gw", "vxlan", "ipip"])
@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.53", "224.0.0.5", "192.0.2.3"])
def test_a_reservation_leads_no_packets_of_nodes_to_a_pod(
    way: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the cloud's metadata address, for example, or of a node's own."""
    held = replace(ROAMING, address=IPv4Address(address))
    monkeypatch.setitem(desired.__globals__, "IPv4Network", lambda _text: None)  # a network without a subnet
    state = desired(way, "one", held)
    tunnel = state.section(VxlanState) or state.section(IpipState)
    reached = {str(block) for block, _node in tunnel.blocks} if tunnel else {str(r.dst) for r in state.routes}
    assert f"{address}/32" not in reached
    (problem,) = state.problems
    assert (problem.where, address in problem.what) == (f"IPReservation {held.name}", True)


@pytest.mark.parametrize(
    "held",
    [
        replace(ROAMING, released=SINCE),
        replace(ROAMING, asks="one"),
        replace(ROAMING, node="gone"),
        replace(ROAMING, network="n"),
    ],
)
def test_what_is_not_in_use_has_no_route(held: IPReservation) -> None:
    for way in ("host-gw", "vxlan"):
        assert not routes(desired(way, "three", held))


@pytest.mark.parametrize("backend", [EBPF, KERNEL])
def test_vxlan_knows_the_node(backend: str) -> None:
    for node, here in (("one", False), ("two", True), ("three", False)):
        state = desired("vxlan", node, here=here, backend=backend)
        assert dict(section(state, VxlanState).blocks)[ALONE] == IPv4Address("192.0.2.2")
        gateway = IPv4Address("192.0.2.2") if backend == KERNEL else None
        assert routes(state) == ([] if here else [Route(ALONE, gateway, "testcni-vxlan")])


def test_ipip_announces_an_off_block_pod() -> None:
    off_block, home, other = (desired("ipip", node, here=node == "two") for node in ("two", "one", "three"))
    for state in (off_block, home, other):
        assert dict(section(state, IpipState).blocks)[ALONE] == IPv4Address("192.0.2.2")
    assert section(off_block, BirdPlan).config.blocks == (IPv4Network("10.244.2.0/24"), ALONE)
    for state in (home, other):
        assert ALONE not in section(state, BirdPlan).config.blocks
    assert section(off_block, IpipState).addresses == {IPv4Address("10.244.2.1")}
