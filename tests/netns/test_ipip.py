"""The mode ipip on one node of the real kernel: what a pod gets, what CHECK sees, what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import CniError
from agent.host.cni_conf_dir import Confs
from agent.kernel import ip_links, netlink, tc, tcx
from agent.kernel.bpf.loader import BPFFS, Loader
from agent.model.cluster import Node
from agent.model.marks import BPF_PINS
from agent.modes.ipip import device as ipip_device
from agent.modes.ipip import maps as ipip_maps
from tests.netns.node import IPIP, OBJECTS, Host, Pod, command
from tests.networks import parse_conf
from tests.support import eventually, ip, net

DEVICE = "testcni-ipip"
DEFAULT = "default via 192.0.2.254"


@pytest.fixture(autouse=True, params=["tcx", "clsact"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which programs are attached."""
    way: str = request.param
    if way == "tcx" and not tcx.known():
        pytest.skip("this kernel has no TCX (Linux 6.6)")
    monkeypatch.setattr(tcx, "known", lambda: way == "tcx")
    return way


def eth0() -> int:
    with netlink.Netlink() as nl:
        link = ip_links.link(nl, "eth0")
    assert link
    return link.index


def added(tmp_path: Path) -> tuple[Host, Pod]:
    host, pod = Host(tmp_path, conf=IPIP, encapsulates="ebpf"), Pod("c1")
    host.add(pod)
    return host, pod


def filters() -> list[str]:
    """The filters at the underlay's device."""
    shown = "".join(command("tc", "filter", "show", "dev", "eth0", hook) for hook in ("ingress", "egress"))
    return [name for name in ("ipip_ingress", "ipip_egress") if f" {name} " in shown]


def attached(by: str) -> list[str]:
    """The programs at the underlay's device, which has them in no other way."""
    by_tcx = [name for hook, name in ipip_device.PROGRAMS.items() if tcx.attached(eth0(), hook, name)]
    if by == "clsact":
        assert by_tcx == []
        return filters()
    assert "clsact" not in command("tc", "qdisc", "show", "dev", "eth0")
    return by_tcx


def test_a_pod_has_one_neighbour_and_the_underlay_the_programs(tmp_path: Path, by: str) -> None:
    host, pod = Host(tmp_path, conf=IPIP, encapsulates="ebpf"), Pod("c1")
    result = host.add(pod)
    (neighbour,) = pod.json("neigh")
    assert (neighbour["dst"], neighbour["lladdr"]) == ("169.254.1.1", result["interfaces"][0]["mac"])
    assert attached(by) == ["ipip_ingress", "ipip_egress"]


def test_the_node_answers_for_the_gateway(tmp_path: Path) -> None:
    _, pod = added(tmp_path)
    command("ip", "route", "add", *DEFAULT.split())
    pod.run("ip", "neigh", "delete", "169.254.1.1", "dev", "eth0")
    eventually(lambda: pod.reaches("192.0.2.1"))  # proxy_delay: up to 0.8 s


def test_maps_follow_the_nodes(tmp_path: Path) -> None:
    host, _ = added(tmp_path)
    maps = host.maps(ipip_maps.FAMILY)
    assert maps
    host.put(Node("two", (ip("192.0.2.2"),), (net("10.244.2.0/24"),)))
    eventually(lambda: len(maps["ipip_blocks"].items()) == len(maps["ipip_nodes"].items()) == 2)
    host.put(Node("two", (ip("192.0.2.3"),), (net("10.244.2.0/24"),)))
    eventually(lambda: ip("192.0.2.3").packed in maps["ipip_nodes"].items())
    host.drop("two")
    eventually(lambda: len(maps["ipip_blocks"].items()) == len(maps["ipip_nodes"].items()) == 1)
    assert ipip_maps.counters(maps)["drop_failed"].packets == 0


def test_what_others_take_away_comes_back(tmp_path: Path, by: str) -> None:
    host, _ = added(tmp_path)
    if by == "tcx":
        assert tcx.detach(eth0(), ipip_device.PROGRAMS)
    else:
        command("tc", "qdisc", "delete", "dev", "eth0", "clsact")
    assert attached(by) == []
    host.reconciler.drifted()
    eventually(lambda: len(attached(by)) == 2)
    command("ip", "link", "delete", DEVICE)
    host.reconciler.drifted()
    eventually(lambda: "10.244.1.1/32" in command("ip", "-br", "address"))


def test_a_device_of_somebody_else_is_told_and_left_alone(tmp_path: Path) -> None:
    command("ip", "link", "add", DEVICE, "type", "bridge")
    command("ip", "link", "set", DEVICE, "alias", "mine")
    host, pod = Host(tmp_path, conf=IPIP, encapsulates="ebpf"), Pod("c1")
    with pytest.raises(CniError):
        host.add(pod)
    assert "exists and is not testcni's" in "".join(map(str, host.reconciler.status.get().problems))
    assert "mine" in command("ip", "link", "show", DEVICE)


