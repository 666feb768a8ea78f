"""The node's side of pods' links is desired state: what somebody changes is repaired, in every mode."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

import agent.objects.pod_port_setup
from agent.errors import CniError
from agent.ipam.attachments.attachment import link_name
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel import netlink
from agent.kernel.netlink import RECEIVE, Netlink
from agent.kernel.netlink_monitor import Monitor
from agent.model.marks import LINK_PREFIX, ROUTE_PROTOCOL
from agent.modes.registry import BUILT_IN, Modes
from agent.modes.vxlan import maps as vxlan_maps
from agent.node import pod_port_repair
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import PortsInKernel
from tests.netns.node import CONF, IPIP, MACVLAN, VXLAN, Host, Pod, command
from tests.support import eventually

PROTOCOL = str(ROUTE_PROTOCOL)
MADE_AT_PARENT = ("macvlan",)  # which is another's, so there is a notification of the kernel
MARKER = IPv4Address("192.0.2.77")
KERNEL_VXLAN = {**VXLAN, "vxlanBackend": "kernel"}
MACVLAN_ETH0 = {**MACVLAN, "master": "eth0"}
MODES: dict[str, Mapping[str, Any]] = {
    "host-gw": CONF,
    "vxlan": VXLAN,
    "vxlan-kernel": KERNEL_VXLAN,
    "ipip": IPIP,
    "macvlan": MACVLAN_ETH0,
}
ROUTED = tuple(name for name in MODES if name != "host-gw")


class Node(Host):
    """A node with one pod, whose agent also gets notifications of the kernel."""

    def __init__(self, tmp_path: Path, mode: str) -> None:
        super().__init__(tmp_path, conf=MODES[mode])
        monitor = Monitor.of_routes(ROUTE_PROTOCOL, LINK_PREFIX)

        def hear() -> None:
            while True:
                if monitor.changed():
                    self.reconciler.drifted()

        threading.Thread(target=hear, daemon=True).start()
        self.pod = Pod("c1")
        self.answer = self.add(self.pod)
        self.link = link_name("c1", "eth0")
        self.gateway = "192.0.2.1"
        assert self.fine(), self.wrong()

    @property
    def address(self) -> str:
        """The pod's."""
        return str(self.answer["ips"][0]["address"]).partition("/")[0]

    def route(self) -> list[str]:
        """The arguments of ip-route(8) for the pod's route."""
        return command("ip", "-N", "route", "show", f"{self.address}/32").split()

    def wrong(self) -> str:
        """Return what CHECK says, empty where it finds nothing."""
        try:
            self.call("CHECK", self.pod, {**self.conf, "prevResult": self.answer})
        except CniError as error:
            return str(error)
        return ""

    def fine(self) -> bool:
        """Return whether the pod is as ADD left it."""
        return not self.wrong()


def flap(node: Node) -> None:
    command("ip", "link", "set", node.link, "down")
    command("ip", "link", "set", node.link, "up")


def leave_down(node: Node) -> None:
    command("ip", "link", "set", node.link, "down")


def flush_routes(node: Node) -> None:
    command("ip", "route", "del", f"{node.address}/32")


def delete_neighbour(node: Node) -> None:
    command("ip", "neigh", "del", node.address, "dev", node.link)


def change_mtu(node: Node) -> None:
    command("ip", "link", "set", node.link, "mtu", "1300")


def change_mac(node: Node) -> None:
    command("ip", "link", "set", node.link, "address", "02:00:00:00:00:99")


def change_alias(node: Node) -> None:
    command("ip", "link", "set", node.link, "alias", "mine")


def leave_bridge(node: Node) -> None:
    command("ip", "link", "set", node.link, "nomaster")


def lose_bridge(node: Node) -> None:
    command("ip", "link", "del", "testcni0")


def no_hairpin(node: Node) -> None:
    command("bridge", "link", "set", "dev", node.link, "hairpin", "off")


def lose_filters(node: Node) -> None:
    command("tc", "filter", "del", "dev", node.link, "ingress")


