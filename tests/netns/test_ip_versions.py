"""A node with IPv6 blocks whose links have no IPv6: pods get IPv4 addresses, and a problem says why no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import CniError
from agent.model.problem import Problem
from tests.netns.node import CONF, Host, Pod, command
from tests.support import eventually

DUAL, ONLY_IPV6 = ("10.244.1.0/24", "fd00:10:244:1::/64"), ("fd00:10:244:1::/64",)
ANY = {**CONF, "subnet": None}
GATEWAY = "fd00:10:244:1::1"
SMALL = 1200  # bytes


def turn_off(name: str) -> None:
    (Path("/proc/sys/net") / "ipv6/conf" / name / "disable_ipv6").write_text("1")


def versions(host: Host, pod: Pod) -> list[int]:
    return [6 if ":" in ip["address"] else 4 for ip in host.add(pod)["ips"]]


def problem(host: Host) -> Problem:
    """The only one."""
    (found,) = host.reconciler.status.get().problems
    return found


@pytest.mark.parametrize("name", ["all", "default"])
def test_pods_get_their_ipv6_addresses_on_a_node_that_has_ipv6_off(tmp_path: Path, name: str) -> None:
    turn_off(name)
    host, pod = Host(tmp_path, DUAL, conf=ANY), Pod("c1")
    assert versions(host, pod) == [4, 6]
    eventually(lambda: pod.reaches(GATEWAY))
    assert pod.reaches("10.244.1.1")
    assert not host.reconciler.status.get().problems


@pytest.mark.parametrize("name", ["all", "testcni0"])
def test_pods_keep_their_gateway_when_somebody_turns_ipv6_off(tmp_path: Path, name: str) -> None:
    host, pod = Host(tmp_path, DUAL, conf=ANY), Pod("c1")
    host.add(pod)
    eventually(lambda: pod.reaches(GATEWAY))
    turn_off(name)
    host.reconciler.drifted()
    eventually(lambda: pod.reaches(GATEWAY))
    eventually(lambda: not host.reconciler.status.get().problems)


def test_pods_get_ipv4_alone_where_the_netconf_has_an_mtu_too_small_for_ipv6(tmp_path: Path) -> None:
    host, pod = Host(tmp_path, DUAL, conf={**ANY, "mtu": SMALL}), Pod("c1")
    host.ready()
    assert versions(host, pod) == [4]
    assert pod.reaches("192.0.2.1")
    assert "1200 bytes" in problem(host).what
    assert "`mtu` of the netconf" in problem(host).remedy


def test_pods_get_ipv4_alone_where_the_underlay_has_an_mtu_too_small_for_ipv6(tmp_path: Path) -> None:
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
    command("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
    for end in ("eth0", "wire"):
        command("ip", "link", "set", end, "mtu", str(SMALL), "up")
    host, pod = Host(tmp_path, DUAL, conf=ANY), Pod("c1")
    assert versions(host, pod) == [4]
    assert pod.reaches("192.0.2.1")
    assert "interface that has the node's address" in problem(host).remedy


def test_a_network_of_ipv6_alone_with_a_small_mtu_is_refused_with_the_reason(tmp_path: Path) -> None:
    host, pod = Host(tmp_path, ONLY_IPV6, conf={**ANY, "mtu": SMALL}), Pod("c1")
    for verb in ("ADD", "STATUS"):
        with pytest.raises(CniError, match=r"MTU of 1200 bytes is below the 1280"):
            host.call(verb, pod)


def test_a_netconf_whose_mtu_becomes_small_adds_pods_beside_those_with_ipv6(tmp_path: Path) -> None:
    host, old, new = Host(tmp_path, DUAL, conf=ANY), Pod("c1"), Pod("c2")
    assert versions(host, old) == [4, 6]
    host.conf = {**ANY, "mtu": SMALL}
    assert versions(host, new) == [4]
    assert old.reaches("192.0.2.1")
    assert new.reaches("192.0.2.1")
    assert "1200 bytes" in problem(host).what


def test_pods_get_ipv4_alone_where_the_kernel_has_no_ipv6(tmp_path: Path) -> None:
    switches = tmp_path / "net"
    switches.mkdir()
    for name in ("ipv4", "bridge"):
        (switches / name).symlink_to(Path("/proc/sys/net", name))
    host, pod = Host(tmp_path / "run", DUAL, conf=ANY, sysctls=switches), Pod("c1")
    assert versions(host, pod) == [4]
    assert pod.reaches("192.0.2.1")
    assert "the kernel has no IPv6" in problem(host).what
    assert GATEWAY not in command("ip", "-6", "address")
