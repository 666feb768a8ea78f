"""Which address each node is reached at: alike on all nodes, and by the interface that the kernel would choose."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cluster import accepted_modes
from agent.model.cluster import ENDS, AcceptedModes, Node, Snapshot
from agent.modes import node_endpoints, underlay
from agent.modes.base import ModeContext
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.options import IPIP
from agent.modes.ipip.state import IpipState
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan.options import VXLAN
from agent.modes.vxlan.state import VxlanState
from agent.objects.state import LocalAddress, NodeState, Route, Underlay
from tests.networks import network_of
from tests.support import ip, net
from tests.unit.properties import examples
from tests.unit.sections import section


def node(number: int, *addresses: str, said: tuple[str, ...] = ()) -> Node:
    told: AcceptedModes = ((ENDS, said),) if said else ()
    return Node(f"node{number}", tuple(map(ip, addresses)), (net(f"10.244.{number}.0/24"),), accepted_modes=told)


def local(**devices: str) -> tuple[LocalAddress, ...]:
    """Interfaces in their order, each with one address."""
    return tuple(LocalAddress(name, 1500, ipaddress.ip_interface(text)) for name, text in devices.items())


def view(
    way: str, on: tuple[LocalAddress, ...], *nodes: Node, me: str = "node1", encapsulate: str = "always"
) -> ModeContext:
    snapshot = Snapshot(True, {n.name: n for n in nodes})
    network = network_of("net", way, net("10.244.0.0/16"), encapsulate=encapsulate)
    return ModeContext(
        snapshot, me, on, network, snapshot.nodes[me].blocks, underlay=Underlay(), routed=BUILT_IN.routed
    )


def desired(seen: ModeContext) -> NodeState:
    return BUILT_IN[seen.network.mode].desired(seen)


def chosen(*nodes: Node, version: int = 4) -> Mapping[str, str]:
    return {
        name: str(found)
        for name, found in node_endpoints.choose({n.name: n for n in nodes}).chosen[version].items()
    }


VIP = "172.18.0.100"
ETH0 = local(eth0="172.18.0.1/16")


@pytest.mark.parametrize(
    ("nodes", "ends_of_all"),
    [
        # a floating address that one of them holds and both list first
        ((node(1, VIP, "172.18.0.1"), node(2, VIP, "172.18.0.2")), ("172.18.0.1", "172.18.0.2")),
        # a second address that is another's only one
        ((node(1, "172.18.0.1", "172.18.0.2"), node(2, "172.18.0.2")), ("172.18.0.1", "172.18.0.2")),
        ((node(1, "172.18.0.2", "172.18.0.1"), node(2, "172.18.0.2")), ("172.18.0.1", "172.18.0.2")),
        # a node that claims others' addresses takes none from them
        ((node(1, "172.18.0.1"), node(2, "172.18.0.2"), node(3, "172.18.0.1", "172.18.0.2", "172.18.0.3")),
         ("172.18.0.1", "172.18.0.2", "172.18.0.3")),
        # a chain
        ((node(1, "172.18.0.1"), node(2, "172.18.0.1", "172.18.0.2"), node(3, "172.18.0.2", "172.18.0.3")),
         ("172.18.0.1", "172.18.0.2", "172.18.0.3")),
        # two that nothing tells apart, as one of them is long gone
        ((node(1, "172.18.0.1"), node(2, "172.18.0.1"), node(3, "172.18.0.3")),
         ("172.18.0.1", "172.18.0.1", "172.18.0.3")),
        ((node(1, "fd00::1", "172.18.0.1"), node(2, "fd00::1", "172.18.0.2")), ("172.18.0.1", "172.18.0.2")),
    ],
)  # fmt: skip
def test_each_node_has_an_address_of_its_own(nodes: tuple[Node, ...], ends_of_all: tuple[str, ...]) -> None:
    assert tuple(found for _name, found in sorted(chosen(*nodes).items())) == ends_of_all


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), max_size=3, unique=True), min_size=1, max_size=6), st.randoms())
def test_all_nodes_come_to_the_same_ends(lists: list[list[int]], shuffle: random.Random) -> None:
    nodes = [node(n, *(f"172.18.0.{host}" for host in hosts)) for n, hosts in enumerate(lists, 1)]
    found = chosen(*nodes)
    shuffle.shuffle(nodes)
    assert chosen(*nodes) == found
    assert found.keys() == {n.name for n in nodes if n.addresses}
    alone = [n for n in nodes if any(sum(a in m.addresses for m in nodes) == 1 for a in n.addresses)]
    for one in alone:
        assert sum(end == found[one.name] for end in found.values()) == 1


def test_what_is_listed_by_several_is_a_problem_that_names_them() -> None:
    known = node_endpoints.choose({n.name: n for n in (node(1, VIP, "172.18.0.1"), node(2, VIP, "172.18.0.2"))})
    assert [str(problem).partition(";")[0] for problem in known.problems()] == [
        f"InternalIP {VIP}: is one of several nodes: node1, node2"
    ]
    assert not list(node_endpoints.choose({"node1": node(1, VIP), "node2": node(2, "172.18.0.2")}).problems())


@pytest.mark.parametrize("way", [VXLAN, IPIP])
def test_the_tunnel_ends_at_the_first_internal_ip_that_is_on_an_interface(way: str) -> None:
    me = node(1, "172.18.9.9", "172.18.0.1")
    state = desired(view(way, ETH0, me, node(2, "172.18.0.2")))
    tunnel = state.section(VxlanState) or state.section(IpipState)
    assert tunnel
    assert tunnel.node == IPv4Address("172.18.0.1")
    assert dict(tunnel.blocks)[net("10.244.1.0/24")] == IPv4Address("172.18.0.1")  # type: ignore[index]
    assert {IPv4Address("172.18.9.9"), IPv4Address("172.18.0.1")} <= tunnel.nodes
    if way == IPIP:
        assert section(state, BirdPlan).config.address == IPv4Address("172.18.0.1")


def test_peers_are_told_where_they_would_choose_another_address_and_go_by_it() -> None:
    me = node(1, "172.18.9.9", "172.18.0.1")
    known = node_endpoints.choose({"node1": me})
    said = underlay.announcement(me, ETH0, known)
    assert said == ((ENDS, ("172.18.0.1",)),)
    text = accepted_modes.encode((*said, ("net", (VXLAN,))))
    assert accepted_modes.decode(text) == (*said, ("net", (VXLAN,)))
    told = replace(me, accepted_modes=said)
    again = node_endpoints.choose({"node1": told})
    assert again.of("node1", 4) == ip("172.18.0.1")
    assert underlay.announcement(told, ETH0, again) == said  # it stays as it is
    state = desired(view(VXLAN, local(eth0="172.18.0.2/16"), told, node(2, "172.18.0.2"), me="node2"))
    assert dict(section(state, VxlanState).blocks)[net("10.244.1.0/24")] == IPv4Address("172.18.0.1")  # type: ignore[index]
    # no address of others
    assert node_endpoints.choose({"node1": node(1, "172.18.0.1", said=("172.18.0.2",))}).of("node1", 4) == ip(
        "172.18.0.1"
    )


def settled(real: Mapping[str, str], *nodes: Node) -> Mapping[str, str]:
    """The ends once each agent has announced what it has to, of what is really on its interface."""
    for _round in range(2 * len(nodes)):
        known = node_endpoints.choose({n.name: n for n in nodes})
        now = [
            replace(n, accepted_modes=underlay.announcement(n, local(eth0=f"{real[n.name]}/16"), known))
            if n.name in real
            else n
            for n in nodes
        ]
        if now == list(nodes):
            return chosen(*nodes)
        nodes = tuple(now)
    raise AssertionError("agents go on announcing")


A, B, C, D = (f"172.18.0.{number}" for number in range(1, 5))


@pytest.mark.parametrize(
    "nodes",
    [
        (node(1, A, B), node(2, B, A)),
        (node(1, B, A), node(2, A, B)),
        (node(1, B, A), node(2, C, B), node(3, A, C)),
        (node(1, C, B, A), node(2, A, C, B), node(3, B, A, C)),
        # one of the addresses of each is on no interface of anybody
        (node(1, D, B, A), node(2, A, B)),
        # another lists the real one only, and has none of its own
        (node(1, A, D), node(9, A)),
        (node(1, A, D), node(9, A, said=(A,))),
    ],
)
def test_nodes_that_list_each_others_addresses_come_to_those_that_are_really_theirs(
    nodes: tuple[Node, ...],
) -> None:
    real = {f"node{number}": address for number, address in ((1, A), (2, B), (3, C))}
    for order in (nodes, nodes[::-1]):
        found = settled(real, *order)
        assert {name: found[name] for name in real if name in found} == {
            name: address for name, address in real.items() if name in found
        }
    assert list(node_endpoints.choose({n.name: n for n in nodes}).problems())


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.permutations(range(1, 6)), min_size=2, max_size=5), st.data())
def test_whatever_addresses_nodes_list_besides_the_ends_are_where_the_nodes_are(
    lists: list[list[int]], data: st.DataObject
) -> None:
    nodes, real = [], {}
    for number, hosts in enumerate(lists, 1):
        listed = [host for host in hosts[: data.draw(st.integers(0, 5))] if host != number]
        listed.insert(data.draw(st.integers(0, len(listed))), number)
        nodes.append(node(number, *(f"172.18.0.{host}" for host in listed)))
        real[f"node{number}"] = f"172.18.0.{number}"
    assert settled(real, *nodes) == real


def test_nothing_is_told_where_peers_choose_right() -> None:
    for me in (node(1, "172.18.0.1"), node(1, "172.18.0.1", "172.18.9.9"), node(1, "172.18.9.9"), node(1)):
        assert underlay.announcement(me, ETH0, node_endpoints.choose({"node1": me})) == ()
    assert underlay.announcement(None, ETH0, node_endpoints.NodeEndpoints()) == ()


@pytest.mark.parametrize("way", ["host-gw", VXLAN, IPIP])
def test_while_no_internal_ip_is_on_an_interface_the_tunnel_stays(way: str) -> None:
    state = desired(view(way, local(eth1="192.0.2.9/24"), node(1, "172.18.0.1"), node(2, "172.18.0.2")))
    assert state.devices
    assert state.masquerade.sources


@pytest.mark.parametrize("way", ["host-gw", VXLAN, IPIP])
def test_no_block_is_routed_by_an_address_of_this_node(way: str) -> None:
    """node1 really has the address that is node2's only one."""
    on = (*ETH0, *local(eth0="172.18.0.2/16"))
    state = desired(
        view(way, on, node(1, "172.18.0.1", "172.18.0.2"), node(2, "172.18.0.2"), node(3, "172.18.0.3"))
    )
    assert Route(net("10.244.2.0/24"), ip("172.18.0.2"), "eth0") not in state.routes
    assert "node node2: has this node's own address 172.18.0.2" in {
        str(p).partition(";")[0] for p in state.problems
    }
    if way == "host-gw":
        assert {str(route.dst) for route in state.routes} == {"10.244.3.0/24"}
    else:
        tunnel = state.section(VxlanState) or state.section(IpipState)
        assert tunnel
        assert {str(block) for block, _node in tunnel.blocks} == {"10.244.1.0/24", "10.244.3.0/24"}


