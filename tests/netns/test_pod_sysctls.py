"""Pods work with any sysctl that their namespace had before ADD, and with any MTU of the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.kernel import netns
from tests.netns.node import CONF, IPIP, MACVLAN, VXLAN, Host, Pod, command
from tests.support import eventually

DUAL = ("10.244.1.0/24", "fd00:10:244:1::/64")
SMALL = 1200  # bytes: below the 1280 that IPv6 wants of a link (RFC 8200, section 5)
MODES: dict[str, Mapping[str, Any]] = {
    "host-gw": CONF,
    "vxlan": VXLAN,
    "vxlan-kernel": {**VXLAN, "vxlanBackend": "kernel"},
    "ipip": IPIP,
    "macvlan": {**MACVLAN, "master": "eth0"},
}


def switch(pod: Pod, name: str, value: str) -> None:
    with netns.inside(pod.fd):
        Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6").write_text(value)


def switched(pod: Pod, name: str) -> str:
    with netns.inside(pod.fd):
        return Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6").read_text().strip()


@pytest.mark.parametrize("name", ["all", "default"])
def test_a_pod_whose_namespace_has_ipv6_off_gets_its_ipv6_address(tmp_path: Path, name: str) -> None:
    host, pod = Host(tmp_path, DUAL, conf={**CONF, "subnet": None}), Pod("c1")
    switch(pod, name, "1")
    switch(pod, "lo", "1")
    result = host.add(pod)
    assert [ip["address"] for ip in result["ips"]][1].startswith("fd00:10:244:1::")
    eventually(lambda: pod.reaches("fd00:10:244:1::1"))  # once the bridge knows that its address is unique
    assert pod.reaches("::1")
    assert pod.reaches("10.244.1.1")


def test_a_pod_without_an_ipv6_address_keeps_ipv6_off(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    switch(pod, "all", "1")
    switch(pod, "default", "1")
    host.add(pod)
    assert (switched(pod, "lo"), switched(pod, "eth0")) == ("1", "1")


@pytest.mark.parametrize("mode", MODES)
def test_pods_work_where_links_have_no_ipv6_as_the_mtu_is_small(tmp_path: Path, mode: str) -> None:
    host, pod = Host(tmp_path, conf={**MODES[mode], "mtu": SMALL}), Pod("c1")
    result = host.add(pod)
    host.call("CHECK", pod, {**host.conf, "prevResult": result})
    assert pod.reaches("192.0.2.1")
    assert pod.json("link", "show", "eth0")[0]["mtu"] == SMALL
    assert not host.reconciler.status.get().problems


@pytest.mark.parametrize("mode", MODES)
def test_pods_work_on_an_underlay_that_has_no_ipv6_as_its_mtu_is_small(tmp_path: Path, mode: str) -> None:
    for end in ("eth0", "wire"):
        if end == "eth0":
            command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
            command("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
        command("ip", "link", "set", end, "mtu", str(SMALL), "up")
    host, pod = Host(tmp_path, conf=MODES[mode]), Pod("c1")
    host.add(pod)
    assert pod.reaches("192.0.2.1")
    assert not host.reconciler.status.get().problems
