"""macvlan on one node of the real kernel: what a pod gets, on which parents, what CHECK sees, what stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CniError, Code
from agent.host.cni_conf_dir import Confs
from agent.kernel import ip_links, netlink
from agent.model.cluster import IPBlock, IPPool
from tests.netns.node import MACVLAN, Host, Pod, command
from tests.networks import parse_conf
from tests.support import eventually, net


def added(tmp_path: Path, **more: Any) -> tuple[Host, Pod, dict[str, Any]]:
    host, pod = Host(tmp_path, conf={**MACVLAN, **more}), Pod("c1")
    return host, pod, host.add(pod)


def test_a_pod_is_a_machine_on_the_nodes_subnet(tmp_path: Path) -> None:
    _, pod, _ = added(tmp_path)
    link = next(link for link in pod.json("-d", "link") if link["ifname"] == "eth0")
    assert link["linkinfo"]["info_kind"] == "macvlan"
    assert link["linkinfo"]["info_data"]["mode"] == "bridge"
    assert link["address"] == "0a:58:c0:00:02:5a"


def test_the_parents_router_or_the_netconfs(tmp_path: Path) -> None:
    host = Host(tmp_path, conf=MACVLAN)
    command("ip", "route", "add", "default", "via", "192.0.2.254")
    one, two = Pod("c1"), Pod("c2")
    host.reconciler.drifted()
    given = {**MACVLAN, "name": "given", "ipam": {**MACVLAN["ipam"], "gateway": "192.0.2.253"}}
    assert host.add(one)["ips"][0]["gateway"] == "192.0.2.254"
    assert host.add(two, given)["ips"][0]["gateway"] == "192.0.2.253"
    assert [r["gateway"] for r in one.json("route", "show", "default")] == ["192.0.2.254"]
    assert [r["gateway"] for r in two.json("route", "show", "default")] == ["192.0.2.253"]


def test_nobody_gets_an_address_that_another_has(tmp_path: Path) -> None:
    ipam = {"rangeStart": "192.0.2.0", "rangeEnd": "192.0.2.4", "gateway": "192.0.2.3"}
    host = Host(tmp_path, conf={**MACVLAN, "ipam": ipam})
    given = [host.add(Pod(f"c{n}"))["ips"][0]["address"] for n in range(2)]
    assert given == ["192.0.2.2/24", "192.0.2.4/24"]
    with pytest.raises(CniError, match="no address is free") as error:
        host.add(Pod("c3"))
    assert error.value.code == Code.ADDRESSES


def test_blocks_that_are_claimed_are_used_whole(tmp_path: Path) -> None:
    conf = {key: value for key, value in MACVLAN.items() if key != "ipam"}
    host = Host(tmp_path, blocks=(), conf=conf)
    pool = IPPool("lan", net("192.0.2.64/27"), 30)
    host.put(pool, IPBlock(net("192.0.2.64/30"), "one", "lan"))
    given = [host.add(Pod(f"c{n}"))["ips"][0]["address"] for n in range(4)]
    assert given == [f"192.0.2.{n}/24" for n in range(64, 68)]


def test_a_block_that_the_pool_excludes_by_now_makes_room_for_another(tmp_path: Path) -> None:
    conf = {key: value for key, value in MACVLAN.items() if key != "ipam"}
    host = Host(tmp_path, blocks=(), conf=conf)
    pool = IPPool("lan", net("192.0.2.64/27"), 30, exclude=(net("192.0.2.64/29"),))
    host.put(pool, IPBlock(net("192.0.2.64/30"), "one", "lan"))
    host.demand.listen(lambda: asked(host))
    assert host.add(Pod("c1"))["ips"][0]["address"] == "192.0.2.72/24"


def asked(host: Host) -> None:
    """Claim a second block as soon as an ADD asks for it; there is no datastore here."""
    if any(want.blocks == {4: 2} for want in host.demand.get().values()):
        host.put(IPBlock(net("192.0.2.72/30"), "one", "lan"))


PARENTS = {
    "vlan": ["ip link add link wire0 name eth0 type vlan id 7"],
    "bridge": ["ip link add eth0 type bridge", "ip link set wire0 master eth0"],
    "bond": [
        "ip link add eth0 type bond mode active-backup",
        "ip link set wire0 down",
        "ip link set wire0 master eth0",
    ],
}


@pytest.mark.parametrize("kind", PARENTS)
def test_any_kind_of_parent(tmp_path: Path, kind: str) -> None:
    command("ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
    for line in ("ip link set wire1 up", "ip link set wire0 mtu 1400 up", *PARENTS[kind]):
        try:
            command(*line.split())
        except Exception:  # noqa: BLE001 - whatever it says, the kernel lacks it
            pytest.skip(f"this kernel can't: {line}")
    command("ip", "link", "set", "eth0", "mtu", "1400", "up")
    command("ip", "link", "set", "wire0", "up")
    command("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
    _, pod, result = added(tmp_path)
    assert result["interfaces"][-1]["mtu"] == 1400
    assert pod.reaches("192.0.2.1")


def test_a_master_without_addresses(tmp_path: Path) -> None:
    host = Host(tmp_path, conf={**MACVLAN, "master": "lan0", "subnet": "198.51.100.0/24", "ipam": {
        "rangeStart": "198.51.100.10", "gateway": "198.51.100.1",
    }})  # fmt: skip
    pod = Pod("c1")
    with pytest.raises(CniError, match="interface lan0: is not there"):
        host.call("STATUS")
    command("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    command("ip", "link", "set", "lan0", "up")
    host.reconciler.drifted()
    assert host.add(pod)["ips"] == [{"address": "198.51.100.10/24", "gateway": "198.51.100.1", "interface": 1}]
    assert pod.reaches("192.0.2.1")


@pytest.mark.parametrize("mode", ["private", "vepa"])
def test_modes_of_macvlan(tmp_path: Path, mode: str) -> None:
    _, pod, _ = added(tmp_path, linkMode=mode)
    assert pod.json("-d", "link", "show", "eth0")[0]["linkinfo"]["info_data"]["mode"] == mode
    assert pod.reaches("192.0.2.1")


def test_passthru_gives_one_pod_the_parent_and_its_mac(tmp_path: Path) -> None:
    command("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    command("ip", "link", "set", "lan0", "up")
    host, pod, result = added(tmp_path, linkMode="passthru", master="lan0")
    parent = next(link for link in ip_links.links(netlink.host()) if link.name == "lan0")
    assert result["interfaces"][-1]["mac"] == parent.mac
    before = host.state()
    with pytest.raises(CniError, match="create macvlan"):
        host.add(Pod("c2"))
    assert host.state() == before
    assert pod.reaches("192.0.2.1")
    host.delete(pod)
    assert parent == next(link for link in ip_links.links(netlink.host()) if link.name == "lan0")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"subnet": "203.0.113.0/24", "ipam": {"rangeStart": "203.0.113.5"}}, "is not that of eth0"),
        ({"linkMode": "passthru", "master": "eth0"}, "passthru would cut off"),
    ],
)
def test_what_can_not_work_is_told(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    host = Host(tmp_path, conf={**MACVLAN, **more})
    with pytest.raises(CniError, match=message):
        host.call("STATUS")


def test_an_example_that_was_not_edited_is_told_as_that(tmp_path: Path) -> None:
    """Without a block, as no IPPool is there yet: that none gives addresses is not what has to be fixed."""
    host = Host(tmp_path, conf={**MACVLAN, "subnet": "192.168.64.0/24", "ipam": {}})
    told = host.reconciler.status
    host.put(replace(host.me, blocks=()))
    network = parse_conf(dict(host.conf)).network
    host.confs.publish(Confs(frozenset({network}), chosen={"testcni": network}))
    eventually(lambda: "is not that of eth0" in str(told.get().problems))
    host.looked()
    host.block_controller.once()
    assert host.block_controller.problems.get() == {}
    (problem,) = told.get().problems
    assert problem.what == (
        "subnet 192.168.64.0/24 is not that of eth0 (192.0.2.1/24), nor of any interface of this node"
    )
    assert "manifests/overlays/macvlan: conflist.yaml" in problem.remedy
    good = parse_conf({**host.conf, "subnet": "192.0.2.0/24"}).network
    host.confs.publish(Confs(frozenset({good}), chosen={"testcni": good}))
    eventually(lambda: "is not that of" not in str(told.get().problems))
    host.block_controller.once()
    assert "neither podCIDR nor IPPool" in str(host.block_controller.problems.get()), "now that is what is missing"


def test_with_passthru_a_mac_can_not_be_asked_for(tmp_path: Path) -> None:
    command("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    command("ip", "link", "set", "lan0", "up")
    host = Host(tmp_path, conf={**MACVLAN, "linkMode": "passthru", "master": "lan0"})
    host.ready()
    before = host.state()
    with pytest.raises(CniError, match="mac: '02:00:00:00:00:07' is not allowed") as error:
        host.add(Pod("c1"), {**host.conf, "runtimeConfig": {"mac": "02:00:00:00:00:07"}})
    assert error.value.code == Code.INVALID_CONFIG
    assert host.state() == before


def test_a_mac_of_ones_own(tmp_path: Path) -> None:
    _, pod, result = added(tmp_path, runtimeConfig={"mac": "02:00:00:00:00:07"})
    assert result["interfaces"][-1]["mac"] == "02:00:00:00:00:07"
    assert pod.reaches("192.0.2.1")


def test_an_interface_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    host, pod = Host(tmp_path, conf=MACVLAN), Pod("c1")
    host.add(pod)
    before = host.state()
    again = Pod("c2")
    with pytest.raises(CniError, match="File exists"):
        host.add(again, netns=pod.path, netns_fd=pod.fd)
    assert host.state() == before
    assert pod.reaches("192.0.2.1")


def test_a_link_without_an_attachment_takes_its_slave_along(tmp_path: Path) -> None:
    host, pod, _ = added(tmp_path)
    for path in (tmp_path / "attachments").iterdir():
        path.unlink()
    host.attachments._all.clear()
    host.call("GC", None, {**MACVLAN, "cni.dev/valid-attachments": []})
    assert [link["ifname"] for link in pod.json("link")] == ["lo"]