def lose_qdisc(node: Node) -> None:
    command("tc", "qdisc", "del", "dev", node.link, "clsact")


def lose_entry(node: Node) -> None:
    vxlan_maps.remove_pod(node.maps(), IPv4Address(node.address))


def no_proxy_arp(node: Node) -> None:
    Path(f"/proc/sys/net/ipv4/conf/{node.link}/proxy_arp").write_text("0")


def lead_to_another_pod(node: Node) -> None:
    node.add(Pod("c2"))
    command("ip", "route", "replace", f"{node.address}/32", "dev", link_name("c2", "eth0"), "proto", PROTOCOL)


def lead_elsewhere(node: Node) -> None:
    command("ip", "route", "replace", f"{node.address}/32", "via", "192.0.2.9", "proto", PROTOCOL)


def lead_nowhere(node: Node) -> None:
    command("ip", "route", "replace", "unreachable", f"{node.address}/32", "proto", PROTOCOL)


def lead_two_ways(node: Node) -> None:
    hops = ("nexthop", "via", "192.0.2.8", "nexthop", "via", "192.0.2.9")
    command("ip", "route", "replace", f"{node.address}/32", "proto", PROTOCOL, *hops)


def enslave(node: Node) -> None:
    command("ip", "link", "add", "theirs", "type", "bridge")
    command("ip", "link", "set", "theirs", "up")
    command("ip", "link", "set", node.link, "master", "theirs")


TOLD = [
    *((mode, change) for mode in MODES for change in (flap, leave_down)),
    *((mode, flush_routes) for mode in ROUTED),
    ("host-gw", leave_bridge),
    ("host-gw", lose_bridge),
    ("vxlan", lose_filters),
    ("vxlan", lose_qdisc),
]
SILENT = [
    *((mode, change) for mode in MODES for change in (change_mac, change_mtu, change_alias)),
    *((mode, delete_neighbour) for mode in ROUTED),
    ("host-gw", no_hairpin),
    ("vxlan", lose_entry),
    ("ipip", no_proxy_arp),
    *((mode, enslave) for mode in MODES),
]
MISLED = [
    (mode, change)
    for mode in MODES
    for change in (lead_to_another_pod, lead_elsewhere, lead_nowhere, lead_two_ways)
]


def named(cases: Sequence[tuple[str, Callable[[Node], None]]]) -> list[Any]:
    return [pytest.param(mode, change, id=f"{mode}-{change.__name__}") for mode, change in cases]


@pytest.mark.parametrize(("mode", "change"), named(TOLD))
def test_a_pod_keeps_its_network_when_somebody_changes_its_link(
    tmp_path: Path, mode: str, change: Callable[[Node], None]
) -> None:
    node = Node(tmp_path, mode)
    change(node)
    eventually(node.fine)
    assert node.pod.reaches(node.gateway)
    assert not node.reconciler.status.get().problems


@pytest.mark.parametrize(("mode", "change"), named(SILENT))
def test_a_resync_repairs_what_the_kernel_does_not_tell_of(
    tmp_path: Path, mode: str, change: Callable[[Node], None]
) -> None:
    node = Node(tmp_path, mode)
    change(node)
    node.reconciler.drifted()
    eventually(node.fine)
    assert node.pod.reaches(node.gateway)
    eventually(lambda: node.reconciler.drift.repaired.all()["pods",])


@pytest.mark.parametrize(("mode", "change"), named(MISLED))
def test_a_route_of_our_number_that_leads_elsewhere_cuts_no_pod_off(
    tmp_path: Path, mode: str, change: Callable[[Node], None]
) -> None:
    node = Node(tmp_path, mode)
    change(node)
    node.reconciler.drifted()
    eventually(lambda: reached(node.address))
    assert node.fine(), node.wrong()
    assert not node.reconciler.status.get().problems


def reached(address: str) -> bool:
    """Return whether the node reaches an address."""
    return subprocess.run(["ping", "-c1", "-W1", "-q", address], capture_output=True, check=False).returncode == 0