def test_programs_and_device_go_with_the_network_but_no_filter_of_others(tmp_path: Path, by: str) -> None:
    host, pod = added(tmp_path)
    (pin,) = BPF_PINS.glob("v1/ipip-*/ipip_egress")
    if by == "tcx":
        command("tc", "qdisc", "add", "dev", "eth0", "clsact")
    command("tc", "filter", "add", "dev", "eth0", "egress", "prio", "7", "bpf", "da", "object-pinned", str(pin))
    host.delete(pod)
    host.demand.publish({})
    host.confs.publish(Confs())
    eventually(lambda: DEVICE not in command("ip", "link"))
    assert filters() == ["ipip_egress"]
    assert "pref 84" not in command("tc", "filter", "show", "dev", "eth0", "egress")
    if by == "tcx":
        command("tc", "qdisc", "delete", "dev", "eth0", "clsact")
    else:
        command("tc", "filter", "delete", "dev", "eth0", "egress", "prio", "7")
    host.add(pod)
    assert len(attached(by)) == 2
    host.delete(pod)
    host.demand.publish({})
    eventually(lambda: DEVICE not in command("ip", "link"))
    assert attached(by) == []
    assert "clsact" not in command("tc", "qdisc", "show", "dev", "eth0")


def test_a_filter_of_another_program_in_the_place_of_ours_stays_and_is_reported(tmp_path: Path, by: str) -> None:
    host = Host(tmp_path, conf=IPIP, encapsulates="ebpf")
    host.put(Node("two", (ip("192.0.2.2"),), (net("10.244.2.0/24"),)))
    command("tc", "qdisc", "add", "dev", "eth0", "clsact")
    place = ("dev", "eth0", "egress", "prio", "84", "handle", "1")
    command("tc", "filter", "add", *place, "bpf", "bytecode", "1,6 0 0 0")
    host.confs.publish(Confs(frozenset({parse_conf(IPIP).network})))
    if by == "tcx":
        eventually(lambda: tcx.attached(eth0(), "egress", "ipip_egress"))
    else:
        eventually(
            lambda: any("without a name of another" in str(p) for p in host.reconciler.status.get().problems)
        )
    assert "bytecode" in command("tc", "filter", "show", "dev", "eth0", "egress")
    command("tc", "filter", "delete", *place, "bpf")
    eventually(lambda: not host.reconciler.status.get().problems)


def test_programs_of_another_version_are_replaced_in_their_place(tmp_path: Path, by: str) -> None:
    host, _ = added(tmp_path)
    host.close()  # it would put its own back
    old = host.kernel.bpf.current(ipip_maps.FAMILY)
    assert old
    newer = Loader(OBJECTS, BPFFS / "newer").load(ipip_maps.FAMILY)
    assert newer.programs["ipip_egress"].id != old.programs["ipip_egress"].id
    with netlink.Netlink() as nl:
        programs = {hook: newer.programs[name] for hook, name in ipip_device.PROGRAMS.items()}
        assert ipip_device._attach(nl, eth0(), programs)
        assert not ipip_device._attach(nl, eth0(), programs)
        assert attached(by) == ["ipip_ingress", "ipip_egress"]
        if by == "tcx":
            assert tcx.detach(eth0(), {"egress": "ipip_egress"})
            assert not tcx.detach(eth0(), {"egress": "ipip_egress"}), "the old one was still there"
        else:
            assert tc.attached(nl, eth0(), "egress") == newer.programs["ipip_egress"].id


def test_programs_that_are_attached_in_both_ways_become_one_and_go(tmp_path: Path, by: str) -> None:
    host, pod = added(tmp_path)
    loaded = host.kernel.bpf.current(ipip_maps.FAMILY)
    assert loaded
    with netlink.Netlink() as nl:
        tc.attach(nl, eth0(), {hook: loaded.programs[name] for hook, name in ipip_device.PROGRAMS.items()})
    assert filters() == ["ipip_ingress", "ipip_egress"]
    host.ipip._underlay = None  # as after a start
    host.reconciler.drifted()
    eventually(lambda: filters() == [] if by == "tcx" else len(filters()) == 2)
    eventually(lambda: by != "tcx" or "clsact" not in command("tc", "qdisc", "show", "dev", "eth0"))
    assert len(attached(by)) == 2
    host.delete(pod)
    host.demand.publish({})
    host.confs.publish(Confs())
    eventually(lambda: DEVICE not in command("ip", "link"))
    assert attached(by) == []
    assert filters() == []


def test_never_needs_no_programs(tmp_path: Path, by: str) -> None:
    host, pod = Host(tmp_path, conf=IPIP, encapsulates="ebpf"), Pod("c1")
    result = host.add(pod, {**IPIP, "encapsulate": "never"})
    assert result["interfaces"][1]["mtu"] == 1500
    assert attached(by) == []
    assert "10.244.1.1" not in command("ip", "address")
