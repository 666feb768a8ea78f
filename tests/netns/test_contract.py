"""The promises of all modes about a pod, on one node of the real kernel, with a row for each mode.

What only one mode does is in tests of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CniError, Code
from agent.kernel import tcx
from tests.netns.node import CONF, IPIP, MACVLAN, VXLAN, Host, Pod, command

NODE, LINK_LOCAL = "192.0.2.1", "169.254.1.1"
Change = tuple[str, str]
"""A command, and what CHECK says after it."""


@dataclass(frozen=True)
class Row:
    """A mode, and what differs between modes."""

    name: str
    conf: Mapping[str, Any]
    ips: Mapping[str, Any]
    """The address in the result of the first ADD."""
    gateway: str
    """Of the default route, in the pod and in the result."""
    routes: tuple[tuple[str, str | None], ...]
    """All routes in the pod, by their gateways."""
    mtu: int
    here: tuple[Change, ...]
    """Changes on the node; {link} is the pod's link there."""
    there: tuple[Change, ...]
    """Changes in the pod."""
    reached: tuple[str, ...] = ("10.244.1.1", "10.244.1.2")
    """Addresses that a pod reaches beside the node: the node's address in the block, and its own."""
    given: tuple[tuple[str, str], ...] = ()
    """The routes of the result with their gateways; none: the default route."""
    tcx: bool | None = None
    """True if programs at the underlay's device are attached by TCX. None: if the kernel has it."""


