"""ipip's desired state: pure, complete, and nothing guessed."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent import config
from agent.errors import CniError
from agent.ip import Subnet
from agent.model.cluster import Node, Snapshot
from agent.modes.base import ModeContext
from agent.modes.ipip.agent_options import encapsulator
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.bird.types import BirdConfig, Peer, Tunnel
from agent.modes.ipip.options import IpipOptions
from agent.modes.ipip.state import IpipState
from agent.modes.registry import BUILT_IN
from agent.objects.state import LocalAddress, Masquerade, NodeState, Underlay, union
from tests.lab.lab import IPIP_CONF
from tests.networks import AGENT_OPTIONS, changed, network_of, parse_conf, read_conf
from tests.unit.sections import section

LOCAL = (LocalAddress("eth0", 1400, ipaddress.ip_interface("192.0.2.1/24")),)
GATEWAY = IPv4Address("192.0.2.254")
DEVICE, EBPF = Underlay(True), Underlay(False)
ROUTED = Underlay(False, "eth0", GATEWAY)
POOL, MINE = IPv4Network("10.244.0.0/16"), IPv4Network("10.244.1.0/24")
NETWORK = network_of("net", mode="ipip", subnet=POOL)


def node(name: str, address: str, *cidrs: str) -> Node:
    blocks: tuple[Subnet, ...] = tuple(map(ipaddress.ip_network, cidrs))
    return Node(name, (ipaddress.ip_address(address),) if address else (), blocks)


ME = node("one", "192.0.2.1", "10.244.1.0/24")
NEAR, FAR = node("two", "192.0.2.2", "10.244.2.0/24"), node("three", "198.51.100.3", "10.244.3.0/24")
ONE, TWO, THREE = (IPv4Address(str(n.addresses[0])) for n in (ME, NEAR, FAR))


def desired(
    *peers: Node,
    underlay: Underlay = EBPF,
    encapsulate: str = "always",
    me: Node = ME,
    local: tuple[LocalAddress, ...] = LOCAL,
) -> NodeState:
    snapshot = Snapshot(synced=True, nodes={n.name: n for n in (me, *peers)})
    network = changed(NETWORK, encapsulate=encapsulate)
    return BUILT_IN["ipip"].desired(
        ModeContext(snapshot, "one", local, network, me.blocks, underlay=underlay, routed=BUILT_IN.routed)
    )


def ipip(state: NodeState) -> IpipState:
    return section(state, IpipState)


def bird(state: NodeState) -> BirdConfig:
    return section(state, BirdPlan).config


def test_a_node_and_its_peer() -> None:
    assert desired(NEAR) == NodeState(
        sections=frozenset(
            {
                IpipState(
                    ONE,
                    1380,
                    device=False,
                    underlay="eth0",
                    addresses=frozenset({IPv4Address("10.244.1.1")}),
                    blocks=frozenset({(MINE, ONE), (IPv4Network("10.244.2.0/24"), TWO)}),
                    nodes=frozenset({ONE, TWO}),
                    tunnelled=frozenset({TWO}),
                ),
                BirdPlan(
                    BirdConfig(
                        node="one",
                        address=ONE,
                        blocks=(MINE,),
                        pools=(POOL,),
                        peers=(Peer("two", TWO),),
                        tunnel=Tunnel("eth0", None, 1380),
                        source=IPv4Address("10.244.1.1"),
                    )
                ),
            }
        ),
        masquerade=Masquerade(frozenset({MINE}), frozenset({POOL, MINE, IPv4Network("10.244.2.0/24")})),
        forwarding=frozenset({4}),
        guards=frozenset({("testcni-ipip", True)}),
    )
    assert desired(NEAR).devices == {"testcni-ipip"}


def test_with_an_ipip_device() -> None:
    state = desired(NEAR, FAR, underlay=DEVICE)
    assert (ipip(state).device, ipip(state).underlay) == (True, None)
    assert bird(state).tunnel == Tunnel("testcni-ipip")
    assert bird(state).direct == ()
    assert state.accepted_sources == {4: frozenset({ONE, TWO, THREE})}
    assert desired(NEAR).accepted_sources == {}
    assert not state.problems


def test_across_subnets() -> None:
    near = (IPv4Network("192.0.2.0/24"),)
    state = desired(NEAR, FAR, underlay=ROUTED)
    assert bird(state).tunnel == Tunnel("eth0", GATEWAY, 1380)
    assert bird(state).direct == near, "a near node is its own next hop"
    assert ipip(state).tunnelled == {TWO, THREE}
    for underlay in (ROUTED, DEVICE):
        state = desired(NEAR, FAR, underlay=underlay, encapsulate="crossSubnet")
        assert bird(state).direct == near
        assert ipip(state).tunnelled == {THREE}
        assert not state.problems


def test_never() -> None:
    for underlay in (DEVICE, EBPF):
        state = desired(NEAR, FAR, underlay=underlay, encapsulate="never")
        assert ipip(state) == IpipState(
            ONE, 1400, device=False, blocks=ipip(state).blocks, nodes=frozenset({ONE, TWO, THREE})
        )
        assert bird(state).tunnel is None
        assert bird(state).source is None
        assert IPv4Network("192.0.2.2") in state.masquerade.exempt
        assert [problem.where for problem in state.problems] == ["node three"]


@pytest.mark.parametrize("underlay", [EBPF, Underlay(False, "eth1", GATEWAY)])
def test_far_nodes_that_the_underlays_device_has_no_way_to(underlay: Underlay) -> None:
    (problem,) = desired(NEAR, FAR, underlay=underlay).problems
    assert str(problem).startswith("node three (198.51.100.3): there is no gateway to it by eth0")
    assert not desired(NEAR, underlay=underlay).problems


def test_while_the_nodes_address_is_nowhere_bird_goes_on_and_programs_stay() -> None:
    state = desired(NEAR, local=())
    assert state.section(BirdPlan) is None
    assert ipip(state).underlay == ""


def test_what_cannot_be_carried() -> None:
    state = desired(me=replace(ME, addresses=()))
    assert state == NodeState(problems=state.problems)
    assert list(map(str, state.problems)) == ["node one: has no IPv4 InternalIP; kubelet's --node-ip sets it"]
    both = replace(ME, blocks=(*ME.blocks, ipaddress.ip_network("fd00:1::/64")))
    (problem,) = desired(me=both).problems
    assert str(problem) == "block fd00:1::/64: is IPv6, which ipip does not carry; use host-gw for IPv6"
    state = desired(replace(NEAR, addresses=()))
    assert "node two: has no IPv4 InternalIP" in "".join(map(str, state.problems))
    assert ipip(state).blocks == {(MINE, ONE)}


def test_two_networks_share_one_device() -> None:
    one, other = desired(NEAR), desired(NEAR, FAR, underlay=ROUTED, encapsulate="crossSubnet")
    both = ipip(union([one, other]))
    assert both.tunnelled == {TWO, THREE}
    assert both.underlay == "eth0"
    assert union([one, NodeState()]).section(IpipState) == one.section(IpipState)


def test_the_seeds_conf_and_the_option() -> None:
    network = read_conf(IPIP_CONF).network
    assert (network.mode, network.subnet, IpipOptions.of(network).encapsulate) == ("ipip", POOL, "always")
    with pytest.raises(CniError, match="encapsulate") as caught:
        parse_conf({"name": "x", "mode": "ipip", "encapsulate": "Always"})
    assert "always, crossSubnet, never" in f"{caught.value.msg} {caught.value.details}"


def test_who_encapsulates_is_an_option_of_the_agent() -> None:
    options = ["--node", "one", "--datastore", "dir:/x"]
    assert encapsulator(config.load(options, {}, AGENT_OPTIONS)) == "auto"
    assert encapsulator(config.load([*options, "--ipip", "ebpf"], {}, AGENT_OPTIONS)) == "ebpf"
    with pytest.raises(config.ConfigError, match="--ipip: 'tunl0' is none of device, ebpf, auto"):
        config.load([*options, "--ipip", "tunl0"], {}, AGENT_OPTIONS)
