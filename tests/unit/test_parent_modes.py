"""What macvlan and ipvlan want of a node: the parent, what is reached through the node, what no pod may have."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest

from agent.codec.network_json import decode_network, encode_network
from agent.errors import CniError, Code
from agent.ipam import blocks
from agent.ipam.attachments.attachment import Attachment, Lease
from agent.ipam.block_claims import free_blocks
from agent.kernel.arp import announcement
from agent.model.cluster import IPBlock, IPPool, Node, Snapshot
from agent.model.marks import mac_for
from agent.modes.base import ModeContext
from agent.modes.parent.options import SERVICES
from agent.modes.parent.subinterface import SubinterfaceMode
from agent.modes.registry import BUILT_IN
from agent.objects import nft_table
from agent.objects.state import LocalAddress, Masquerade, NodeSnat, Route
from tests.networks import OPTIONS, network_of, parse_conf
from tests.support import ip, net

SEED: dict[str, Any] = {
    "cniVersion": "0.3.0",
    "name": "testcni",
    "type": "testcni",
    "mode": "ipvlan",
    "subnet": "192.168.64.0/24",
    "ipam": {"rangeStart": "192.168.64.90", "rangeEnd": "192.168.64.100"},
}


ME = Node("one", (ip("192.168.64.5"),), (net("10.244.1.0/24"),))
TWO = Node("two", (ip("192.168.64.95"),), (net("10.244.2.0/24"),))
LOCAL = (
    LocalAddress("eth1", 1500, ipaddress.ip_interface("10.0.0.5/24"), ip("10.0.0.1")),
    LocalAddress("bond0", 9000, ipaddress.ip_interface("192.168.64.5/24"), ip("192.168.64.1")),
)


def view(local: tuple[LocalAddress, ...] = LOCAL, pools: tuple[IPPool, ...] = (), **conf: Any) -> ModeContext:
    network = parse_conf({**SEED, **conf}).network
    snapshot = Snapshot(True, {"one": ME, "two": TWO}, {pool.name: pool for pool in pools})
    return ModeContext(
        snapshot, "one", local, network, blocks.node_blocks(snapshot, network, "one"), routed=BUILT_IN.routed
    )


@pytest.mark.parametrize("name", ["ipvlan", "macvlan"])
def test_the_parent_is_what_holds_the_nodes_address(name: str) -> None:
    state = BUILT_IN[name].desired(view(mode=name))
    (uplink,) = state.uplinks
    assert (uplink.device, uplink.hosts, uplink.gateway) == ("bond0", (ip("192.168.64.5"),), ip("192.168.64.1"))
    assert uplink.via_host == SERVICES
    assert uplink.reserved == {ip(f"192.168.64.{last}") for last in (0, 1, 5, 95, 255)}
    assert state.devices == {"bond0"}
    assert state.forwarding == {4}
    assert state.masquerade == Masquerade(
        node_snats=frozenset({NodeSnat(net("192.168.64.0/24"), ip("192.168.64.5"))})
    )
    assert (state.routes, state.problems) == (frozenset(), frozenset())


def test_what_the_netconf_names_comes_first() -> None:
    conf: dict[str, Any] = {
        "master": "eth9",
        "ipam": {**SEED["ipam"], "gateway": "192.168.64.9"},
        "viaHost": ["10.0.0.0/8"],
    }
    (uplink,) = BUILT_IN["ipvlan"].desired(view(**conf)).uplinks
    assert (uplink.device, uplink.gateway) == ("eth9", ip("192.168.64.9"))
    assert uplink.via_host == (net("10.0.0.0/8"),)
    assert ip("192.168.64.9") in uplink.reserved


def test_all_of_the_nodes_addresses_on_the_subnet_are_reached_past_the_parent() -> None:
    vip = LocalAddress("bond0", 9000, ipaddress.ip_interface("192.168.64.200/32"))
    (uplink,) = BUILT_IN["ipvlan"].desired(view((vip, *LOCAL))).uplinks
    assert uplink.hosts == (ip("192.168.64.5"), ip("192.168.64.200"))
    assert ip("192.168.64.200") in uplink.reserved


def test_pools_of_pods_are_reached_through_the_node_but_not_those_of_the_subnet() -> None:
    pools = (IPPool("pods", net("10.244.0.0/16"), 24), IPPool("lan", net("192.168.64.128/25"), 28))
    (uplink,) = BUILT_IN["ipvlan"].desired(view(pools=pools)).uplinks
    assert uplink.via_host == (net("10.96.0.0/12"), net("10.244.0.0/16"))


def test_without_masquerade_only_services_are_a_detour() -> None:
    (snat,) = BUILT_IN["ipvlan"].desired(view(ipMasq=False)).masquerade.node_snats
    assert not snat.everything


@pytest.mark.parametrize(
    ("given", "local", "message"),
    [
        ({}, LOCAL[:1], "none of its interfaces holds an IPv4 InternalIP"),
        ({"subnet": "192.168.65.0/24", "ipam": {"rangeStart": "192.168.65.9"}}, LOCAL, "is not that of bond0"),
        ({"mode": "macvlan", "linkMode": "passthru", "master": "eth1"}, LOCAL, "passthru would cut off"),
    ],
)
def test_what_hinders_is_a_problem(given: dict[str, Any], local: tuple[LocalAddress, ...], message: str) -> None:
    looked_at = view(local, **given)
    state = BUILT_IN[looked_at.network.mode].desired(looked_at)
    assert not state.uplinks
    assert [message in problem.what for problem in state.problems] == [True]


def test_l3_is_routed_as_host_gw_is() -> None:
    conf: dict[str, Any] = {"linkMode": "l3", "subnet": "10.244.0.0/16", "ipam": {}}
    state = BUILT_IN["ipvlan"].desired(view(**conf))
    assert state.routes == {Route(net("10.244.2.0/24"), ip("192.168.64.95"), "bond0")}
    assert state.masquerade.sources == {net("10.244.1.0/24")}
    assert state.masquerade.node_snats == {NodeSnat(net("10.244.0.0/16"), ip("192.168.64.5"))}
    assert not state.problems
    (problem,) = BUILT_IN["ipvlan"].desired(view(linkMode="l3")).problems
    assert "nobody answers ARP" in problem.what


def test_blocks_of_a_shared_subnet_are_the_netconfs_or_claimed_and_never_guessed() -> None:
    snapshot = Snapshot(True, {"one": ME})
    by_hand, claimed = view().network, view(ipam={}).network
    assert blocks.node_blocks(snapshot, by_hand, "one") == (net("192.168.64.0/24"),)
    assert blocks.node_blocks(snapshot, claimed, "one") == ()
    assert list(free_blocks.candidates(snapshot, claimed, "one")) == []
    pool = IPPool("lan", net("192.168.64.128/28"), 29)
    assert len(list(free_blocks.candidates(Snapshot(True, {"one": ME}, {"lan": pool}), claimed, "one"))) == 2
    block = IPBlock(net("192.168.64.128/29"), "one", "lan")
    snapshot = Snapshot(True, {"one": ME}, {"lan": pool}, {block.name: block})
    assert blocks.node_blocks(snapshot, claimed, "one") == (block.cidr,)


def test_ranges_leave_out_what_is_reserved() -> None:
    reserved = frozenset({ip("192.168.64.91"), ip("192.168.64.0")})
    (there,) = blocks.ranges(view().network, (net("192.168.64.0/24"),), frozenset(), reserved)
    assert (there.size, ip("192.168.64.91") in there, ip("192.168.64.100") in there) == (10, False, True)
    assert ip("192.168.64.101") not in there


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"linkMode": "bridge"}, "linkMode"),
        ({"mode": "macvlan", "linkMode": "l2"}, "linkMode"),
        ({"mode": "macvlan", "linkMode": "passthru"}, "master"),
        ({"subnet": None, "ipam": {}}, "subnet"),
        ({"subnet": "fd00::/64", "ipam": {}}, "subnet"),
        ({"ipam": {"gateway": "192.168.65.1"}}, "ipam.gateway"),
        ({"mode": "host-gw", "master": "eth0"}, "master"),
        ({"mode": "vxlan", "viaHost": ["10.0.0.0/8"]}, "viaHost"),
        ({"mode": "host-gw", "ipam": {"gateway": "192.168.64.1"}}, "ipam.gateway"),
        ({"viaHost": ["10.0.0.1/8"]}, "viaHost[0]"),
    ],
)
def test_a_wrong_netconf_is_told_by_its_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(CniError) as error:
        parse_conf({**SEED, **given})
    assert error.value.code == Code.INVALID_CONFIG
    assert field in error.value.msg


def test_a_network_survives_its_file() -> None:
    network = view(master="eth9", ipam={"gateway": "192.168.64.9"}).network
    assert decode_network(encode_network(network), OPTIONS) == network
    assert decode_network(
        {"name": "net", "subnet": None, "range_start": None, "range_end": None}, OPTIONS
    ) == network_of("net")


def test_detours_in_nft() -> None:
    snat = NodeSnat(net("192.168.64.0/24"), ip("192.168.64.5"))
    table, chain, out, back = nft_table.objects(Masquerade(node_snats=frozenset({snat})))
    assert (list(table), list(chain)) == (["table"], ["chain"])
    assert [len(rule["rule"]["expr"]) for rule in (out, back)] == [3, 4]
    assert out["rule"]["expr"][-1] == {"snat": {"family": "ip", "addr": "192.168.64.5"}}


def test_an_announcement_has_one_address_twice() -> None:
    frame = announcement("02:00:00:00:00:01", ip("192.0.2.7"))
    assert len(frame) == 42
    assert frame[:6] == b"\xff" * 6
    assert frame[28:32] == frame[38:42] == ip("192.0.2.7").packed


def test_the_pools_router_comes_after_the_netconfs_and_before_the_parents() -> None:
    lan = IPPool("lan", net("192.168.64.128/25"), 28, gateway=ip("192.168.64.2"))
    far = IPPool("far", net("10.7.0.0/16"), 24, gateway=ip("10.7.0.1"))
    astray = IPPool("a", net("192.168.64.96/27"), 28, gateway=ip("192.168.65.1"))  # not of this subnet
    (uplink,) = BUILT_IN["macvlan"].desired(view(mode="macvlan", pools=(far, lan, astray))).uplinks
    assert uplink.gateway == ip("192.168.64.2")
    given: dict[str, Any] = {"ipam": {**SEED["ipam"], "gateway": "192.168.64.9"}}
    (uplink,) = BUILT_IN["macvlan"].desired(view(mode="macvlan", pools=(lan,), **given)).uplinks
    assert uplink.gateway == ip("192.168.64.9")
    l3: dict[str, Any] = {"linkMode": "l3", "subnet": "10.244.0.0/16", "ipam": {}}
    pods = IPPool("pods", net("10.244.0.0/16"), 24, gateway=ip("10.244.0.1"))
    (uplink,) = BUILT_IN["ipvlan"].desired(view(pools=(pods,), **l3)).uplinks
    assert uplink.gateway is None, "a subnet of pods has no router of its own"


def test_pools_that_contradict_each_other_are_a_problem_unless_the_netconf_decides() -> None:
    lan = IPPool("lan", net("192.168.64.128/25"), 28, gateway=ip("192.168.64.2"))
    wan = IPPool("wan", net("192.168.64.64/26"), 28, gateway=ip("192.168.64.3"))
    state = BUILT_IN["macvlan"].desired(view(mode="macvlan", pools=(wan, lan)))
    assert [uplink.gateway for uplink in state.uplinks] == [ip("192.168.64.2")]
    (problem,) = state.problems
    assert "lan: 192.168.64.2, wan: 192.168.64.3" in problem.what
    given: dict[str, Any] = {"ipam": {**SEED["ipam"], "gateway": "192.168.64.2"}}
    assert not BUILT_IN["macvlan"].desired(view(mode="macvlan", pools=(wan, lan), **given)).problems
    assert not BUILT_IN["macvlan"].desired(view(mode="macvlan", pools=(lan, replace(wan, gateway=None)))).problems


@pytest.mark.parametrize(
    ("conf", "given"),
    [
        ({"mode": "ipvlan"}, None),
        ({"mode": "macvlan", "linkMode": "passthru", "master": "eth9"}, None),
        ({"mode": "macvlan"}, "0a:58:c0:a8:40:5a"),
    ],
)
def test_a_mac_can_be_asked_for_where_a_pod_has_one_of_its_own(conf: dict[str, Any], given: str | None) -> None:
    network = view(**conf).network
    lease = Lease(ip("192.168.64.90"), net("192.168.64.0/24"))
    plain = Attachment("c", "eth0", network, "/x", "", (lease,), mac_for(lease.address))
    asked = replace(plain, mac="02:00:00:00:00:07")
    way = BUILT_IN.of(network)
    assert isinstance(way, SubinterfaceMode)
    assert way.mac(plain) == given
    if given:
        assert way.mac(asked) == "02:00:00:00:00:07"
        return
    with pytest.raises(CniError, match="mac: '02:00:00:00:00:07' is not allowed") as caught:
        way.mac(asked)
    assert caught.value.code == Code.INVALID_CONFIG
    assert "use macvlan in another linkMode" in caught.value.details
