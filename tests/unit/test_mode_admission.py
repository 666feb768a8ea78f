"""Which changes of a network's mode come into force: those after which all its pods reach each other."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Collection
from dataclasses import replace

import pytest

from agent.host.cni_conf_dir import Confs
from agent.model.cluster import Node
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from agent.modes.hostgw import HOST_GW
from agent.modes.parent.options import IPVLAN, MACVLAN
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan.options import VXLAN
from agent.node import mode_admission
from agent.node.mode_admission import Admitted
from agent.observe import health
from tests.networks import MODES, ROUTED, changed, network_of

NET = network_of("net")
BY = {name: changed(NET, mode=name, **({} if name in ROUTED else {"link_mode": "bridge"})) for name in MODES}
NOBODY: frozenset[Network] = frozenset()


def far(one: str, other: str) -> bool:
    """Whether one of two modes has pods in the nodes' blocks, and the other on the nodes' subnet."""
    return len({mode in ROUTED for mode in (one, other)}) == 2


def confs(wanted: str, installed: str | None) -> Confs:
    """What an agent reads that is to install a mode's conflist where there is another's, or none."""
    old = frozenset({BY[installed]} if installed else ())
    return Confs(old | {BY[wanted]}, chosen={"net": BY[wanted]}, installed=old)


def peer(name: str, *modes: str) -> Node:
    return Node(name, accepted_modes=(("net", modes),) if modes else ())


def admit(
    wanted: str,
    installed: str | None = None,
    used: Collection[Network] = NOBODY,
    in_force: Collection[Network] = NOBODY,
    peers: Collection[Node] = (),
) -> Admitted:
    return mode_admission.admit(confs(wanted, installed), (), used, in_force, peers, BUILT_IN)


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(MODES, 2)))
def test_pods_on_this_node_refuse_a_mode_whose_pods_they_would_not_reach(old: str, new: str) -> None:
    got = admit(new, old, used={BY[old]}, in_force={BY[old]})
    if {old, new} <= set(ROUTED):
        assert (got.chosen["net"], set(got.refused), got.problems) == (BY[new], set(), ())
        assert got.networks == {BY[old], BY[new]}
        return
    assert (got.chosen["net"], set(got.networks), set(got.refused)) == (BY[old], {BY[old]}, {"net"})
    (problem,) = got.problems
    assert f"the mode {new} is refused, and the old conflist stays" in problem.what
    assert f"pods on this node are in the mode {old}, and " in problem.what
    assert ("don't reach each other" in problem.what) == far(old, new)
    assert ("one parent can't have both" in problem.what) != far(old, new)
    assert "ConfigMap" in problem.remedy
    assert got.silent({BY[old]}) == frozenset(), "peers must know of its pods"
    assert got.silent(()) == {"net"}


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(MODES, 2)))
def test_what_other_nodes_announce_refuses_it_too(old: str, new: str) -> None:
    for installed in (old, None):  # a node that is new in the cluster has none
        got = admit(new, installed, in_force=NOBODY, peers=[peer("n2", old), peer("n3")])
        assert bool(got.refused) == far(old, new)
        if got.refused:
            assert f"node n2 announces the mode {old}" in got.problems[0].what
            assert got.chosen == ({"net": BY[old]} if installed else {})
    assert admit(new, old, in_force={BY[old]}, peers=[peer("n2"), peer("n3", new)]).chosen["net"] == BY[new]


def test_nodes_whose_pods_are_all_gone_change_together() -> None:
    """Each waits for the others only, so each falls silent, and by that lets the others change."""
    announced: dict[str, tuple[str, ...]] = {"n1": (HOST_GW,), "n2": (HOST_GW,)}
    modes = {}
    for _ in range(2):
        for name in announced:
            others = [peer(other, *said) for other, said in announced.items() if other != name]
            got = admit(MACVLAN, HOST_GW, in_force={BY[HOST_GW]}, peers=others)
            modes[name] = got.chosen["net"].mode
            announced[name] = () if got.silent(()) else (modes[name],)
    assert set(modes.values()) == {MACVLAN}


def test_what_is_in_force_is_not_taken_away_by_what_others_do() -> None:
    for installed, in_force in ((MACVLAN, NOBODY), (None, {BY[MACVLAN]})):
        got = admit(MACVLAN, installed, used={BY[MACVLAN]}, in_force=in_force, peers=[peer("n2", HOST_GW)])
        assert (got.chosen["net"], got.refused) == (BY[MACVLAN], frozenset())
        assert "the mode is macvlan, but node n2 announces the mode host-gw" in got.problems[0].what


def test_many_nodes_are_not_all_named() -> None:
    got = admit(IPVLAN, None, peers=[peer(f"n{number}", VXLAN, HOST_GW) for number in range(2, 500)])
    assert "node n10, n100, n101 and others announces the mode host-gw" in got.problems[0].what
    assert len(str(got.problems[0])) < 1000


def test_a_conf_that_comes_with_a_pod_is_refused_as_one_of_the_folder() -> None:
    got = mode_admission.admit(Confs(), [BY[MACVLAN]], {BY[HOST_GW]}, {BY[HOST_GW]}, (), BUILT_IN)
    assert (set(got.networks), set(got.refused)) == (set(), {"net"})
    other = replace(BY[MACVLAN], name="lan")
    assert mode_admission.admit(Confs(), [other], {BY[HOST_GW]}, (), (), BUILT_IN).networks == {other}


def test_a_mode_of_a_later_agent_is_no_conflict() -> None:
    for new in MODES:
        got = admit(new, new, peers=[peer("two", "wireguard")])
        assert (set(got.networks), set(got.refused), got.problems) == ({BY[new]}, set(), ())


def test_a_network_with_a_pool_of_its_own_is_no_other_mode() -> None:
    got = admit(HOST_GW, HOST_GW, used={replace(BY[HOST_GW], pool="lan")}, in_force={BY[HOST_GW]})
    assert (got.refused, got.problems) == (frozenset(), ())
    refused = mode_admission.admit(
        Confs(frozenset({BY[MACVLAN]}), chosen={"net": BY[MACVLAN]}),
        (),
        {replace(BY[HOST_GW], pool="lan")},
        (),
        (),
        BUILT_IN,
    )
    assert refused.chosen == {"net": BY[HOST_GW]}


def test_an_agent_is_not_ready_while_pods_hang_on_what_it_can_not_prepare() -> None:
    """By that a rollout stops at the first node."""
    block = (ipaddress.ip_network("10.244.1.0/24"),)
    conf = Confs(frozenset({BY[HOST_GW]}), chosen={"net": BY[HOST_GW]})
    status = NodeStatus(synced=True, blocks={BY[HOST_GW]: block})
    assert health.ready(status, conf, None).status == 200
    page = health.ready(replace(status, unserved=frozenset({BY[VXLAN]})), conf, None)
    assert page.status == 503
    assert (
        b"network net (vxlan), which pods on this node are on, is not prepared: they may be cut off" in page.body
    )
