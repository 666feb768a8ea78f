"""Blocks of networks on their parent's subnet: no routed network claims, uses or routes them."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.errors import CniError
from agent.ipam import blocks
from agent.ipam.block_claims import free_blocks, missing_block
from agent.ipam.reservations.claimant import ClaimContext
from agent.ipam.reservations.claims import ReservationClaims
from agent.ipam.reservations.pod_annotations import AddressAnnotations
from agent.model import special_addresses
from agent.model.cluster import HostNetworks, IPBlock, IPPool, Node, Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.modes.base import ModeContext
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.state import IpipState
from agent.modes.registry import BUILT_IN
from agent.objects.state import LocalAddress, NodeState
from agent.runtime.deadline import Deadline
from agent.runtime.observable import Observable
from tests.networks import changed, network_of
from tests.support import net
from tests.unit.test_block_ownership import reached

WAYS = ("host-gw", "vxlan", "ipip")
ETH0 = LocalAddress("eth0", 1500, ipaddress.ip_interface("172.18.0.1/16"))
HOST_NETWORKS = HostNetworks(
    ((ipaddress.ip_network("172.18.0.0/16"), "172.18.0.1/16 of eth0"),),
    frozenset({ipaddress.ip_address("203.0.113.254")}),
    frozenset({ipaddress.ip_address("10.96.0.1")}),
)
LAN = network_of("lan", "macvlan", ipaddress.ip_network("172.18.0.0/16"), link_mode="bridge")
FAR_LAN = network_of("far", "macvlan", ipaddress.ip_network("192.168.7.0/24"), link_mode="bridge", master="eth1")
ONLY_PARENT = "is for networks with a parent interface only"


def node(name: str, number: int, *cidrs: str) -> Node:
    return Node(name, (ipaddress.ip_address(f"172.18.0.{number}"),), tuple(map(net, cidrs)))


def pool(name: str, cidr: str, size: int = 28) -> IPPool:
    return IPPool(name, net(cidr), size)


def block(cidr: str, owner: str = "one", *, shared: bool = False, of: str = "lan") -> IPBlock:
    return IPBlock(net(cidr), owner, of, shared=shared)


def cluster(
    *pools: IPPool,
    claimed: tuple[IPBlock, ...] = (),
    nodes: tuple[Node, ...] = (node("one", 1), node("two", 2)),
    host_networks: HostNetworks = HOST_NETWORKS,
) -> Snapshot:
    by_name = {b.name: b for b in claimed}
    return Snapshot(
        True, {n.name: n for n in nodes}, {p.name: p for p in pools}, by_name, host_networks=host_networks
    )


PODS, NEAR, AWAY = (
    pool("pods", "10.244.0.0/16", 24),
    pool("lan", "172.18.200.0/24"),
    pool("away", "192.168.7.0/24"),
)


def names(snapshot: Snapshot, network: Network) -> list[str]:
    return [found.name for found in blocks.pools(snapshot, network)]


def test_a_routed_network_claims_from_no_pool_of_a_shared_subnet() -> None:
    routed, every = network_of("testcni", "vxlan"), cluster(AWAY, NEAR, PODS)
    assert names(every, routed) == ["away", "pods"], "nobody knows yet that others are on the subnet of away"
    assert names(every, LAN) == ["lan"]
    claimed = cluster(AWAY, NEAR, PODS, claimed=(block("192.168.7.16/28", "two", shared=True, of="away"),))
    assert names(claimed, routed) == ["pods"]
    assert names(claimed, replace(routed, pool="lan")) == names(claimed, replace(routed, pool="away")) == []
    assert names(claimed, FAR_LAN) == ["away"]
    assert {found.cidr.prefixlen for found in free_blocks.candidates(claimed, routed, "one")} == {24}


def test_a_claim_says_for_which_networks_it_is() -> None:
    every = cluster(AWAY, NEAR, PODS)
    assert {found.shared for found in free_blocks.candidates(every, network_of("testcni"), "one")} == {False}
    assert {found.shared for found in free_blocks.candidates(every, LAN, "one")} == {True}
    l3 = changed(LAN, mode="ipvlan", link_mode="l3", subnet=net("10.244.0.0/16"))
    assert {found.shared for found in free_blocks.candidates(every, l3, "one")} == {False}, "its pods are routed"


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "of an earlier version"])
def test_each_network_has_its_own_blocks(marked: bool) -> None:
    mine = (block("10.244.7.0/24", of="pods"), block("172.18.200.16/28", shared=marked))
    snapshot = cluster(PODS, NEAR, claimed=mine)
    assert blocks.node_blocks(snapshot, network_of("testcni"), "one") == (net("10.244.7.0/24"),)
    assert blocks.node_blocks(snapshot, LAN, "one") == (net("172.18.200.16/28"),)
    for networks in ({network_of("testcni"): 1, LAN: 1}, {LAN: 1, network_of("testcni"): 1}):
        assert blocks.surplus(snapshot, "one", networks, ()) == frozenset(), "each keeps its last one"


def desired(way: str, snapshot: Snapshot) -> NodeState:
    """What the first node wants."""
    network = network_of("testcni", way)
    own = blocks.node_blocks(snapshot, network, "one")
    return BUILT_IN[way].desired(ModeContext(snapshot, "one", (ETH0,), network, own, routed=BUILT_IN.routed))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pod_cidrs", [True, False])
def test_no_routed_network_routes_them_or_reports_them(way: str, pod_cidrs: bool) -> None:
    claimed: tuple[IPBlock, ...] = (
        block("192.168.7.16/28", "two", shared=True, of="away"),
        block("172.18.200.16/28", "one", shared=True),
        block("172.18.200.32/28", "two", shared=True),
        block("172.18.200.48/28", "two"),  # of an earlier version
    )
    routed = ("10.244.1.0/24", "10.244.2.0/24")
    nodes = tuple(node(name, n, *(routed[n - 1 : n] if pod_cidrs else ())) for n, name in ((1, "one"), (2, "two")))
    if not pod_cidrs:
        claimed += (block(routed[0], "one", of="pods"), block(routed[1], "two", of="pods"))
    state = desired(way, cluster(AWAY, NEAR, PODS, claimed=claimed, nodes=nodes))
    assert (state.problems, state.refused) == (frozenset(), frozenset())
    if way != "ipip" or state.section(IpipState):
        assert reached(state) - {"10.244.0.0/16"} == set(routed)
    exempt = {str(subnet) for subnet in state.masquerade.exempt}
    assert "10.244.2.0/24" in exempt
    assert exempt.isdisjoint({str(b.cidr) for b in claimed[:4]} | {"192.168.7.0/24", "172.18.200.0/24"})
    if bird := state.section(BirdPlan):
        assert not any(net("192.168.7.0/24").overlaps(there) for there in bird.config.pools)
        assert not any(net("172.18.0.0/16").overlaps(there) for there in bird.config.pools)


@pytest.mark.parametrize("way", WAYS)
def test_a_pod_cidr_there_is_a_problem_all_the_same(way: str) -> None:
    nodes = (node("one", 1, "10.244.1.0/24"), node("two", 2, "172.18.200.32/28"))
    state = desired(way, cluster(nodes=nodes, claimed=(block("172.18.200.32/28", "two", shared=True),)))
    (problem,) = state.problems
    assert problem.what == "block 172.18.200.32/28 overlaps 172.18.0.1/16 of this node's eth0"


BARRED = (
    "172.18.0.0/16",
    "203.0.113.254/32",
    "198.51.100.7/32",
    *(str(c.network) for c in special_addresses.CLASSES),
)


@pytest.mark.parametrize(("cidr", "size"), [("172.16.0.0/12", 18), ("203.0.113.0/24", 26), ("198.51.100.0/24", 26),
                                            ("126.0.0.0/7", 10), ("fe00::/7", 9), ("192.0.0.0/2", 6)])  # fmt: skip
def test_no_block_is_claimed_that_overlaps_what_is_not_for_pods(cidr: str, size: int) -> None:
    far = Node("far", (ipaddress.ip_address("198.51.100.7"),))
    snapshot = cluster(pool("p", cidr, size), nodes=(node("one", 1), far))
    found = [c.cidr for c in free_blocks.candidates(snapshot, network_of("testcni"), "one")]
    free = [c for c in net(cidr).subnets(new_prefix=size) if not any(blocks.overlaps(c, net(b)) for b in BARRED)]
    assert sorted(found, key=str) == sorted(free, key=str)
    assert len(free) < 1 << (size - net(cidr).prefixlen)


def test_nothing_is_claimed_of_a_pool_with_the_api_servers_service() -> None:
    snapshot = cluster(pool("p", "10.96.0.0/16", 24))
    for network in (network_of("testcni"), network_of("testcni", subnet=net("10.96.0.0/16"))):
        assert [*free_blocks.candidates(snapshot, network, "one")] == []
    assert [*free_blocks.candidates(cluster(), network_of("testcni", subnet=net("10.96.0.0/16")), "one")] == []
    vip = replace(HOST_NETWORKS, api_servers=frozenset({ipaddress.ip_address("172.18.200.5")}))
    assert len([*free_blocks.candidates(cluster(NEAR, host_networks=vip), LAN, "one")]) == 16, (
        "there it is one address"
    )


@pytest.mark.parametrize(
    ("snapshot", "network", "what"),
    [
        (cluster(), network_of("testcni"), "neither podCIDR nor IPPool gives this node addresses"),
        (
            cluster(NEAR),
            network_of("testcni"),
            f"IPPool lan (172.18.200.0/24) {ONLY_PARENT}, as it lies in 172.18.0.1/16 of eth0",
        ),
        (
            cluster(AWAY, claimed=(block("192.168.7.16/28", "two", shared=True, of="away"),)),
            network_of("testcni"),
            f"IPPool away (192.168.7.0/24) {ONLY_PARENT}, as they have blocks of it",
        ),
        (
            cluster(nodes=(node("one", 1, "10.244.1.0/24"),)),
            network_of("testcni", "vxlan", subnet=net("10.250.0.0/24")),
            "",
        ),
        (
            cluster(AWAY, nodes=(node("one", 1, "10.244.1.0/24"),)),
            LAN,
            "one is not in subnet 172.18.0.0/16; IPPool away (192.168.7.0/24) is not in subnet 172.18.0.0/16",
        ),
        (
            cluster(nodes=(node("one", 1, "fd00:1::/64"),)),
            network_of("testcni", "vxlan"),
            "podCIDR fd00:1::/64 of node one is IPv6, which mode vxlan does not carry",
        ),
        (
            cluster(),
            replace(LAN, subnet=net("192.168.64.0/24")),
            "subnet 192.168.64.0/24 is not in a network of this node (172.18.0.1/16 of eth0)",
        ),
        (
            cluster(pool("p", "10.96.0.0/16", 24)),
            network_of("testcni"),
            "no block is left in p (10.96.0.0/16; it contains 10.96.0.1, an address of the Kubernetes API server)",
        ),
    ],
)
def test_why_there_is_no_block(snapshot: Snapshot, network: Network, what: str) -> None:
    found = [*free_blocks.candidates(snapshot, network, "one")]
    if not what:
        assert found
        return
    assert not found
    assert missing_block.why(snapshot, network, "one")[0].endswith(what)


def test_a_pool_among_the_nodes_is_wrong_where_a_routed_network_has_nothing_else() -> None:
    routed = network_of("testcni")
    what = (
        "it lies in 172.18.0.1/16 of eth0, where only pods with a subinterface of it have addresses, "
        "and network testcni has no other pool"
    )
    assert missing_block.starved(cluster(NEAR), [routed], "one") == {"lan": what}
    assert missing_block.starved(cluster(NEAR, PODS), [routed], "one") == {}
    assert missing_block.starved(cluster(NEAR), [routed, LAN], "one") == {}
    assert missing_block.starved(cluster(NEAR, nodes=(node("one", 1, "10.244.1.0/24"),)), [routed], "one") == {}
    claimed = (block("172.18.200.16/28", "two", shared=True),)
    assert missing_block.starved(cluster(NEAR, claimed=claimed), [routed], "one") == {}
    assert missing_block.starved(cluster(), [routed], "one") == {}


def test_a_node_that_claims_reports_what_is_wrong_with_its_pools() -> None:
    routed, wrong = network_of("testcni"), pool("wrong", "10.244.0.0/16", 24)
    near = node("two", 2, "10.244.9.0/24")
    snapshot = cluster(wrong, NEAR, nodes=(node("one", 1), near))
    assert missing_block.faulty(snapshot, [routed], "one") == {
        "IPPool wrong": Problem(
            "IPPool wrong",
            "10.244.0.0/16: it overlaps podCIDR 10.244.9.0/24 of node two; no block is claimed that overlaps it",
            missing_block.OTHER_POOL,
        )
    }
    assert missing_block.faulty(snapshot, [routed], "two") == {}, "it claims nothing"
    assert missing_block.faulty(snapshot, [replace(routed, pool="wrong")], "two").keys() == {"IPPool wrong"}
    assert missing_block.faulty(snapshot, [LAN], "one") == {}
    assert missing_block.faulty(cluster(PODS, NEAR), [routed, LAN], "one") == {}


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ((), "those of network testcni: 10.244.1.0/24; no IPPool has others"),
        ((NEAR,), "those of network testcni: 10.244.1.0/24; no IPPool has others"),
        ((NEAR, PODS), "those of network testcni: 10.244.1.0/24, 10.244.0.0/16"),
    ],
)
def test_a_fixed_address_of_a_shared_subnet_is_refused_on_a_routed_network(
    pools: tuple[IPPool, ...], says: str, tmp_path: Path
) -> None:
    seen = cluster(*pools, nodes=(node("one", 1, "10.244.1.0/24"),), host_networks=HostNetworks())
    known = ClaimContext(
        "one",
        Observable(seen),
        Observable(NodeStatus(synced=True, host_networks=HOST_NETWORKS)),
        Observable(frozenset()),
    )
    claims = ReservationClaims(DirectoryStore(tmp_path), known, 0)
    annotations = AddressAnnotations("a/b", "", "a/b", address=ipaddress.IPv4Address("172.18.200.7"))
    with (
        pytest.raises(CniError) as refused,
        claims.reserved(annotations, network_of("testcni", "vxlan"), (), Deadline.after(5)),
    ):
        pass
    assert says in f"{refused.value}"
