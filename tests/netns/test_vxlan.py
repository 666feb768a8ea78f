"""The mode vxlan on one node of the real kernel: what a pod gets, what CHECK sees, what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import CniError
from agent.ipam.assign.add_times import AddTimes
from agent.kernel import netlink
from agent.model.cluster import Node
from agent.model.marks import ROUTE_PROTOCOL
from agent.modes.vxlan import device as vxlan_device
from agent.modes.vxlan import maps as vxlan_maps
from tests.netns.node import CONF, VXLAN, Host, Pod, command
from tests.support import eventually, ip, net

DEVICE = "testcni-vxlan"


def added(tmp_path: Path) -> tuple[Host, Pod]:
    host, pod = Host(tmp_path, conf=VXLAN), Pod("c1")
    host.add(pod)
    return host, pod


def test_a_pod_has_one_permanent_neighbour(tmp_path: Path) -> None:
    host, pod = Host(tmp_path, conf=VXLAN), Pod("c1")
    result = host.add(pod)
    (neighbour,) = pod.json("neigh")
    assert (neighbour["dst"], neighbour["lladdr"]) == ("169.254.1.1", result["interfaces"][0]["mac"])
    assert neighbour["state"] == ["PERMANENT"]


def test_the_gateway_answers_a_pod_that_forgot_it(tmp_path: Path) -> None:
    _, pod = added(tmp_path)
    pod.run("ip", "neigh", "delete", "169.254.1.1", "dev", "eth0")
    assert pod.reaches("192.0.2.1")


def test_extra_routes_are_by_the_one_neighbour(tmp_path: Path) -> None:
    host, pod = Host(tmp_path, conf=VXLAN), Pod("c1")
    routes = [{"dst": "198.51.100.0/24", "gw": "10.244.1.1"}, {"dst": "192.0.2.0/24"}]
    result = host.add(pod, {**VXLAN, "ipam": {"routes": routes}})
    assert [(r["dst"], r["gw"]) for r in result["routes"]] == [
        ("198.51.100.0/24", "169.254.1.1"),
        ("192.0.2.0/24", "169.254.1.1"),
        ("0.0.0.0/0", "169.254.1.1"),
    ]


def test_check_sees_a_pod_that_the_programs_forgot(tmp_path: Path) -> None:
    host, pod = Host(tmp_path, conf=VXLAN), Pod("c1")
    conf = {**VXLAN, "prevResult": host.add(pod)}
    maps = host.maps()
    assert maps
    vxlan_maps.remove_pod(maps, host.attachments.all()[0].leases[0].address)  # type: ignore[arg-type]
    with pytest.raises(CniError, match=r"the programs don't know 10\.244\.1\.2"):
        host.call("CHECK", pod, conf)


def test_peers_reach_the_maps_and_leave_them(tmp_path: Path) -> None:
    host, _ = added(tmp_path)
    maps = host.maps()
    assert maps
    assert len(maps["blocks"].items()) == 1, "its own"
    for number in range(2, 5):
        host.put(Node(f"n{number}", (ip(f"192.0.2.{number}"),), (net(f"10.244.{number}.0/24"),)))
    eventually(lambda: len(maps["blocks"].items()) == 4 and len(maps["nodes"].items()) == 4)
    host.drop("n2")
    eventually(lambda: len(maps["blocks"].items()) == 3 and len(maps["nodes"].items()) == 3)


def test_another_mode_on_the_same_node(tmp_path: Path) -> None:
    host, one = Host(tmp_path, conf=VXLAN), Pod("c1")
    host.add(one, {**CONF, "name": "bridged"})
    two, three = Pod("c2"), Pod("c3")
    host.add(two)
    host.add(three)
    for pod in (one, two, three):
        assert pod.reaches("192.0.2.1")
    assert two.reaches("10.244.1.4")
    assert [p for p in host.reconciler.status.get().problems if "Node object" not in p.what] == []


def test_all_goes_with_the_last_pod(tmp_path: Path) -> None:
    host, pod = added(tmp_path)
    host.delete(pod)
    host.demand.publish({})
    eventually(lambda: DEVICE not in command("ip", "link"))
    assert command("ip", "route", "show", "proto", str(ROUTE_PROTOCOL)) == ""


def test_a_foreign_device_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, pod = Host(tmp_path, conf=VXLAN, times=AddTimes(prepared=3.0)), Pod("c1")
    command("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "x")
    with pytest.raises(CniError, match=f"device {DEVICE}: a veth of that name exists"):
        host.add(pod)
    command("ip", "link", "delete", DEVICE)
    eventually(lambda: f"device {DEVICE}" not in str(host.reconciler.status.get().problems))
    host.add(pod)


def test_a_device_that_was_left_half_made_is_made_again(tmp_path: Path) -> None:
    host, pod = Host(tmp_path, conf=VXLAN), Pod("c1")
    netlink.host().request(vxlan_device.create(DEVICE, "0e:76:c0:00:02:01", 4789, 1300))
    host.add(pod)
    assert pod.reaches("10.244.1.1")
    assert " mtu 1450 " in command("ip", "link", "show", DEVICE)


def test_objects_that_are_missing_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, pod = Host(tmp_path, conf=VXLAN, objects=tmp_path, times=AddTimes(prepared=3.0)), Pod("c1")
    with pytest.raises(CniError, match=r'build the objects: make ebpf; .*"vxlanBackend": "kernel"'):
        host.add(pod)


KERNEL = {**VXLAN, "vxlanBackend": "kernel"}


def test_the_kernel_alone_needs_no_objects(tmp_path: Path) -> None:
    plain = {**KERNEL, "spoofCheck": False}  # the only eBPF that it would need
    host, pod = Host(tmp_path, conf=plain, objects=tmp_path), Pod("c1")
    conf = {**plain, "prevResult": host.add(pod)}
    assert pod.reaches("192.0.2.1")
    assert host.call("CHECK", pod, conf) == {}


def test_neighbours_and_forwarding_entries_are_those_of_the_peers(tmp_path: Path) -> None:
    host = Host(tmp_path, conf=KERNEL)
    host.add(Pod("c1"))

    def entries() -> list[tuple[str, str]]:
        fdb = [line.split() for line in command("bridge", "fdb", "show", "dev", DEVICE).splitlines()]
        neighbours = [line.split() for line in command("ip", "neigh", "show", "dev", DEVICE).splitlines()]
        assert sorted((n[0], n[2]) for n in neighbours) == sorted((f[2], f[0]) for f in fdb)
        return sorted((f[2], f[0]) for f in fdb)

    for number in (2, 3):
        host.put(Node(f"n{number}", (ip(f"192.0.2.{number}"),), (net(f"10.244.{number}.0/24"),)))
    both = [("192.0.2.2", "0e:76:c0:00:02:02"), ("192.0.2.3", "0e:76:c0:00:02:03")]
    eventually(lambda: len(command("bridge", "fdb", "show", "dev", DEVICE).splitlines()) == 2)
    eventually(
        lambda: len(command("ip", "route", "show", "proto", str(ROUTE_PROTOCOL)).splitlines()) == 4
    )  # and the pod's
    assert entries() == both
    route = command("ip", "-N", "route", "show", "10.244.2.0/24")
    assert route.startswith(f"10.244.2.0/24 via 192.0.2.2 dev {DEVICE} proto {ROUTE_PROTOCOL} onlink")
    command("bridge", "fdb", "add", "0e:76:00:00:00:09", "dev", DEVICE, "dst", "192.0.2.9")
    command("bridge", "fdb", "delete", both[0][1], "dev", DEVICE, "dst", both[0][0])
    host.reconciler.drifted()
    eventually(
        lambda: (
            sorted(f.split()[2] for f in command("bridge", "fdb", "show", "dev", DEVICE).splitlines())
            == [both[0][0], both[1][0]]
        ),
    )
    host.drop("n2")
    eventually(lambda: len(command("bridge", "fdb", "show", "dev", DEVICE).splitlines()) == 1)
    assert entries() == both[1:]
