"""A change of modes: what nodes say, what stays in force, and in which mode packets go to whom."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster import accepted_modes
from agent.cluster.store import Datastore, StoreError
from agent.model.cluster import Node, Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from agent.model.node_view import NodeView
from agent.model.problem_board import PartProblems
from agent.modes import mode_choice
from agent.modes.base import PLAIN, ModeContext
from agent.modes.hostgw import HOST_GW
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.options import IPIP
from agent.modes.ipip.state import IpipState
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan.options import VXLAN
from agent.modes.vxlan.state import VxlanState
from agent.node import mode_migration
from agent.node.mode_migration import DrainingNetworks, TunnelPorts
from agent.objects.state import LocalAddress, NodeState, Route, union
from agent.publish.accepted_modes_publisher import SEEN_WITHIN, AcceptedModesPublisher
from agent.runtime.observable import Observable
from tests.fake_clock import FakeClock
from tests.networks import ROUTED, changed, network_of

NET = network_of("net")
BY = {name: changed(NET, mode=name) for name in ROUTED}
LOCAL = (LocalAddress("eth0", 1500, ipaddress.ip_interface("192.0.2.1/24")),)


def node(number: int, *modes: str) -> Node:
    address, block = f"192.0.2.{number}", f"10.244.{number}.0/24"
    said = (("net", modes),) if modes else ()
    return Node(
        f"n{number}", (ipaddress.ip_address(address),), (ipaddress.ip_network(block),), accepted_modes=said
    )


def view(name: str, mine: tuple[str, ...], *peers: Node) -> ModeContext:
    me = node(1, *mine)
    snapshot = Snapshot(synced=True, nodes={n.name: n for n in (me, *peers)})
    return ModeContext(snapshot, "n1", LOCAL, BY[name], me.blocks, accepted_modes=mine, routed=BUILT_IN.routed)


def state(mine: tuple[str, ...], *peers: Node) -> NodeState:
    """What all modes that a node has in force want together."""
    return union(BUILT_IN[name].desired(view(name, mine, *peers)) for name in mine)


said = st.lists(st.sampled_from(ROUTED), unique=True, max_size=3).map(tuple)


@given(said.filter(bool), said.filter(bool))
def test_both_ends_choose_the_same_way(mine: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    there = mode_choice.mode_to_peer(view(mine[0], mine, node(2, *theirs)), node(2, *theirs))
    back = mode_choice.mode_to_peer(view(theirs[0], theirs, node(2, *mine)), node(2, *mine))
    assert there == back
    assert there == PLAIN or there in set(mine) & set(theirs)
    if mine[0] == theirs[0]:
        assert there == (mine[0] if BUILT_IN[mine[0]].tunnels else PLAIN)


@pytest.mark.parametrize("name", ROUTED)
def test_who_says_nothing_is_as_this_node(name: str) -> None:
    silent = state((name,), node(2), node(3))
    assert silent == state((name,), node(2, name), node(3, name))
    assert not silent.loose_rp_filter_on | silent.proxy_arp_on, "nothing is changed on the node"
    alone = BUILT_IN[name].desired(replace(view(name, (), node(2), node(3)), accepted_modes=()))
    assert alone == silent


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(ROUTED, 2)))
def test_each_peer_is_reached_in_the_mode_that_it_takes(old: str, new: str) -> None:
    made = state((new, old), node(2, old), node(3, new, old))
    two, three = IPv4Network("10.244.2.0/24"), IPv4Network("10.244.3.0/24")
    first = {route.dst: route for route in sorted(made.routes, key=lambda r: -r.metric)}
    vxlan, ipip = made.section(VxlanState), made.section(IpipState)
    tunnelled = {block for block, _node in vxlan.blocks} if vxlan else set()
    by_ipip = {str(address) for address in ipip.tunnelled} if ipip else set()
    for block, address, way in ((two, "192.0.2.2", old), (three, "192.0.2.3", new)):
        assert (block in tunnelled) == (way == VXLAN)
        assert (address in by_ipip) == (way == IPIP)
        device = {VXLAN: "testcni-vxlan", IPIP: "testcni-ipip"}
        assert first[block].device == device.get(way, "eth0")
        assert (first[block].metric > 84) == (way == IPIP), "BIRD's own route comes first, and no other does"
    assert "eth0" in made.loose_rp_filter_on
    assert ("testcni0" in made.proxy_arp_on) == (HOST_GW in (old, new))


def test_routes_that_stand_in_for_birds_by_ebpf_tell_the_mtu() -> None:
    seen = view(IPIP, (IPIP, HOST_GW), node(2, IPIP))
    seen = replace(seen, underlay=replace(seen.underlay, by_device=False))
    (route,) = BUILT_IN[IPIP].desired(seen).routes
    assert route == Route(IPv4Network("10.244.2.0/24"), ipaddress.ip_address("192.0.2.2"), "eth0", 85, 1480)


def test_bird_speaks_with_those_that_take_ipip() -> None:
    peers = (node(2, IPIP), node(3, VXLAN), node(4))
    bird = BUILT_IN[IPIP].desired(view(IPIP, (IPIP, VXLAN), *peers)).section(BirdPlan)
    assert bird
    assert [peer.name for peer in bird.config.peers] == ["n2", "n4"]
    leaving = BUILT_IN[IPIP].desired(replace(view(IPIP, (VXLAN,), *peers))).section(BirdPlan)
    assert leaving
    assert leaving.config.peers == ()


told = partial(mode_migration.accepted_modes, modes=BUILT_IN)
tunnels = partial(mode_migration.transition_networks, modes=BUILT_IN)


def test_what_is_told_is_what_is_ready() -> None:
    chosen = {"net": BY[VXLAN], "lan": network_of("lan", mode="macvlan", link_mode="bridge")}
    others = [network_of("elsewhere"), chosen["lan"]]
    assert told(chosen, others[:1], ()) == ()
    lan = (("lan", ("macvlan",)),)
    assert told(chosen, others, ()) == lan
    assert told(chosen, [BY[HOST_GW], *others], ()) == (*lan, ("net", (HOST_GW,)))
    both = [BY[HOST_GW], BY[VXLAN]]
    assert told(chosen, both, ()) == (("net", (VXLAN, HOST_GW)),)
    assert told(chosen, both, {BY[HOST_GW]}) == (("net", (VXLAN,)),)


def test_tunnels_to_peers_that_do_not_take_the_new_mode() -> None:
    chosen = {"net": BY[IPIP]}
    needed = {BY[IPIP]}
    assert tunnels(chosen, [node(2, IPIP), node(3), node(4, HOST_GW)], needed, ()) == frozenset()
    assert tunnels(chosen, [node(2, VXLAN)], needed, ()) == {BY[VXLAN]}
    earlier = changed(BY[VXLAN], mtu=1400)
    assert tunnels(chosen, [node(2, VXLAN)], needed, {earlier}) == {earlier}
    assert tunnels(chosen, [node(2, VXLAN)], needed | {earlier}, ()) == frozenset()
    assert tunnels({"net": BY[HOST_GW]}, [node(2, VXLAN)], {BY[HOST_GW]}, ()) == frozenset()
    assert tunnels(chosen, [node(2, "macvlan")], needed, ()) == frozenset(), "there is no tunnel to those"


def test_a_port_is_a_tunnels_while_any_node_may_take_packets_there() -> None:
    ports, chosen = TunnelPorts(BUILT_IN, kept=30), {"net": changed(BY[HOST_GW], port=4790)}

    def look(now: float, *peers: Node, own: Network = BY[HOST_GW]) -> tuple[int, ...]:
        return ports.look([own], chosen, peers, now)

    assert look(0, node(2), node(3, HOST_GW), node(4, IPIP)) == ()
    assert look(1, node(2, VXLAN, HOST_GW), node(3, HOST_GW)) == (4790,), "as the conf of the network says"
    foreign = replace(node(4), accepted_modes=(("@", (VXLAN,)), ("other", (VXLAN,))))
    assert look(2, node(2, VXLAN), foreign) == (4790, 8472)
    assert ports.ends == []
    assert look(3, foreign, own=changed(BY[VXLAN], port=4791)) == (4791, 8472, 4790), "the node's own first"
    assert ports.ends == [3 + 30]
    assert look(2.9 + 30) == (4790, 4791, 8472)
    assert look(3 + 30) == (4791, 8472)
    assert look(3 + 2 * 30) == ()
    assert ports.ends == []


def test_a_mode_goes_when_its_withdrawal_had_time_to_be_heard() -> None:
    chosen, needed, other = {"net": BY[VXLAN]}, frozenset({BY[VXLAN]}), network_of("gone")
    leaving = DrainingNetworks([BY[HOST_GW], other], grace=15)
    assert leaving.keep(needed, chosen, node(1, VXLAN, HOST_GW), 0) == {BY[HOST_GW]}
    assert leaving.keep(needed, chosen, node(1, VXLAN, HOST_GW), 1000) == {BY[HOST_GW]}, "nobody was told"
    assert leaving.ends == []
    assert leaving.keep(needed, chosen, node(1, VXLAN), 1001) == {BY[HOST_GW]}
    assert leaving.ends == [1001 + 15]
    again = needed | {BY[HOST_GW]}
    assert leaving.keep(again, chosen, node(1, VXLAN), 1002) == frozenset()
    assert leaving.keep(needed, chosen, node(1, VXLAN), 1003) == {BY[HOST_GW]}, "the time begins anew"
    assert leaving.keep(needed, chosen, node(1, VXLAN), 1003 + 15) == frozenset()
    assert leaving.in_force == needed


@pytest.mark.parametrize("text", [None, 7, "", "=", "net", "net=", "=vxlan", "net:vxlan"])
def test_what_is_not_understood_counts_for_nothing(text: object) -> None:
    assert accepted_modes.decode(text) == ()


@given(st.dictionaries(st.sampled_from(["net", "a.b", "c_d-e", "0"]), said.filter(bool)))
def test_what_is_told_is_read_as_it_was_meant(modes: dict[str, tuple[str, ...]]) -> None:
    said = tuple(sorted(modes.items()))
    assert accepted_modes.decode(accepted_modes.encode(said) + " odd") == said


@pytest.mark.parametrize("name", ROUTED)
def test_modes_of_a_later_agent_count_for_nothing(name: str) -> None:
    later = node(2, "wireguard")
    assert mode_choice.mode_to_peer(view(name, (name,), later), later) == mode_choice.mode_to_peer(
        view(name, (name,)), node(2)
    )
    assert state((name,), later) == state((name,), node(2))
    assert tunnels({"net": BY[name]}, [later], {BY[name]}, ()) == frozenset()
    both = node(2, "wireguard", name)
    assert state((name,), both) == state((name,), node(2, name))


class Store:
    """Takes announcements, or refuses."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.away = False

    def publish_accepted_modes(self, node: str, text: str) -> None:
        if self.away:
            raise StoreError("away")
        self.told.append((node, text))


