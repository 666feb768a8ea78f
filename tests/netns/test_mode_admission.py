"""A mode whose pods the node's own would not reach does not come into force, in a reconciler on a real kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import CniError
from agent.host.cni_conf_dir import Confs
from agent.model.cluster import Node
from agent.modes.hostgw import HOST_GW
from agent.modes.vxlan.options import VXLAN
from agent.observe import health
from tests.netns.node import CONF, MACVLAN, Host, Pod, command
from tests.netns.node import VXLAN as VXLAN_CONF
from tests.networks import parse_conf
from tests.support import eventually, ip, net

OLD, NEW = parse_conf(CONF).network, parse_conf(MACVLAN).network
WITH_OLD = Confs(frozenset({OLD}), chosen={"testcni": OLD}, installed=frozenset({OLD}))
WITH_NEW = replace(WITH_OLD, networks=frozenset({OLD, NEW}), chosen={"testcni": NEW})

INSTALLED = Confs(frozenset({NEW}), chosen={"testcni": NEW}, installed=frozenset({NEW}))


def test_it_is_refused_while_pods_are_there_and_comes_when_they_are_gone(tmp_path: Path) -> None:
    host, pod, late = Host(tmp_path), Pod("a"), Pod("b")
    status = host.reconciler.status
    host.confs.publish(WITH_OLD)
    eventually(lambda: status.get().accepted_modes == (("testcni", (HOST_GW,)),))
    assert "code" not in host.add(pod)
    host.confs.publish(WITH_NEW)
    eventually(lambda: status.get().refused == {"testcni"})
    host.looked()
    now = status.get()
    assert (set(now.blocks), now.accepted_modes) == ({OLD}, (("testcni", (HOST_GW,)),))
    (problem,) = now.problems
    assert "the mode macvlan is refused, and the old conflist stays in force: pods on this node" in problem.what
    assert health.ready(now, host.confs.get(), None).status == 503
    assert "code" not in host.add(late), "the old conflist is in force"
    host.delete(late)
    host.delete(pod)
    eventually(lambda: NEW in status.get().blocks)
    assert status.get().problems == ()
    host.confs.publish(INSTALLED)
    eventually(lambda: status.get().accepted_modes == (("testcni", ("macvlan",)),))
    assert health.ready(status.get(), INSTALLED, None).status == 200
    assert "code" not in host.add(pod, MACVLAN)
    with pytest.raises(CniError, match="the mode vxlan is refused"):
        host.add(late, VXLAN_CONF)
    host.close()
    for each in (pod, late):
        each.close()


def test_a_node_that_waits_for_others_only_is_silent(tmp_path: Path) -> None:
    host = Host(tmp_path)
    status = host.reconciler.status
    host.put(Node("two", (ip("192.0.2.2"),), (net("10.244.2.0/24"),), accepted_modes=(("testcni", (VXLAN,)),)))
    host.confs.publish(WITH_OLD)
    eventually(lambda: status.get().accepted_modes == (("testcni", (HOST_GW,)),))
    host.confs.publish(WITH_NEW)
    eventually(lambda: status.get().refused == {"testcni"} and status.get().accepted_modes == ())
    assert "node two announces the mode vxlan" in str(status.get().problems)
    host.put(Node("two", (ip("192.0.2.2"),), (net("10.244.2.0/24"),)))
    eventually(lambda: NEW in status.get().blocks)
    host.confs.publish(INSTALLED)
    eventually(lambda: status.get().accepted_modes == (("testcni", ("macvlan",)),))
    host.close()


def test_pods_whose_mode_can_not_be_kept_are_named_by_readiness(tmp_path: Path) -> None:
    """As after an agent has come that lacks a right which the old mode needs."""
    host, pod = Host(tmp_path), Pod("a")
    status = host.reconciler.status
    vxlan = parse_conf(VXLAN_CONF).network
    host.confs.publish(Confs(frozenset({vxlan}), chosen={"testcni": vxlan}))
    assert "code" not in host.add(pod, VXLAN_CONF)
    host.close()
    command("ip", "link", "delete", "testcni-vxlan")
    command("ip", "link", "add", "testcni-vxlan", "type", "bridge")  # somebody else's: the tunnel can't be made
    host.confs.publish(Confs(frozenset({OLD}), chosen={"testcni": OLD}))
    host.reconciler.drifted()
    host.reconciler.once()
    assert status.get().unserved == {vxlan}
    page = health.ready(status.get(), host.confs.get(), None)
    assert page.status == 503
    assert b"network testcni (vxlan), which pods on this node are on, is not prepared" in page.body
    command("ip", "link", "delete", "testcni-vxlan")
    host.reconciler.drifted()
    host.reconciler.once()
    assert status.get().unserved == frozenset()
    assert health.ready(status.get(), host.confs.get(), None).status == 200
    pod.close()
