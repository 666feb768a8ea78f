"""CHECK sees every difference, GC takes what nobody owns, STATUS is true only when an ADD would succeed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CniError, Code
from agent.model.cluster import Node, Snapshot
from tests.netns.node import CONF, SEED, Host, Pod, command
from tests.support import eventually, ip


def added(tmp_path: Path) -> tuple[Host, Pod, dict[str, Any]]:
    host, pod = Host(tmp_path), Pod("c1")
    return host, pod, {**CONF, "prevResult": host.add(pod)}


def test_check_of_a_sound_pod(tmp_path: Path) -> None:
    host, pod, conf = added(tmp_path)
    assert host.call("CHECK", pod, conf) == {}


def _host_link(host: Host) -> str:
    return host.attachments.all()[0].link


IN_THE_POD = [
    ("ip link set eth0 down", "eth0 in the pod is down"),
    ("ip link del eth0", "host link .* is missing"),
    ("ip link set eth0 down && ip link set eth0 name x", "eth0 in the pod is missing"),
    ("ip link set eth0 address 02:00:00:00:00:09", "has MAC"),
    ("ip address flush dev eth0", r"lacks address 10\.244\.1\.2/24"),
    ("ip route del default", r"lacks route 0\.0\.0\.0/0"),
]
ON_THE_NODE = [
    ("down", "host link .* is down"),
    ("nomaster", "no port of bridge"),
]


@pytest.mark.parametrize(("script", "message"), IN_THE_POD)
def test_check_sees_a_change_in_the_pod(tmp_path: Path, script: str, message: str) -> None:
    host, pod, conf = added(tmp_path)
    pod.run("sh", "-c", script)
    with pytest.raises(CniError, match=message) as caught:
        host.call("CHECK", pod, conf)
    assert caught.value.code == Code.CHECK_FAILED


@pytest.mark.parametrize(("change", "message"), ON_THE_NODE)
def test_check_sees_a_change_on_the_node(tmp_path: Path, change: str, message: str) -> None:
    host, pod, conf = added(tmp_path)
    command("ip", "link", "set", _host_link(host), change)
    with pytest.raises(CniError, match=message) as caught:
        host.call("CHECK", pod, conf)
    assert caught.value.code == Code.CHECK_FAILED


def test_check_sees_a_peer_that_is_another_link(tmp_path: Path) -> None:
    host, pod, conf = added(tmp_path)
    mac = pod.json("link", "show", "eth0")[0]["address"]
    pod.run("ip", "link", "set", "eth0", "name", "old")
    pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    for args in (("set", "eth0", "address", mac, "up"), ("set", "other", "up"), ("set", "old", "up")):
        pod.run("ip", "link", *args)
    with pytest.raises(CniError, match="not the other end"):
        host.call("CHECK", pod, conf)


def test_check_compares_with_prev_result(tmp_path: Path) -> None:
    host, pod, conf = added(tmp_path)
    other = json.loads(json.dumps(conf))
    other["prevResult"]["ips"][0]["address"] = "10.244.1.9/24"
    with pytest.raises(CniError, match=r"prevResult lacks address 10\.244\.1\.2/24"):
        host.call("CHECK", pod, other)
    with pytest.raises(CniError, match="prevResult"):
        host.call("CHECK", pod, CONF)
    with pytest.raises(CniError, match="no eth0 of container unknown"):
        host.call("CHECK", Pod("unknown"), conf)


def test_verbs_exist_only_in_the_versions_that_have_them(tmp_path: Path) -> None:
    host, pod, _conf = added(tmp_path)
    for verb, since in (("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")):
        with pytest.raises(CniError, match=f"{verb} does not exist in CNI 0.3.0") as caught:
            host.call(verb, pod, SEED)
        assert caught.value.code == Code.INCOMPATIBLE_VERSION
        assert since in caught.value.details
    with pytest.raises(CniError, match=r"'9\.9\.9' is not supported"):
        host.add(pod, {**CONF, "cniVersion": "9.9.9"})


def test_gc_takes_what_is_not_listed(tmp_path: Path) -> None:
    host, keep, drop = Host(tmp_path), Pod("keep"), Pod("drop")
    host.add(keep)
    before = host.state()
    host.add(drop)
    host.call("GC", conf={**CONF, "cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]})
    assert host.state() == before
    assert keep.reaches("10.244.1.1")


def test_gc_without_a_list_of_what_is_valid_removes_nothing(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    assert host.call("GC") == {}
    assert pod.reaches("10.244.1.1")


def test_gc_leaves_other_networks_alone(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    host.call("GC", conf={**CONF, "name": "other", "cni.dev/valid-attachments": []})
    assert pod.reaches("10.244.1.1")


def test_gc_takes_links_of_which_no_file_knows(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(Pod("other"))
    before = host.state()
    host.add(pod)
    attachment = host.attachments.get("c1", "eth0")
    assert attachment
    host.attachments.remove(attachment)  # as if the run-dir had been lost
    command("ip", "link", "add", "tcnistranger", "type", "veth", "peer", "name", "p")
    valid = [{"containerID": "other", "ifname": "eth0"}]
    host.call("GC", conf={**CONF, "cni.dev/valid-attachments": valid})
    command("ip", "link", "del", "tcnistranger")  # no mark of ours: it was left alone
    assert host.state() == before


def test_status_when_all_is_well(tmp_path: Path) -> None:
    assert Host(tmp_path).call("STATUS") == {}


def test_status_before_the_first_complete_list(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.snapshot.publish(Snapshot())
    with pytest.raises(CniError, match="not been read completely yet") as caught:
        host.call("STATUS")
    assert caught.value.code == Code.NOT_AVAILABLE


def test_status_when_the_bridges_name_is_taken(tmp_path: Path) -> None:
    host = Host(tmp_path)
    command("ip", "link", "add", "testcni0", "type", "veth", "peer", "name", "p")
    with pytest.raises(CniError, match="a veth of that name exists and is not testcni's") as caught:
        host.call("STATUS")
    assert caught.value.code == Code.NOT_AVAILABLE
    command("ip", "link", "del", "testcni0")
    host.reconciler.drifted()
    assert host.call("STATUS") == {}


def test_an_add_waits_for_the_node_to_get_ready(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.snapshot.publish(Snapshot())
    late = threading.Timer(0.3, lambda: host.snapshot.publish(Snapshot(synced=True, nodes={"one": host.me})))
    late.start()
    host.add(pod)
    assert pod.reaches("10.244.1.1")


def test_an_add_repairs_a_bridge_that_was_deleted(tmp_path: Path) -> None:
    host, one, two = Host(tmp_path), Pod("c1"), Pod("c2")
    host.add(one)
    command("ip", "link", "del", "testcni0")
    host.reconciler.drifted()
    host.add(two)
    eventually(lambda: two.reaches("10.244.1.1"))  # the bridge is there before its address


def test_a_node_object_with_another_address_is_reported(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.put(Node("one", (ip("192.0.2.77"),), host.me.blocks))
    host.ready()
    problems = [str(problem) for problem in host.reconciler.status.get().problems]
    assert any("192.0.2.77 is on no interface here" in problem for problem in problems), problems
