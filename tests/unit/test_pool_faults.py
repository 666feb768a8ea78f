"""What is wrong with IPPools: found wherever a pool overlaps what is not for pods, and nowhere else."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cluster.datastores import server_addresses
from agent.ipam import pool_faults
from agent.model import special_addresses
from agent.model.cluster import HostNetworks, IPBlock, IPPool, Node, Snapshot
from agent.modes.base import ModeContext
from agent.modes.registry import BUILT_IN
from agent.node import kernel_state
from agent.objects.base import KernelState
from agent.objects.state import LocalAddress
from tests.networks import network_of
from tests.support import net

HOST_NETWORKS = HostNetworks(
    interfaces=((ipaddress.ip_network("172.18.0.0/16"), "172.18.0.1/16 of eth0"),),
    gateways=frozenset({ipaddress.ip_address("172.18.0.254")}),
    api_servers=frozenset({ipaddress.ip_address("10.96.0.1")}),
)
NODES = (
    Node("near", (ipaddress.ip_address("172.18.0.1"),), (ipaddress.ip_network("10.244.1.0/24"),)),
    Node("far", (ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("2001:db8::7"))),
)
LAN = network_of("lan", "macvlan", ipaddress.ip_network("192.0.2.0/24"), link_mode="bridge")


def pool(name: str, cidr: str) -> IPPool:
    return IPPool(name, net(cidr), net(cidr).max_prefixlen - 4)


def cluster(
    *pools: IPPool, blocks: tuple[IPBlock, ...] = (), host_networks: HostNetworks = HOST_NETWORKS
) -> Snapshot:
    return Snapshot(
        True,
        {n.name: n for n in NODES},
        {p.name: p for p in pools},
        {b.name: b for b in blocks},
        host_networks=host_networks,
    )


@pytest.mark.parametrize(
    ("cidr", "fault"),
    [
        ("10.250.0.0/16", ""),
        ("fd00:1::/112", ""),
        ("127.0.0.0/8", "it overlaps 127.0.0.0/8, which is kept for loopback (RFC 1122)"),
        ("224.1.0.0/16", "it overlaps 224.0.0.0/4, which is kept for multicast (RFC 5771)"),
        ("fe80:1::/112", "it overlaps fe80::/10, which is kept for single links (RFC 4291)"),
        ("10.96.0.0/16", "it contains 10.96.0.1, an address of the Kubernetes API server"),
        ("10.97.0.0/16", ""),
        ("10.244.0.0/16", "it overlaps podCIDR 10.244.1.0/24 of node near"),
        ("10.244.1.128/25", "it overlaps podCIDR 10.244.1.0/24 of node near"),
        ("10.244.2.0/24", ""),
        ("172.16.0.0/12", "it overlaps 172.18.0.1/16 of eth0, a network of the nodes"),
        ("172.18.9.0/24", ""),  # macvlan may have addresses there
        ("192.0.2.0/25", "it contains 192.0.2.7, the InternalIP of node far"),
        ("192.0.2.128/25", ""),
        ("2001:db8::/112", "it contains 2001:db8::7, the InternalIP of node far"),
    ],
)
def test_a_pool_must_not_overlap_what_is_not_for_pods(cidr: str, fault: str) -> None:
    assert pool_faults.faults(cluster(pool("p", cidr))) == ({"p": fault} if fault else {})


@pytest.mark.parametrize("kept", special_addresses.CLASSES, ids=lambda kept: str(kept.network))
def test_no_special_range_is_for_pods(kept: special_addresses.Class) -> None:
    assert "it overlaps" in pool_faults.faults(cluster(IPPool("p", kept.network, kept.network.prefixlen)))["p"]


def test_pools_that_overlap_are_told_both_and_others_are_not() -> None:
    found = pool_faults.faults(
        cluster(pool("a", "10.1.0.0/16"), pool("b", "10.1.2.0/24"), pool("c", "10.2.0.0/16"))
    )
    assert found == {"a": "it overlaps 10.1.2.0/24 of IPPool b", "b": "it overlaps 10.1.0.0/16 of IPPool a"}


def test_a_pool_of_macvlan_may_lie_among_the_nodes() -> None:
    mine = pool("lan", "192.0.2.0/25")
    claimed = IPBlock(net("192.0.2.16/28"), "far", "lan", shared=True)
    assert pool_faults.faults(cluster(mine), [LAN]) == {}
    assert pool_faults.faults(cluster(mine, blocks=(claimed,))) == {}
    assert pool_faults.faults(cluster(mine), [network_of("testcni")]) != {}


def test_what_is_known_is_looked_at_again_after_a_change() -> None:
    known, first = pool_faults.PoolFaultCache(), cluster(pool("p", "192.0.2.0/25"))
    found = known.look(first, [])
    assert found.keys() == {"p"}
    assert known.look(replace(first, reservations={}), [network_of("testcni")]) is found
    assert known.look(first, [LAN]) == {}
    assert known.look(replace(first, pools={}), []) == {}
    assert known.look(first, []) == found
    assert known.look(replace(first, nodes={}), []) == {}
    assert known.look(
        replace(first, host_networks=replace(HOST_NETWORKS, api_servers=frozenset(NODES[1].addresses))), []
    ) == {"p": "it contains 192.0.2.7, an address of the Kubernetes API server"}


def test_nothing_is_wrong_where_nobody_has_looked() -> None:
    assert pool_faults.faults(Snapshot()) == {}
    assert pool_faults.faults(cluster(pool("p", "172.16.0.0/12"), host_networks=HostNetworks())) == {
        "p": "it contains 172.18.0.1, the InternalIP of node near"
    }


@pytest.mark.parametrize("way", ["host-gw", "vxlan", "ipip"])
def test_a_pod_cidr_with_the_api_server_in_it_is_not_programmed(way: str) -> None:
    me = replace(NODES[0], blocks=(net("10.96.0.0/24"), net("10.244.1.0/24")))
    local = (LocalAddress("eth0", 1500, ipaddress.ip_interface("172.18.0.1/16")),)
    snapshot = replace(cluster(), nodes={"near": me})
    state = BUILT_IN[way].desired(
        ModeContext(snapshot, "near", local, network_of("testcni", way), me.blocks, routed=BUILT_IN.routed)
    )
    assert state.refused == {net("10.96.0.0/24")}
    (problem,) = state.problems
    assert problem.what == "block 10.96.0.0/24 contains 10.96.0.1, an address of the Kubernetes API server"


def test_the_ground_is_what_the_kernel_has() -> None:
    local = (
        LocalAddress("eth0", 1500, ipaddress.ip_interface("172.18.0.1/16")),
        LocalAddress("eth0", 1500, ipaddress.ip_interface("172.18.0.2/16")),
        LocalAddress("dummy", 1500, ipaddress.ip_interface("10.9.9.9/32")),
        LocalAddress("lo", 1500, ipaddress.ip_interface("192.0.2.7/32"), behind=True),
    )
    kernel = KernelState([], [], local, frozenset({ipaddress.ip_address("172.18.0.254")}))
    found = kernel_state.host_networks_of(kernel, NODES[1], frozenset({ipaddress.ip_address("10.96.0.1")}))
    assert found.interfaces == (
        (net("172.18.0.0/16"), "172.18.0.1/16 of eth0"),
        (net("192.0.2.7/32"), "192.0.2.7/32 of lo"),
    )
    assert (found.gateways, found.api_servers) == (HOST_NETWORKS.gateways, HOST_NETWORKS.api_servers)


def test_the_address_of_the_api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "kubeconfig"
    for server, expected in {
        "https://192.0.2.9:6443": {ipaddress.ip_address("192.0.2.9")},
        "https://[2001:db8::9]:6443": {ipaddress.ip_address("2001:db8::9")},
        "https://api.example:6443": set(),
    }.items():
        conf.write_text(
            f"{{clusters: [{{name: c, cluster: {{server: '{server}'}}}}], current-context: x, "
            "contexts: [{name: x, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}"
        )
        assert server_addresses(f"kubernetes:{conf}") == expected
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for text in (f"kubernetes:{tmp_path}/none", "kubernetes", "dir:/x"):
        assert server_addresses(text) == frozenset()
