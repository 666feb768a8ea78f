"""Attachment files that an agent cannot use: running pods keep their addresses and their network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CniError, Code
from agent.ipam.allocator import Range
from agent.ipam.attachments.attachment import link_name
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel import ip_links, netlink
from tests.netns.node import CONF, IPIP, MACVLAN, VXLAN, Host, Pod, command
from tests.networks import OPTIONS
from tests.support import eventually, ip, net


def newer(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"format": 2', b'"format": 3'))


def junk(path: Path) -> None:
    path.write_bytes(b"\xff{" * 100)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


MODES = pytest.mark.parametrize(
    "conf", [CONF, VXLAN, IPIP, MACVLAN], ids=lambda conf: str(conf.get("mode", "host-gw"))
)


def restart(host: Host) -> None:
    """The pod path of an agent that starts on what is there."""
    host.attachments = AttachmentStore(host.run_dir, 0, OPTIONS)
    host.attachments.load()
    host.handler = host.new_handler()
    host.handler.recover()


def file_of(host: Host, pod: Pod) -> Path:
    return host.run_dir / "attachments" / f"{link_name(pod.container_id, pod.ifname)}.json"


def address(result: dict[str, Any]) -> str:
    return str(result["ips"][0]["address"]).partition("/")[0]


def refused(host: Host, verb: str, pod: Pod, conf: object = None) -> CniError:
    with pytest.raises(CniError) as caught:
        host.call(verb, pod, conf)
    return caught.value


@MODES
@pytest.mark.parametrize("spoil", [newer, junk, directory, gone], ids=lambda spoil: spoil.__name__)
def test_a_running_pod_keeps_its_address_when_its_file_can_not_be_used(
    tmp_path: Path, conf: dict[str, Any], spoil: Callable[[Path], None]
) -> None:
    host, running, other = Host(tmp_path, conf=conf), Pod("running"), Pod("other")
    result = host.add(running)
    host.add(other)
    before = host.state()["links"]
    path = file_of(host, running)
    spoil(path)
    restart(host)
    assert path.exists() == (spoil is not gone)
    (problem,) = host.attachments.problems()
    assert running.container_id in problem.where or path.stem in problem.where
    for number in range(3):
        pod = Pod(f"new{number}")
        assert address(host.add(pod)) != address(result)
        host.delete(pod)
    assert running.reaches("192.0.2.1")
    error = refused(host, "ADD", running)
    assert (error.code, path.stem in str(error)) == (Code.TRY_AGAIN, True)
    assert running.reaches("192.0.2.1")
    host.delete(running, {**conf, "name": "another"})
    assert host.state()["links"] == before
    host.delete(running)
    assert host.attachments.problems() == ()
    assert len(host.state()["links"]) == len(before) - 1
    assert not path.exists()
    assert host.state()["pods"].keys() <= {ip(address(host.add(other)))}
    assert not host.attachments.busy(net(f"{address(result)}/32"))


@MODES
def test_gc_removes_an_unreadable_attachment_of_its_network_only(tmp_path: Path, conf: dict[str, Any]) -> None:
    host, running = Host(tmp_path, conf=conf), Pod("running")
    host.add(running)
    newer(file_of(host, running))
    restart(host)
    valid = [{"containerID": "running", "ifname": "eth0"}]
    for name, known in (("another", []), ("testcni", valid)):
        host.call("GC", conf={**conf, "name": name, "cni.dev/valid-attachments": known})
        assert running.reaches("192.0.2.1")
    host.call("GC", conf={**conf, "cni.dev/valid-attachments": []})
    assert host.attachments.unreadable() == ()
    assert not file_of(host, running).exists()
    assert ip_links.link(netlink.host(), link_name("running", "eth0")) is None


def test_gc_touches_no_link_that_is_not_a_host_end_of_ours(tmp_path: Path) -> None:
    host, running, lost = Host(tmp_path), Pod("running"), Pod("lost")
    host.add(running)
    host.add(lost)
    newer(file_of(host, lost))
    for name in ("aside0", "tcnither"):
        command("ip", "link", "add", name, "type", "veth", "peer", "name", f"p{name}")
        file_of(host, lost).with_name(f"{name}.json").write_bytes(file_of(host, lost).read_bytes())
    command("ip", "link", "set", "tcnither", "alias", "testcni testcni lost eth0")
    restart(host)
    host.call("GC", conf={**CONF, "cni.dev/valid-attachments": [{"containerID": "running", "ifname": "eth0"}]})
    assert ip_links.link(netlink.host(), link_name("lost", "eth0")) is None, "GC goes on after them"
    assert ip_links.link(netlink.host(), "aside0")
    assert ip_links.link(netlink.host(), "tcnither")
    assert len(host.attachments.problems()) == 2, "a person has to say what these files are"


def test_no_pod_is_added_while_a_pod_may_have_an_address_that_nobody_knows(tmp_path: Path) -> None:
    host, pod, lost = Host(tmp_path), Pod("c1"), link_name("lost", "eth0")
    command("ip", "link", "add", lost, "type", "veth", "peer", "name", "there")
    restart(host)
    assert refused(host, "STATUS", pod).code == Code.NOT_AVAILABLE
    error = refused(host, "ADD", pod)
    assert error.code == Code.TRY_AGAIN
    assert lost in str(error)
    assert "delete its pod" in str(error)
    command("ip", "link", "delete", lost)
    assert address(host.add(pod)) == "10.244.1.2"


@pytest.mark.parametrize("conf", [VXLAN, IPIP, MACVLAN], ids=lambda conf: str(conf["mode"]))
def test_a_running_pod_keeps_its_traffic_while_adds_of_its_address_fail(
    tmp_path: Path, conf: dict[str, Any]
) -> None:
    """Though no file and no memory says that the address is in use."""
    host, running = Host(tmp_path, conf=conf), Pod("running")
    result = host.add(running)
    state = host.state()
    host.attachments = AttachmentStore(tmp_path / "another", 0, OPTIONS)
    host.attachments.load()
    host.handler = host.new_handler()
    for number in range(3):
        refused(host, "ADD", Pod(f"c{number}"), {**conf, "runtimeConfig": {"ips": [address(result)]}})
        assert running.reaches("192.0.2.1")
    after = host.state()
    for what in ("links", "addresses", "routes", "pods"):
        assert after[what] == state[what]
    restart(host)
    assert address(host.add(Pod("c4"))) != address(result)


@MODES
def test_a_running_pod_keeps_its_traffic_while_other_adds_fail(tmp_path: Path, conf: dict[str, Any]) -> None:
    host, running = Host(tmp_path, conf=conf), Pod("running")
    host.add(running)
    state = host.state()
    broken = Pod("broken")
    broken.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x")
    for _ in range(3):
        refused(host, "ADD", broken)
        assert running.reaches("192.0.2.1")
    assert host.state() == state


@pytest.mark.parametrize("told", ["by both lines", "by the first line"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_running_pod_keeps_the_address_that_its_file_does_not_name(
    tmp_path: Path, told: str, checked: bool
) -> None:
    """A file that is valid and lists one of two leases: the other one is nobody else's before the pod is gone."""
    blocks = ("10.244.1.0/29", "fd00:10:244:1::/125")
    host = Host(tmp_path, blocks, conf={**CONF, "subnet": None, "spoofCheck": checked})
    running = Pod("running")
    ipv4, ipv6 = [entry["address"].partition("/")[0] for entry in host.add(running)["ips"]]
    path = file_of(host, running)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    first["leases"] = first["leases"][:1]
    if told == "by both lines":
        second["ips"] = second["ips"][:1]
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    restart(host)
    (problem,) = host.attachments.problems()
    assert ipv6 in problem.what
    for number in range(10):
        pod = Pod(f"new{number}")
        given = [entry["address"].partition("/")[0] for entry in host.add(pod)["ips"]]
        assert not {ipv4, ipv6} & {*given}
        host.delete(pod)
    host.reconciler.drifted()
    eventually(lambda: running.reaches("fd00:10:244:1::1"))
    host.delete(running)
    assert not host.attachments.problems()
    used = [host.attachments.counts(Range(block, int(block[0]), int(block[-1])))[0] for block in map(net, blocks)]
    assert used == [0, 0]


def test_what_a_pod_adds_to_itself_is_not_held_where_its_sources_are_checked(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("running")
    host.add(pod)
    pod.run("ip", "address", "add", "10.244.1.77/24", "dev", "eth0")
    restart(host)
    assert not host.attachments.problems()