DEVICES = {"vxlan": "testcni-vxlan", "vxlan-kernel": "testcni-vxlan", "ipip": "testcni-ipip"}
CHANGES = {
    "held down": "ip link set {device} protodown on",
    "a port of a bridge": "ip link add theirs type bridge; ip link set {device} master theirs",
    "another local address": "ip link set {device} type vxlan local 192.0.2.77",
    "all to one node": "ip link set {device} type vxlan remote 192.0.2.77",
    "a short life": "ip link set {device} type vxlan ttl 1",
    "strict rp_filter": "sysctl -qw net.ipv4.conf.{device}.rp_filter=1",
    "no way to its address": "ip route flush table local dev {device}",
}
HARMLESS = {
    ("vxlan", "another local address"),
    ("vxlan", "strict rp_filter"),
    ("vxlan-kernel", "strict rp_filter"),
}
CHANGED = [(mode, change) for mode in DEVICES for change in CHANGES if (mode, change) not in HARMLESS]


@pytest.mark.parametrize(("mode", "change"), CHANGED)
def test_what_somebody_changes_at_the_tunnel_is_repaired(tmp_path: Path, mode: str, change: str) -> None:
    node, device = Node(tmp_path, mode), DEVICES[mode]
    eventually(lambda: command("ip", "-4", "-br", "address", "show", device).split()[2:])
    before = tunnel_device(device)
    done = subprocess.run(["sh", "-c", CHANGES[change].format(device=device)], capture_output=True, check=False)
    if done.returncode or tunnel_device(device) == before:
        pytest.skip("a device of this kind has no such thing")
    node.reconciler.drifted()
    eventually(lambda: tunnel_device(device) == before)
    eventually(node.fine)
    assert node.pod.reaches(node.gateway)
    assert not node.reconciler.status.get().problems


@pytest.mark.parametrize("mode", DEVICES)
def test_a_tunnel_that_nobody_changes_stays_the_device_that_it_is(tmp_path: Path, mode: str) -> None:
    node = Node(tmp_path, mode)
    node.close()
    before = command("ip", "-o", "link", "show", DEVICES[mode]).partition(":")[0]
    for _round in range(2):
        node.reconciler.drifted()
        assert node.reconciler.once()
    assert command("ip", "-o", "link", "show", DEVICES[mode]).partition(":")[0] == before


def tunnel_device(name: str) -> str:
    """Return what a device is made with, without its index and what changes by itself."""
    script = (
        f"ip -d -o link show {name} | cut -d: -f2-; ip route show table local dev {name};"
        f"cat /proc/sys/net/ipv4/conf/{name}/rp_filter"
    )
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False).stdout
    return re.sub(r"[a-z_]+_timer +[0-9.]+|state [A-Z]+ ", "", shown)


@pytest.mark.parametrize("mode", MODES)
def test_calls_for_pods_do_not_wake_the_agent(tmp_path: Path, mode: str) -> None:
    host = Host(tmp_path, conf=MODES[mode])
    first, pod = Pod("c0"), Pod("c1")
    host.add(first)  # makes what all pods share, which others may hear of
    host.close()
    monitor = Monitor.of_routes(ROUTE_PROTOCOL, LINK_PREFIX)
    host.add(pod)
    host.delete(pod)
    command("ip", "address", "add", f"{MARKER}/32", "dev", "lo")
    heard = b""
    while MARKER.packed not in (message := monitor._socket.recv(RECEIVE)):
        heard += message
    assert LINK_PREFIX.encode() not in heard
    assert heard == b"" or mode in MADE_AT_PARENT


@pytest.mark.parametrize("protocol", ["boot", "84"])
@pytest.mark.parametrize("mode", ROUTED)
def test_routes_that_an_earlier_version_made_are_taken_over(tmp_path: Path, mode: str, protocol: str) -> None:
    node = Node(tmp_path, mode)
    node.close()
    command("ip", "route", "change", *node.route(), "proto", protocol)
    assert node.fine(), "an upgraded agent cuts no pod off before its first round"
    node.reconciler.drifted()
    node.reconciler.once()
    assert node.route()[node.route().index("proto") + 1] == str(ROUTE_PROTOCOL)
    assert node.fine()


