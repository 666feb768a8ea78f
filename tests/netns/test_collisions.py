"""Marks and numbers of other programs on a node: what collides is named with its remedy, what is theirs stays."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agent.errors import CniError
from agent.host.cni_conf_dir import Confs
from tests.netns.node import CONF, VXLAN, Host, Pod, command
from tests.networks import parse_conf
from tests.support import eventually

FOREIGN = {
    "flannel": ("flannel.1", "id", "1", "nolearning"),
    "Cilium": ("cilium_vxlan", "external"),
}


def vxlan(name: str, *options: str) -> None:
    command("ip", "link", "add", name, "type", "vxlan", *options, "dstport", "8472")
    command("ip", "link", "set", name, "up")


@pytest.mark.parametrize("backend", ["ebpf", "kernel"])
@pytest.mark.parametrize("whose", FOREIGN)
def test_a_vxlan_device_of_another_network_on_our_port_is_named(tmp_path: Path, whose: str, backend: str) -> None:
    name, *options = FOREIGN[whose]
    vxlan(name, *options)
    conf = {**VXLAN, "vxlanBackend": backend}
    host = Host(tmp_path, conf=conf)
    host.confs.publish(Confs(frozenset({parse_conf(conf).network})))
    (problem,) = eventually(lambda: [p for p in host.reconciler.status.get().problems if "8472" in str(p)])
    assert problem.where == "device testcni-vxlan"
    assert f"has UDP port 8472 or the VNI 1: {name}" in problem.what
    assert f"ip link del {name}" in problem.remedy
    assert '"port"' in problem.remedy
    assert name in command("ip", "link"), "it is not ours"
    with pytest.raises(CniError, match="8472"):
        host.call("STATUS")
    command("ip", "link", "del", name)
    eventually(lambda: not host.reconciler.status.get().problems)
    assert "ips" in host.add(Pod("c1"))


def test_a_program_that_has_the_port_of_the_tunnel_is_reported(tmp_path: Path) -> None:
    host = Host(tmp_path, conf=VXLAN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 8472))
        host.confs.publish(Confs(frozenset({parse_conf(VXLAN).network})))
        (problem,) = eventually(lambda: [p for p in host.reconciler.status.get().problems if "8472" in str(p)])
        assert "ss -ulnp" in problem.remedy
    eventually(lambda: not host.reconciler.status.get().problems)


@pytest.mark.parametrize("mac", ["0a:58:0a:f4:01:01", "0a:62:01:02:03:04"])
def test_a_bridge_of_another_program_whose_mac_begins_like_ours_stays(tmp_path: Path, mac: str) -> None:
    command("ip", "link", "add", "br7", "address", mac, "type", "bridge")
    host = Host(tmp_path)
    host.confs.publish(Confs(frozenset({parse_conf(CONF).network})))
    eventually(lambda: "testcni0" in command("ip", "link"))
    eventually(lambda: host.reconciler.status.get().blocks)
    assert mac in command("ip", "link", "show", "br7")
