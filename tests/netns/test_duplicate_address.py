"""ARP probes on the real kernel: no address that somebody answers for, and a segment that drops unknown MACs."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CniError, Code
from agent.ipam.assign import assigner, duplicate_address
from agent.ipam.attachments.attachment import Lease
from agent.kernel import arp
from agent.kernel.link_operations import Reaper
from agent.model.node_view import NodeView
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.parent.mac_filter_check import AGAIN, LONGEST, WELL_FOR, MacFilterCheck
from agent.runtime.deadline import Deadline
from tests.fake_clock import FakeClock
from tests.netns.node import MACVLAN, Host, Pod, command
from tests.support import eventually, ip
from tests.timing import Starved

IPVLAN: dict[str, Any] = {**MACVLAN, "mode": "ipvlan"}
REAPER = Reaper()
OTHER = "192.0.2.254"
MAC = "02:00:00:00:00:99"


def segment(tmp_path: Path, conf: Mapping[str, Any] = MACVLAN, **more: Any) -> tuple[Host, Pod]:
    """A node on a bridge, and another machine of the segment."""
    host, other = Host(tmp_path, conf=conf, **more), Pod("other")
    inside = f"/proc/{os.getpid()}/fd/{other.fd}"
    command("ip", "link", "add", "br0", "type", "bridge", "stp_state", "0")
    command("ip", "link", "add", "port", "type", "veth", "peer", "name", "eth0", "address", MAC, "netns", inside)
    for port in ("wire", "port"):
        command("ip", "link", "set", port, "master", "br0", "up")
    command("ip", "link", "set", "br0", "up")
    other.run("ip", "link", "set", "eth0", "up")
    other.run("ip", "address", "add", f"{OTHER}/24", "dev", "eth0")
    return host, other


@contextmanager
def sending(frame: bytes) -> Iterator[None]:
    """A machine of the segment that sends this frame again and again."""
    stop, begun = threading.Event(), threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("br0", 0))
            while not stop.wait(0.005):
                sock.send(frame)
                begun.set()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert begun.wait(10)
        yield
    finally:
        stop.set()
        thread.join()


def test_who_has_an_address(tmp_path: Path) -> None:
    _, other = segment(tmp_path)
    assert arp.who_has(REAPER, "eth0", ip(OTHER)) == MAC
    assert arp.who_has(REAPER, "eth0", ip(OTHER), mac="0a:58:c0:00:02:01") == MAC
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert arp.who_has(REAPER, "eth0", ip("192.0.2.77")) is None
        took.append(time.monotonic() - began)
    assert arp.ANSWER_WITHIN * 0.9 < min(took) < arp.ANSWER_WITHIN * 4
    assert other.json("neigh") == [], "a probe tells nobody that the asker has an address"


def test_an_answer_counts_though_the_machine_was_too_busy_to_look_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(tmp_path)
    monkeypatch.setattr(arp, "time", Starved(2 * arp.ANSWER_WITHIN))
    assert arp.who_has(REAPER, "eth0", ip(OTHER)) == MAC
    assert arp.who_has(REAPER, "eth0", ip("192.0.2.77")) is None


def test_frames_with_a_vlan_tag_are_another_devices(tmp_path: Path) -> None:
    segment(tmp_path)
    with sending(arp.announcement("02:00:00:00:00:01", ip("192.0.2.90"))):
        assert arp.who_has(REAPER, "eth0", ip("192.0.2.90")) == "02:00:00:00:00:01"
    tagged = arp.announcement("02:00:00:00:00:01", ip("192.0.2.90"))
    with sending(tagged[:12] + bytes.fromhex("81000007") + tagged[12:]):
        assert arp.who_has(REAPER, "eth0", ip("192.0.2.90")) is None


def test_who_is_about_to_take_the_address_counts_where_that_is_asked(tmp_path: Path) -> None:
    segment(tmp_path)
    with sending(arp.request(bytes.fromhex("020000000001"), arp.NO_ADDRESS, ip("192.0.2.90").packed)):
        assert arp.who_has(REAPER, "eth0", ip("192.0.2.90"), rivals=True) == "02:00:00:00:00:01"
        assert arp.who_has(REAPER, "eth0", ip("192.0.2.90")) is None


def test_an_interface_that_is_down_is_an_error(tmp_path: Path) -> None:
    segment(tmp_path)
    command("ip", "link", "set", "eth0", "down")
    with pytest.raises(OSError, match="down"):
        arp.who_has(REAPER, "eth0", ip(OTHER))


@pytest.mark.parametrize("conf", [MACVLAN, IPVLAN, {**IPVLAN, "linkMode": "l3s"}], ids=["macvlan", "l2", "l3s"])
def test_an_address_that_somebody_has_is_set_aside_and_told(tmp_path: Path, conf: dict[str, Any]) -> None:
    host, other = segment(tmp_path, conf)
    other.run("ip", "address", "add", "192.0.2.90/24", "dev", "eth0")
    try:
        given = host.add(Pod("c1"))["ips"][0]["address"]
    except CniError as error:
        if "create ipvlan" in str(error):
            pytest.skip("this kernel has no ipvlan")
        raise
    assert given == "192.0.2.91/24"
    assert [a.leases[0].address for a in host.attachments.all()] == [ip("192.0.2.91")]
    told = eventually(lambda: host.reconciler.status.get().problems)
    assert told == (
        Problem(
            "interface eth0",
            f"192.0.2.90 is of this node's block, but {MAC} answers for it",
            "give that machine another address, or name it in `exclude` of the IPPool",
        ),
    )
    assert host.add(Pod("c2"))["ips"][0]["address"] == "192.0.2.92/24"


def test_what_is_set_aside_is_looked_at_again_later(tmp_path: Path) -> None:
    ipam = {"rangeStart": "192.0.2.90", "rangeEnd": "192.0.2.91"}
    host, other = segment(tmp_path, {**MACVLAN, "ipam": ipam}, quarantined_for=0.5)
    other.run("ip", "address", "add", "192.0.2.90/24", "dev", "eth0")
    host.add(Pod("c1"))
    with pytest.raises(
        CniError, match=r"no address is free in 192\.0\.2\.0/24 \(2 in all\), and its range is all"
    ):
        host.add(Pod("c2"))
    other.run("ip", "address", "delete", "192.0.2.90/24", "dev", "eth0")
    two = Pod("c2")
    result = eventually(lambda: host.add(two), ignore=(CniError,))
    assert result["ips"][0]["address"] == "192.0.2.90/24"
    assert host.attachments.problems() == ()


def test_an_address_asked_for_that_somebody_has_is_refused(tmp_path: Path) -> None:
    (host, _), pod = segment(tmp_path), Pod("c1")
    host.ready()
    before = host.state()
    with pytest.raises(CniError, match=f"{OTHER} is in use by {MAC}, which answers for it on eth0") as caught:
        host.add(pod, {**MACVLAN, "ipam": {"rangeStart": "192.0.2.90"}, "runtimeConfig": {"ips": [OTHER]}})
    assert caught.value.code == Code.ADDRESSES
    assert host.state() == before


def test_who_goes_meanwhile_is_waited_for_where_that_is_asked(tmp_path: Path) -> None:
    host, other = segment(tmp_path)
    host.add(Pod("c1"))
    (attachment,) = host.attachments.all()
    wanted = replace(attachment, leases=(Lease(ip(OTHER), attachment.leases[0].block),))
    assert duplicate_address.find(REAPER, wanted) == duplicate_address.DuplicateAddress(ip(OTHER), "eth0", MAC)
    going = threading.Timer(0.3, other.run, ("ip", "address", "delete", f"{OTHER}/24", "dev", "eth0"))
    going.start()
    assert duplicate_address.find(REAPER, wanted, Deadline.after(5)) is None
    going.join()


def test_a_machine_that_answers_for_all_costs_an_add_a_few_addresses(tmp_path: Path) -> None:
    host, other = segment(tmp_path)
    other.run("sh", "-c", "for n in $(seq 90 100); do ip address add 192.0.2.$n/24 dev eth0; done")
    with pytest.raises(CniError, match="were tried one after the other, and none is usable") as caught:
        host.add(Pod("c1"))
    assert caught.value.code == Code.TRY_AGAIN
    assert "ipam.probe" in caught.value.details
    assert host.attachments.all() == ()
    assert len(host.attachments.problems()) == assigner.ATTEMPTS
    trusting = {**MACVLAN, "ipam": {**MACVLAN["ipam"], "probe": False}}
    assert host.add(Pod("c1"), trusting)["ips"][0]["address"] == f"192.0.2.{90 + assigner.ATTEMPTS}/24"


def test_what_a_probe_costs(tmp_path: Path) -> None:
    host, _ = segment(tmp_path)
    trusting = {**MACVLAN, "ipam": {**MACVLAN["ipam"], "probe": False}}

    def took(conf: Mapping[str, Any], name: str) -> float:
        pod, began = Pod(name), time.monotonic()
        host.add(pod, conf)
        seconds = time.monotonic() - began
        host.delete(pod, conf)
        return seconds

    host.add(Pod("first"))
    turns = [(took(MACVLAN, f"a{n}"), took(trusting, f"b{n}")) for n in range(9)]
    with_it, without = map(min, zip(*turns, strict=True))  # a busy machine only adds
    print(f"ADD with a probe {1000 * with_it:.1f} ms, without {1000 * without:.1f} ms")
    assert with_it >= arp.ANSWER_WITHIN
    assert with_it - without < arp.ANSWER_WITHIN + 0.04


class Watched:
    """The segment test of a node, and what it says."""

    def __init__(self, host: Host) -> None:
        host.call("STATUS")
        self.problems = PartProblems("segment")
        self.clock = FakeClock()
        view = NodeView("one", host.snapshot, host.reconciler.status)
        self.test = MacFilterCheck(view, self.problems, REAPER, self.clock)

    def at(self, now: float) -> list[str]:
        self.clock.time = now
        self.test.once()
        return [str(problem) for problem in self.problems.get().values()]


def test_a_segment_that_drops_unknown_macs_is_told_until_it_does_not(tmp_path: Path) -> None:
    host, _ = segment(tmp_path, {**MACVLAN, "ipam": {**MACVLAN["ipam"], "gateway": OTHER}})
    watched = Watched(host)
    assert watched.at(1) == []
    own = command("ip", "-br", "link", "show", "eth0").split()[2]
    command("bridge", "fdb", "replace", own, "dev", "wire", "master", "static")
    command("bridge", "fdb", "delete", "0a:58:c0:00:02:01", "dev", "wire", "master")  # learned a moment ago
    command("bridge", "link", "set", "dev", "wire", "learning", "off", "locked", "on")
    assert not host_reaches(host)
    assert watched.at(2) == [], "it is well for a while"
    (told,) = watched.at(2 + WELL_FOR)
    assert told.startswith(
        f"interface eth0: {OTHER} answers its own MAC but not 0a:58:c0:00:02:01: something between"
    )
    assert watched.at(3 + WELL_FOR) == [told]
    command("bridge", "link", "set", "dev", "wire", "learning", "on", "locked", "off")
    assert watched.at(3 + WELL_FOR + AGAIN) == []
    assert host_reaches(host)


def host_reaches(host: Host) -> bool:
    """Return whether a pod of the node reaches the other machine."""
    pod = Pod("reach")
    host.add(pod)
    reached = pod.reaches(OTHER)
    host.delete(pod)
    return reached


def test_where_nobody_answers_nothing_is_said_and_it_is_asked_ever_more_seldom(tmp_path: Path) -> None:
    host, _ = segment(tmp_path, {**MACVLAN, "ipam": {**MACVLAN["ipam"], "gateway": "192.0.2.253"}})
    watched, now, asked = Watched(host), 0.0, []
    for _ in range(12):
        assert watched.at(now) == []
        asked.append(watched.test._due["eth0"].pause)
        now = watched.test._due["eth0"].at
    assert asked == sorted(asked)
    assert asked[-1] == LONGEST


def test_only_parents_of_macvlan_are_tested(tmp_path: Path) -> None:
    host, _ = segment(tmp_path, {**IPVLAN, "ipam": {**MACVLAN["ipam"], "gateway": OTHER}})
    assert Watched(host).at(1) == []
    host.close()


def test_a_parent_that_goes_takes_its_problem_along(tmp_path: Path) -> None:
    host, _ = segment(tmp_path)
    watched = Watched(host)
    watched.problems.publish({"eth9": Problem("interface eth9", "x", "y")})
    assert watched.at(1) == []
