"""Forwarding by each interface: what the node makes forwards, and an underlay that does not is a problem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CniError
from agent.ipam.attachments.attachment import link_name
from tests.netns.node import CONF, IPIP, MACVLAN, VXLAN, Host, Pod, command
from tests.support import eventually

DUAL = ("10.244.1.0/24", "fd00:10:244:1::/64")
MODES: dict[str, tuple[Mapping[str, Any], str]] = {
    "host-gw": (CONF, "testcni0"),
    "vxlan": (VXLAN, "testcni-vxlan"),
    "vxlan-kernel": ({**VXLAN, "vxlanBackend": "kernel"}, "testcni-vxlan"),
    "ipip": (IPIP, "testcni-ipip"),
    "macvlan": ({**MACVLAN, "master": "eth0"}, ""),
}


def switch(name: str, value: str | None = None) -> str:
    path = Path("/proc/sys/net", name)
    if value is not None:
        path.write_text(value)
    return path.read_text().strip()


def forwards(device: str) -> bool:
    return switch(f"ipv4/conf/{device}/forwarding") == "1"


def ready(host: Host) -> str:
    """Why an ADD would fail, empty where it would not."""
    try:
        host.call("STATUS")
    except CniError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("mode", MODES)
def test_pods_get_out_where_new_interfaces_do_not_forward(tmp_path: Path, mode: str) -> None:
    conf, device = MODES[mode]
    host = Host(tmp_path, conf=conf)
    host.add(Pod("c1"))
    switch("ipv4/conf/default/forwarding", "0")
    host.add(Pod("c2"))
    assert forwards(link_name("c2", "eth0"))
    for name in (link_name("c1", "eth0"), device) if device else ():
        switch(f"ipv4/conf/{name}/forwarding", "0")
        host.reconciler.drifted()
        eventually(lambda name=name: forwards(name))
    if device:
        command("ip", "link", "del", device)
        host.reconciler.drifted()
        eventually(lambda: Path(f"/proc/sys/net/ipv4/conf/{device}").exists() and forwards(device))


@pytest.mark.parametrize("mode", MODES)
def test_a_node_whose_underlay_does_not_forward_is_not_ready(tmp_path: Path, mode: str) -> None:
    host = Host(tmp_path, conf=MODES[mode][0])
    host.add(Pod("c1"))
    switch("ipv4/conf/eth0/forwarding", "0")
    host.reconciler.drifted()
    why = eventually(lambda: ready(host))
    assert "net.ipv4.conf.eth0.forwarding is 0" in why
    (problem,) = (p for p in host.reconciler.status.get().problems if p.where == "interface eth0")
    assert "sysctl -w net.ipv4.conf.eth0.forwarding=1" in problem.remedy
    assert switch("ipv4/conf/eth0/forwarding") == "0", "the interface is not ours"
    switch("ipv4/conf/eth0/forwarding", "1")
    host.reconciler.drifted()
    eventually(lambda: not host.reconciler.status.get().problems)
    assert not ready(host)


def second_nic(*, version: int = 4) -> None:
    """wan0, by which the default route leads; who answers is behind it, in no namespace of the node."""
    command("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan1")
    for link in ("wan0", "wan1"):
        command("ip", "link", "set", link, "up")
    near, router = {4: ("203.0.113.2/24", "203.0.113.1"), 6: ("2001:db8:9::2/64", "2001:db8:9::1")}[version]
    command("ip", "address", "add", near, "dev", "wan0", *(["nodad"] if version == 6 else []))
    command("ip", f"-{version}", "route", "replace", "default", "via", router, "dev", "wan0")


@pytest.mark.parametrize("mode", MODES)
def test_a_node_whose_way_out_by_a_second_nic_does_not_forward_is_not_ready(tmp_path: Path, mode: str) -> None:
    """Pods' packets leave by it, and all replies are dropped there."""
    host = Host(tmp_path, conf=MODES[mode][0])
    host.add(Pod("c1"))
    second_nic()
    switch("ipv4/conf/wan0/forwarding", "0")
    host.reconciler.drifted()
    why = eventually(lambda: ready(host))
    assert "net.ipv4.conf.wan0.forwarding is 0" in why
    (problem,) = (p for p in host.reconciler.status.get().problems if p.where == "interface wan0")
    assert "sysctl -w net.ipv4.conf.wan0.forwarding=1" in problem.remedy
    assert switch("ipv4/conf/wan0/forwarding") == "0", "the interface is not ours"
    switch("ipv4/conf/wan0/forwarding", "1")
    host.reconciler.drifted()
    eventually(lambda: not host.reconciler.status.get().problems)
    assert not ready(host)


def test_a_second_nic_that_leads_nowhere_may_do_without_forwarding(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.add(Pod("c1"))
    second_nic()
    command("ip", "route", "delete", "default")
    switch("ipv4/conf/wan0/forwarding", "0")
    host.looked()
    host.add(Pod("c2"))
    eventually(lambda: not host.reconciler.status.get().problems)


def test_ipv6_gets_out_by_a_nic_whose_own_switch_is_off(tmp_path: Path) -> None:
    """The kernel asks only the switch of all interfaces, so there is nothing to report."""
    host = Host(tmp_path, DUAL, conf={**CONF, "subnet": None})
    pod, outside = Pod("c1"), Pod("outside")
    host.add(pod)
    second_nic(version=6)
    switch("ipv6/conf/wan0/forwarding", "0")
    command("ip", "link", "set", "wan1", "netns", outside.path)
    for args in (("link", "set", "wan1", "up"), ("address", "add", "2001:db8:9::1/64", "dev", "wan1", "nodad")):
        outside.run("ip", *args)
    host.reconciler.drifted()
    eventually(lambda: pod.reaches("2001:db8:9::1"))
    assert switch("ipv6/conf/wan0/forwarding") == "0"
    assert not host.reconciler.status.get().problems
    assert not ready(host)


@pytest.mark.parametrize("advertised", [True, False])
def test_a_default_route_that_a_router_advertised_stays(tmp_path: Path, advertised: bool) -> None:
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
    command("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
    for link in ("eth0", "wire"):
        command("ip", "link", "set", link, "up")
    switch("ipv6/conf/eth0/accept_ra", "1")
    route = ("default", "via", "fe80::1", "dev", "eth0")
    command("ip", "-6", "route", "add", *route, "proto", "ra" if advertised else "static")
    host = Host(tmp_path, DUAL, conf={**CONF, "subnet": None})
    host.add(Pod("c1"))
    assert switch("ipv6/conf/all/forwarding") == "1"
    assert switch("ipv6/conf/eth0/accept_ra") == ("2" if advertised else "1")
    assert "default via fe80::1" in command("ip", "-6", "route")