VETH = "ip link add eth0 type veth peer name x; ip link set eth0 up"
LINK_IS_DOWN = ("ip link set {link} down", "host link .* is down")
NO_ROUTE = ("ip route delete 10.244.1.2", "lacks the route to 10.244.1.2")
POD_LINK_IS_DOWN = ("ip link set eth0 down", "eth0 in the pod is down")
IN_THE_POD = (POD_LINK_IS_DOWN, ("ip link delete eth0", "host link .* is missing"))
OTHER_ADDRESS = "ip address add {0}.77/24 dev eth0; ip address delete {0}.{1} dev eth0"
ROUTED: dict[str, Any] = {
    "ips": {"address": "10.244.1.2/32", "gateway": LINK_LOCAL, "interface": 1},
    "gateway": LINK_LOCAL,
    "routes": (("default", LINK_LOCAL), (LINK_LOCAL, None)),
    "there": (*IN_THE_POD, (OTHER_ADDRESS.format("10.244.1", "2/32"), "lacks address")),
}
IPIP_ON_THE_NODE = (
    ("ip link delete testcni-ipip", "device testcni-ipip is missing"),
    ("ip link set testcni-ipip down", "device testcni-ipip is down"),
    NO_ROUTE,
)
ROWS = (
    Row(
        "host-gw",
        CONF,
        {"address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 2},
        "10.244.1.1",
        (("default", "10.244.1.1"), ("10.244.1.0/24", None)),
        1500,
        (LINK_IS_DOWN,),
        (*IN_THE_POD, (OTHER_ADDRESS.format("10.244.1", "2/24"), "lacks address")),
    ),
    Row(
        "vxlan",
        VXLAN,
        mtu=1450,
        here=(
            LINK_IS_DOWN,
            ("ip link set testcni-vxlan name gone", "device testcni-vxlan is not there"),
            ("tc filter delete dev {link} egress", "lacks the program veth_egress"),
            ("tc qdisc delete dev {link} clsact", "lacks the program veth_ingress"),
            NO_ROUTE,
        ),
        **ROUTED,
    ),
    Row("vxlan-kernel", {**VXLAN, "vxlanBackend": "kernel"}, mtu=1450, here=(LINK_IS_DOWN, NO_ROUTE), **ROUTED),
    Row("ipip-tcx", IPIP, mtu=1480, here=IPIP_ON_THE_NODE, tcx=True, **ROUTED),
    Row("ipip-clsact", IPIP, mtu=1480, here=IPIP_ON_THE_NODE, tcx=False, **ROUTED),
    Row(
        "macvlan",
        MACVLAN,
        {"address": "192.0.2.90/24", "interface": 1},
        LINK_LOCAL,  # the node has no router
        (("default", LINK_LOCAL), ("10.96.0.0/12", LINK_LOCAL), ("192.0.2.0/24", None), (NODE, LINK_LOCAL)),
        1500,
        (LINK_IS_DOWN, ("ip route delete 192.0.2.90", "lacks the route to 192.0.2.90"),
         ("ip link set eth0 down", "interface eth0 is down")),
        (
            POD_LINK_IS_DOWN,
            ("ip link delete eth0", "eth0 in the pod is missing"),
            (OTHER_ADDRESS.format("192.0.2", "90/24"), "lacks address"),
            ("ip link set eth0 address 02:00:00:00:00:01", "has MAC 02:00:00:00:00:01"),
            ("ip route delete 10.96.0.0/12", "lacks route 10.96.0.0/12"),
            (f"ip link delete eth0; {VETH}", "is not the macvlan"),
        ),
        ("192.0.2.90",),
        ((f"{NODE}/32", LINK_LOCAL), ("0.0.0.0/0", LINK_LOCAL), ("10.96.0.0/12", LINK_LOCAL)),
    ),
)  # fmt: skip
each = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def node(tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A node with a conf of the mode."""
    if row.tcx and not tcx.known():
        pytest.skip("this kernel has no TCX (Linux 6.6)")
    if row.tcx is not None:
        monkeypatch.setattr(tcx, "known", lambda: row.tcx)
    return Host(tmp_path, conf=row.conf, encapsulates="ebpf")


def changes(side: str) -> pytest.MarkDecorator:
    """Each row with each of its changes on one side."""
    every = [
        pytest.param(row, *change, id=f"{row.name}: {change[0]}") for row in ROWS for change in getattr(row, side)
    ]
    return pytest.mark.parametrize(("row", "change", "message"), every)


@each
def test_a_pod_gets_its_address_and_routes(tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    host, pod = node(tmp_path, row, monkeypatch), Pod("c1")
    result = host.add(pod)
    assert result["cniVersion"] == "1.1.0"
    assert result["ips"] == [row.ips]
    given = [(route["dst"], route["gw"]) for route in result["routes"]]
    assert given == list(row.given or (("0.0.0.0/0", row.gateway),))
    assert result["interfaces"][-1]["sandbox"] == pod.path
    assert {interface["mtu"] for interface in result["interfaces"]} == {row.mtu}
    routes = pod.json("route")
    assert sorted((r["dst"], r.get("gateway")) for r in routes) == sorted(row.routes)
    assert {r["dev"] for r in routes if "gateway" not in r} == {"eth0"}
    for address in (NODE, *row.reached):
        assert pod.reaches(address), address


@each
def test_two_pods_of_a_node_reach_each_other(tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    host, pods = node(tmp_path, row, monkeypatch), [Pod("c1"), Pod("c2")]
    addresses = [str(host.add(pod)["ips"][0]["address"]).partition("/")[0] for pod in pods]
    for pod, other in zip(pods, reversed(addresses), strict=True):
        assert pod.reaches(other)


@each
def test_an_add_may_be_repeated_and_a_del_leaves_nothing(
    tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, pod = node(tmp_path, row, monkeypatch), Pod("c1")
    host.delete(pod)  # of a pod that was never added
    host.add(Pod("other"))
    before = host.state()
    first = host.add(pod)
    with_pod = host.state()
    assert host.add(pod) == first
    assert host.state() == with_pod
    for _ in range(2):
        host.delete(pod)
        assert host.state() == before
        assert [link["ifname"] for link in pod.json("link") if link["ifname"] != "tunl0"] == ["lo"]


@each
def test_a_del_needs_no_namespace(tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    host, pods = node(tmp_path, row, monkeypatch), [Pod("c1"), Pod("c2")]
    host.add(Pod("other"))
    before = host.state()
    for pod in pods:
        host.add(pod)
    host.call("DEL", container_id="c1", ifname="eth0", netns="", netns_fd=None)
    pods[1].close()
    host.call("DEL", container_id="c2", ifname="eth0", netns="/run/netns/gone", netns_error="No such file")
    assert host.state() == before


def check_fails(host: Host, pod: Pod, conf: Mapping[str, Any], message: str) -> None:
    with pytest.raises(CniError, match=message) as caught:
        host.call("CHECK", pod, conf)
    assert caught.value.code == Code.CHECK_FAILED


@changes("here")
def test_check_sees_a_change_on_the_node(
    tmp_path: Path, row: Row, change: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, pod = node(tmp_path, row, monkeypatch), Pod("c1")
    conf = {**row.conf, "prevResult": host.add(pod)}
    assert host.call("CHECK", pod, conf) == {}
    host.close()  # it would repair that
    command("sh", "-c", change.format(link=host.attachments.all()[0].link))
    check_fails(host, pod, conf, message)


@changes("there")
def test_check_sees_a_change_in_the_pod(
    tmp_path: Path, row: Row, change: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, pod = node(tmp_path, row, monkeypatch), Pod("c1")
    conf = {**row.conf, "prevResult": host.add(pod)}
    assert host.call("CHECK", pod, conf) == {}
    host.close()
    pod.run("sh", "-c", change)
    check_fails(host, pod, conf, message)