def test_a_foreign_route_to_a_pod_is_reported_and_stays(tmp_path: Path) -> None:
    node = Node(tmp_path, "vxlan")
    command("ip", "route", "replace", f"{node.address}/32", "via", "192.0.2.9", "proto", "static")
    node.reconciler.drifted()
    (problem,) = eventually(lambda: [p for p in node.reconciler.status.get().problems if p.where == "pod c1"])
    assert f"route {node.address}/32" in problem.what
    assert "proto static" in command("ip", "route", "show", f"{node.address}/32")
    command("ip", "route", "del", f"{node.address}/32")
    node.reconciler.drifted()
    eventually(node.fine)
    eventually(lambda: not node.reconciler.status.get().problems)


@pytest.mark.parametrize("mode", MODES)
def test_a_link_that_is_gone_is_a_problem_that_names_the_pod(tmp_path: Path, mode: str) -> None:
    node = Node(tmp_path, mode)
    command("ip", "link", "del", node.link)
    node.reconciler.drifted()
    (problem,) = eventually(lambda: [p for p in node.reconciler.status.get().problems if p.where == "pod c1"])
    assert node.link in problem.what
    assert "delete the pod" in problem.remedy
    node.delete(node.pod)
    node.reconciler.drifted()
    eventually(lambda: not node.reconciler.status.get().problems)


@pytest.mark.parametrize("mode", MODES)
def test_a_pod_is_repaired_when_the_call_that_was_at_work_on_it_is_over(tmp_path: Path, mode: str) -> None:
    node = Node(tmp_path, mode)
    node.close()  # rounds are made by hand here
    (attachment,) = node.attachments.all()
    with node.attachments.locks.hold(attachment.key):  # as CHECK does, which changes nothing
        change_mtu(node)
        node.reconciler.drifted()
        assert not node.reconciler.once(), "it is tried again"
        assert "mtu 1300" in command("ip", "link", "show", node.link)
    assert node.reconciler.once()
    assert node.fine()
    assert not any(node.reconciler.errors.all().values())


@pytest.mark.parametrize("mode", MODES)
def test_what_changes_while_a_round_looks_is_for_the_next_one(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, mode)
    node.looked()
    real, changed = pod_port_repair.repair, threading.Event()

    def sync(
        nl: Netlink, host: HostKernel, attachments: AttachmentStore, modes: Modes
    ) -> pod_port_repair.Repaired:
        done = real(nl, host, attachments, modes)
        if not changed.is_set():
            changed.set()
            change_mtu(node)
            node.reconciler.drifted()
        return done

    monkeypatch.setattr("agent.node.pod_port_repair.repair", sync)
    node.reconciler.drifted()
    assert changed.wait(10)
    eventually(node.fine)


@pytest.mark.parametrize("mode", MODES)
def test_a_pod_that_a_call_is_at_work_on_is_left_alone(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, mode)
    node.close()
    leave_down(node)
    (attachment,) = node.attachments.all()
    with node.attachments.locks.hold(attachment.key):
        assert pod_port_repair.repair(netlink.host(), node.kernel, node.attachments, BUILT_IN).pods == 0
    assert pod_port_repair.repair(netlink.host(), node.kernel, node.attachments, BUILT_IN).pods == 1
    leave_down(node)
    read = agent.objects.pod_port_setup.read

    def read_and_delete(nl: Netlink, host: HostKernel) -> PortsInKernel:
        seen = read(nl, host)
        node.delete(node.pod)
        return seen

    monkeypatch.setattr("agent.objects.pod_port_setup.read", read_and_delete)
    done = pod_port_repair.repair(netlink.host(), node.kernel, node.attachments, BUILT_IN)
    assert (done.pods, done.problems) == (0, [])
    assert node.address not in command("ip", "route") + command("ip", "neigh")
    assert not node.maps() or not vxlan_maps.pods(node.maps())