def test_peers_are_told_until_the_snapshot_says_so() -> None:
    store = Store()
    snapshot, status = Observable(Snapshot()), Observable(NodeStatus())
    problems, clock = PartProblems("accepted-modes"), FakeClock()
    publisher = AcceptedModesPublisher(as_store(store), NodeView("n1", snapshot, status), problems, clock)
    publisher.once()
    status.publish(NodeStatus(synced=True, accepted_modes=(("net", (VXLAN,)),)))
    publisher.once()
    assert store.told == [], "there is no Node to tell it of"
    snapshot.publish(Snapshot(synced=True, nodes={"n1": node(1)}))
    publisher.once()
    publisher.once()
    assert store.told == [("n1", "net=vxlan")]
    snapshot.publish(Snapshot(synced=True, nodes={"n1": node(1, VXLAN)}))
    publisher.once()
    store.away = True
    status.publish(NodeStatus(synced=True, accepted_modes=(("net", (VXLAN, HOST_GW)),)))
    assert not publisher.once(), "it is retried"
    assert "the accepted modes net=vxlan,host-gw can't be published to peers: away" in str(problems.get())
    store.away = False
    clock.time += SEEN_WITHIN
    publisher.once()
    snapshot.publish(Snapshot(synced=True, nodes={"n1": node(1, VXLAN, HOST_GW)}))
    publisher.once()
    assert store.told[1:] == [("n1", "net=vxlan,host-gw")]
    assert problems.get() == {}


@pytest.mark.parametrize(
    ("status", "is_withdrawn"),
    [
        (NodeStatus(synced=True), False),
        (NodeStatus(synced=False, blocks={BY[HOST_GW]: ()}), False),
        (NodeStatus(synced=True, blocks={BY[HOST_GW]: ()}), True),
        (NodeStatus(synced=True, refused=frozenset({"net"})), True),
    ],
)
def test_what_holds_no_more_is_withdrawn_once_that_is_known(status: NodeStatus, *, is_withdrawn: bool) -> None:
    """An agent that has only just begun does not know yet in which modes its node takes packets."""
    store, snapshot = Store(), Observable(Snapshot(synced=True, nodes={"n1": node(1, VXLAN)}))
    view = NodeView("n1", snapshot, Observable(status))
    AcceptedModesPublisher(as_store(store), view, PartProblems("accepted-modes")).once()
    assert store.told == ([("n1", "")] if is_withdrawn else [])


def as_store(store: object) -> Datastore:
    return store  # type: ignore[return-value]
