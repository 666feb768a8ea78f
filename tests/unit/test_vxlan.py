"""vxlan's desired state: pure, complete, and nothing guessed."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.model.cluster import IPBlock, IPReservation, Node, Snapshot
from agent.model.network import Network
from agent.modes.base import ModeContext
from agent.modes.hostgw import HOST_GW
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan.mode import LAST, Vxlan
from agent.modes.vxlan.options import VXLAN
from agent.modes.vxlan.state import VxlanState
from agent.objects.state import LocalAddress, Masquerade, NodeState, Route, union
from tests.networks import changed, network_of
from tests.support import ip, net
from tests.unit.sections import section

MODE = Vxlan()
DEVICE = "testcni-vxlan"
LOCAL = (LocalAddress("eth0", 1400, ipaddress.ip_interface("192.0.2.1/24")),)


def node(name: str, address: str, *cidrs: str) -> Node:
    return Node(name, (ip(address),) if address else (), tuple(map(net, cidrs)))


NETWORK = network_of("net", mode="vxlan", subnet=net("10.244.0.0/16"))
ME = node("one", "192.0.2.1", "10.244.1.0/24")


def desired(*peers: Node, claimed: Sequence[IPBlock] = (), network: Network = NETWORK, me: Node = ME) -> NodeState:
    nodes = {n.name: n for n in (me, *peers)}
    snapshot = Snapshot(synced=True, nodes=nodes, blocks={b.name: b for b in claimed})
    return MODE.desired(ModeContext(snapshot, "one", LOCAL, network, me.blocks, routed=BUILT_IN.routed))


def overlay(state: NodeState) -> VxlanState:
    return section(state, VxlanState)


def owners(state: NodeState) -> dict[str, str]:
    return {str(block): str(owner) for block, owner in overlay(state).blocks}


def test_a_node_alone() -> None:
    assert desired() == NodeState(
        sections=frozenset(
            {
                VxlanState(
                    DEVICE,
                    1,
                    8472,
                    1350,
                    IPv4Address("192.0.2.1"),
                    frozenset({IPv4Address("10.244.1.1")}),
                    frozenset({(IPv4Network("10.244.1.0/24"), IPv4Address("192.0.2.1"))}),
                    frozenset({IPv4Address("192.0.2.1")}),
                    ends=frozenset({(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"))}),
                )
            }
        ),
        routes=frozenset({Route(net("10.244.1.0/24"), None, DEVICE, LAST)}),
        masquerade=Masquerade(
            frozenset({net("10.244.1.0/24")}), frozenset({net("10.244.1.0/24"), net("10.244.0.0/16")})
        ),
        forwarding=frozenset({4}),
    )


def test_a_peer_needs_nothing_but_its_node_and_need_not_be_on_link() -> None:
    claimed = IPBlock(net("10.244.30.0/24"), "two", "pods")
    state = desired(node("two", "198.51.100.2", "10.244.2.0/24"), claimed=[claimed])
    assert owners(state) == {
        "10.244.1.0/24": "192.0.2.1",
        "10.244.2.0/24": "198.51.100.2",
        "10.244.30.0/24": "198.51.100.2",
    }
    assert state.routes == {
        Route(net("10.244.1.0/24"), None, DEVICE, LAST),
        Route(net("10.244.2.0/24"), None, DEVICE),
        Route(net("10.244.30.0/24"), None, DEVICE),
    }
    assert state.problems == frozenset()


def test_tunnels_may_come_from_any_address_of_a_node() -> None:
    peer = Node("two", (ip("2001:db8::2"), ip("192.0.2.2"), ip("192.0.2.22")), (net("10.244.2.0/24"),))
    state = desired(peer)
    assert owners(state)["10.244.2.0/24"] == "192.0.2.2"
    assert overlay(state).nodes == set(map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.22")))


def ends(state: NodeState) -> dict[str, str]:
    return {str(address): str(end) for address, end in overlay(state).ends}


def test_each_address_of_a_node_is_known_to_be_its_own_unless_several_have_it() -> None:
    peer = Node("two", (ip("2001:db8::2"), ip("192.0.2.2"), ip("192.0.2.22")), (net("10.244.2.0/24"),))
    other = Node("six", (ip("192.0.2.6"), ip("192.0.2.99")))
    assert ends(desired(peer, other)) == {
        "192.0.2.1": "192.0.2.1",
        "192.0.2.2": "192.0.2.2",
        "192.0.2.22": "192.0.2.2",
        "192.0.2.6": "192.0.2.6",
        "192.0.2.99": "192.0.2.6",
    }
    floating = desired(peer, Node("six", (ip("192.0.2.22"),), (net("10.244.6.0/24"),)))
    assert overlay(floating).open == {IPv4Address("192.0.2.22")}


@pytest.mark.parametrize(
    ("accepted_modes", "is_open"), [((HOST_GW,), True), ((VXLAN,), False), ((VXLAN, HOST_GW), False)]
)
def test_a_guest_of_a_node_without_tunnel_may_come_by_one_any_moment(
    accepted_modes: tuple[str, ...], is_open: bool
) -> None:
    two = node("two", "192.0.2.2", "10.244.2.0/24")
    host = replace(node("three", "192.0.2.3", "10.244.3.0/24"), accepted_modes=(("net", accepted_modes),))
    nodes = {n.name: n for n in (ME, two, host)}
    guest = IPReservation(ip("10.244.2.9"), "o", "ns/pod", "three", "net", datetime.now(UTC))
    snapshot = Snapshot(synced=True, nodes=nodes, reservations={guest.name: guest})
    view = ModeContext(snapshot, "one", LOCAL, NETWORK, ME.blocks, accepted_modes=(VXLAN,), routed=BUILT_IN.routed)
    assert overlay(MODE.desired(view)).open == (frozenset({IPv4Address("192.0.2.3")}) if is_open else frozenset())


def test_what_one_network_lets_a_node_send_the_other_does_not_take_away() -> None:
    peer = node("two", "192.0.2.2", "10.244.2.0/24")
    state = desired(peer)
    lenient = replace(state, sections=frozenset({replace(overlay(state), ends=frozenset())}))
    assert ends(union([state, lenient])) == ends(union([lenient, state])) == {}
    assert ends(union([state, state])) == ends(state)


def test_nodes_without_blocks_are_nodes() -> None:
    assert IPv4Address("192.0.2.9") in overlay(desired(node("nine", "192.0.2.9"))).nodes


def test_vni_port_and_mtu_are_the_networks() -> None:
    network = network_of("net", mode="vxlan", subnet=net("10.244.0.0/16"), mtu=1280, vni=7, port=4789)
    wanted = overlay(desired(network=network))
    assert (wanted.vni, wanted.port, wanted.mtu) == (7, 4789, 1280)


def test_what_is_wrong_with_a_peer_is_told() -> None:
    state = desired(
        node("nobody", "", "10.244.3.0/24"),
        node("six", "192.0.2.6", "2001:db8:6::/64"),
        node("thief", "192.0.2.7", "10.244.1.0/24"),
        node("wide", "192.0.2.8", "10.244.0.0/17"),
    )
    told = {str(problem).partition(";")[0] for problem in state.problems}
    assert told == {
        "node nobody: has no IPv4 InternalIP",
        "node thief: block 10.244.1.0/24 is that of node one too",
        "node wide: block 10.244.0.0/17 overlaps this node's 10.244.1.0/24",
    }
    assert owners(state) == {"10.244.1.0/24": "192.0.2.1"}


def test_ipv6_is_not_carried() -> None:
    network = network_of("net", mode="vxlan")
    state = desired(node("two", "192.0.2.2", "10.244.2.0/24", "2001:db8:2::/64"), network=network)
    (problem,) = state.problems
    assert str(problem).startswith("block 2001:db8:2::/64 of node two: is IPv6, which vxlan does not carry")
    assert len(overlay(state).blocks) == 2


def test_a_node_without_address_or_blocks_has_no_tunnel() -> None:
    assert desired(me=node("one", "", "10.244.1.0/24")).section(VxlanState) is None
    assert desired(me=node("one", "", "10.244.1.0/24")).problems
    assert desired(me=node("one", "192.0.2.1")) == NodeState()


def test_two_networks_share_the_tunnel() -> None:
    one = desired(node("two", "192.0.2.2", "10.244.2.0/24"))
    other = desired(
        network=network_of("other", mode="vxlan", mtu=1300, subnet=net("10.0.0.0/8")),
        me=node("one", "192.0.2.1", "10.1.1.0/24"),
    )
    both = overlay(union([one, other]))
    assert both.mtu == 1300
    assert both.addresses == {IPv4Address("10.244.1.1"), IPv4Address("10.1.1.1")}
    assert len(both.blocks) == 3
    assert union([one, other]).problems == frozenset()


def test_two_networks_that_disagree_are_told() -> None:
    other = desired(network=network_of("other", mode="vxlan", vni=7, subnet=net("10.244.0.0/16")))
    state = union([desired(), other])
    assert overlay(state).vni == 1
    assert [problem.where for problem in state.problems] == ["networks of mode vxlan"]


def test_of_two_ways_to_a_peer_the_tunnel_is_taken() -> None:
    bridged = NodeState(routes=frozenset({Route(net("10.244.2.0/24"), ip("192.0.2.2"), "eth0")}))
    tunnelled = desired(node("two", "192.0.2.2", "10.244.2.0/24"))
    for states in ([bridged, tunnelled], [tunnelled, bridged]):
        assert union(states).routes == tunnelled.routes


def test_to_the_kernel_each_node_is_a_next_hop() -> None:
    plain = changed(NETWORK, vxlan_backend="kernel")
    state = desired(node("two", "198.51.100.2", "10.244.2.0/24"), network=plain)
    assert state.routes == {
        Route(net("10.244.1.0/24"), None, DEVICE, LAST),
        Route(net("10.244.2.0/24"), ip("198.51.100.2"), DEVICE),
    }
    assert {route.dst: route.onlink for route in state.routes}[net("10.244.2.0/24")]
    assert overlay(state) == replace(
        overlay(desired(node("two", "198.51.100.2", "10.244.2.0/24"))), backend="kernel"
    )


def test_pods_of_both_backends_share_a_tunnel_with_programs() -> None:
    plain, programs = desired(network=changed(NETWORK, vxlan_backend="kernel")), desired()
    for both in (union([plain, programs]), union([programs, plain])):
        assert overlay(both).backend == "ebpf"
        assert both.problems == frozenset()
    assert overlay(union([plain, plain])).backend == "kernel"