TWO_NICS = local(mgmt0="172.16.0.2/12", eth0="172.18.0.1/16")


@pytest.mark.parametrize("nics", [TWO_NICS, TWO_NICS[::-1]])
def test_of_two_interfaces_a_peer_is_reached_by_the_one_with_the_longer_prefix(
    nics: tuple[LocalAddress, ...],
) -> None:
    state = desired(view("host-gw", nics, node(1, "172.18.0.1"), node(2, "172.18.0.2"), node(3, "172.20.0.3")))
    assert state.routes == {
        Route(net("10.244.2.0/24"), ip("172.18.0.2"), "eth0"),
        Route(net("10.244.3.0/24"), ip("172.20.0.3"), "mgmt0"),
    }


def test_of_two_interfaces_in_one_network_the_one_with_the_internal_ip_is_taken() -> None:
    nics = local(eth0="172.18.5.5/16", eth1="172.18.0.1/16")
    for on in (nics, nics[::-1]):
        state = desired(view("host-gw", on, node(1, "172.18.0.1"), node(2, "172.18.0.2")))
        assert {route.device for route in state.routes} == {"eth1"}


def test_nobody_is_on_link_by_a_network_on_lo() -> None:
    """The kernel takes all of it for its own, so a peer there is reached by another way or not at all."""
    on = (LocalAddress("eth0", 1500, ipaddress.ip_interface("10.255.0.1/24"), behind=True), *ETH0)
    state = desired(view("host-gw", on, node(1, "10.255.0.1"), node(2, "10.255.0.2"), node(3, "172.18.0.3")))
    assert {str(route.dst) for route in state.routes} == {"10.244.3.0/24"}
    assert [p.what for p in state.problems] == ["10.255.0.2 is not on-link, so host-gw can't reach 10.244.2.0/24"]


def test_the_mtu_is_that_of_the_interface_that_peers_send_to() -> None:
    nics = (
        LocalAddress("mgmt0", 9000, ipaddress.ip_interface("192.0.2.1/24")),
        LocalAddress("eth0", 1500, ipaddress.ip_interface("172.18.0.1/16")),
    )
    (bridge,) = desired(view("host-gw", nics, node(1, "172.18.0.1", "192.0.2.1"), node(2, "172.18.0.2"))).bridges
    assert bridge.mtu == 1500


def test_a_peer_of_two_addresses_is_reached_by_the_one_that_is_on_link() -> None:
    peer = node(2, "203.0.113.2", "172.18.0.2")
    assert desired(view("host-gw", ETH0, node(1, "172.18.0.1"), peer)).routes == {
        Route(net("10.244.2.0/24"), ip("172.18.0.2"), "eth0")
    }


def test_a_slave_hangs_on_the_interface_with_the_first_internal_ip() -> None:
    nics = local(mgmt0="192.0.2.1/24", eth0="172.18.0.1/16")
    network = network_of("net", "macvlan", net("172.18.0.0/16"), link_mode="bridge")
    me = node(1, "172.18.0.1", "192.0.2.1")
    seen = ModeContext(
        Snapshot(True, {"node1": me}), "node1", nics, network, (net("172.18.0.0/16"),), routed=BUILT_IN.routed
    )
    (uplink,) = desired(seen).uplinks
    assert (uplink.device, uplink.hosts[0]) == ("eth0", ip("172.18.0.1"))
