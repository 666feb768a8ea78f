"""The node path on a real kernel: routes follow, drift is repaired, what is foreign stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.host.cni_conf_dir import Confs
from agent.ipam.assign.add_times import AddTimes
from agent.kernel.netlink_monitor import Monitor
from agent.model.cluster import Node
from agent.model.marks import LINK_PREFIX, NFT_TABLE, ROUTE_PROTOCOL
from agent.runtime.deadline import Deadline
from tests.netns.node import CONF, Host, Pod, command
from tests.netns.route_monitor import told_of_routes
from tests.networks import parse_conf
from tests.support import eventually, ip, net
from tests.timing import in_time

NETWORK = parse_conf(CONF).network


def ready(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.confs.publish(Confs(frozenset({NETWORK})))
    host.ready()
    return host


def ours() -> list[str]:
    return sorted(
        line.strip() for line in command("ip", "route", "show", "proto", str(ROUTE_PROTOCOL)).splitlines()
    )


def peer(name: str, address: str, block: str) -> Node:
    return Node(name, (ip(address),), (net(block),))


def test_routes_follow_nodes(tmp_path: Path) -> None:
    host = ready(tmp_path)
    assert ours() == []
    host.put(peer("two", "192.0.2.2", "10.244.2.0/24"), peer("three", "192.0.2.3", "10.244.3.0/24"))
    eventually(lambda: ours() == ["10.244.2.0/24 via 192.0.2.2 dev eth0", "10.244.3.0/24 via 192.0.2.3 dev eth0"])
    host.put(peer("two", "192.0.2.22", "10.244.2.0/24"))
    eventually(lambda: "10.244.2.0/24 via 192.0.2.22 dev eth0" in ours())
    host.put(peer("two", "192.0.2.22", "10.244.9.0/24"))
    eventually(lambda: ours()[-1] == "10.244.9.0/24 via 192.0.2.22 dev eth0" and len(ours()) == 2)
    host.drop("two")
    eventually(lambda: ours() == ["10.244.3.0/24 via 192.0.2.3 dev eth0"])


def test_a_route_changes_without_a_moment_without_it(tmp_path: Path) -> None:
    host = ready(tmp_path)
    host.put(peer("two", "192.0.2.2", "10.244.2.0/24"))
    eventually(ours)
    with told_of_routes() as heard:
        host.put(peer("two", "192.0.2.22", "10.244.2.0/24"))
        eventually(lambda: any("10.244.2.0/24 via 192.0.2.22" in line for line in heard))
        command("ip", "route", "add", "198.51.100.2", "via", "192.0.2.9")
        eventually(lambda: any("198.51.100.2 " in line for line in heard))
    assert not any("Deleted" in line for line in heard)


def test_who_is_told_to_stop_begins_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, rounds = ready(tmp_path), list[float]()
    host.idle()

    def once() -> bool:
        rounds.append(time.monotonic())
        return True

    monkeypatch.setattr(host.reconciler, "once", once)
    host.close()
    assert rounds == []


def test_foreign_routes_stay(tmp_path: Path) -> None:
    command("ip", "link", "set", "lo", "up")
    host = ready(tmp_path)
    command("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.9")
    command("ip", "route", "add", "10.244.2.0/24", "via", "192.0.2.9")
    host.put(peer("two", "192.0.2.2", "10.244.2.0/24"))
    where = eventually(
        lambda: [p for p in host.reconciler.status.get().problems if "another program's route" in p.what]
    )
    assert "10.244.2.0/24" in where[0].where
    status = host.reconciler.status.get()
    assert (status.routes, status.programmed) == (1, 0)
    assert host.reconciler.errors.all()["routes",]
    host.drop("two")
    eventually(lambda: not host.reconciler.status.get().problems)
    routes = command("ip", "route")
    assert "198.51.100.0/24 via 192.0.2.9" in routes
    assert "10.244.2.0/24 via 192.0.2.9" in routes


@pytest.mark.alone
def test_what_is_deleted_by_hand_is_back_within_two_seconds(tmp_path: Path) -> None:
    host = ready(tmp_path)
    host.put(peer("two", "192.0.2.2", "10.244.2.0/24"))
    eventually(ours)

    def watch(monitor: Monitor) -> None:
        while True:
            if monitor.changed():
                host.reconciler.drifted()

    for monitor in (Monitor.of_nft(NFT_TABLE), Monitor.of_routes(ROUTE_PROTOCOL, LINK_PREFIX)):
        threading.Thread(target=watch, args=(monitor,), daemon=True).start()

    def repaired(shows: Callable[[], bool], *changes: str) -> None:
        def turn(_number: int) -> bool:
            for change in changes:
                command(*change.split())
            began = time.monotonic()
            eventually(shows)
            return time.monotonic() - began < 2

        in_time(turn)

    def route() -> bool:
        return ours() == ["10.244.2.0/24 via 192.0.2.2 dev eth0"]

    def ruleset() -> str:
        return command("nft", "list", "ruleset")

    repaired(route, "ip route del 10.244.2.0/24")
    # takes its routes away without a word about them
    repaired(route, "ip link set eth0 down", "ip link set eth0 up")
    repaired(lambda: "masquerade" in ruleset(), "nft flush ruleset")
    element = "nft add element inet testcni cluster4 {203.0.113.0/24}"
    repaired(lambda: "203.0.113.0" not in ruleset(), element)
    address = ("ip", "address", "show", "dev", "testcni0")
    repaired(lambda: "10.244.1.1/24" in command(*address), "ip address flush dev testcni0")
    repaired(lambda: "testcni0" in command("ip", "link"), "ip link del testcni0")
    eventually(lambda: not host.reconciler.status.get().problems)


def test_each_repair_is_counted(tmp_path: Path) -> None:
    host = ready(tmp_path)
    host.put(peer("two", "192.0.2.2", "10.244.2.0/24"))
    eventually(ours)
    host.close()  # a change in the middle of a round makes it fail, and the next one does not count its repair
    for change in (
        "ip route del 10.244.2.0/24",
        "nft flush ruleset",
        "nft add element inet testcni cluster4 {203.0.113.0/24}",
        "ip address flush dev testcni0",
        "ip link del testcni0",
    ):
        command(*change.split())
        host.reconciler.drifted()
        assert host.reconciler.once()
    counted = host.reconciler.drift.repaired.all()
    assert (counted["routes",], counted["nft",], counted["bridges",]) == (1, 2, 2)
    assert not any(host.reconciler.errors.all().values())


@pytest.mark.parametrize("step", ["complete", "want"])
def test_an_unexpected_error_of_any_step_is_a_problem_until_a_round_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before the round and within it: the last known state of the node stays, and says that not all is well."""
    host = ready(tmp_path)
    host.close()
    before = host.reconciler.status.get()
    assert before.synced
    assert not before.problems
    with monkeypatch.context() as patch:
        patch.setattr(host.block_controller, step, lambda *_: 1 / 0)
        assert host.reconciler.round() < 1, "it is retried soon"
        (problem,) = host.reconciler.status.get().problems
        assert "internal error, the node's state stays as it was: ZeroDivisionError" in str(problem)
        assert host.reconciler.status.get().blocks == before.blocks
    host.reconciler.round()
    assert not host.reconciler.status.get().problems


def test_a_quiet_node_counts_no_drift(tmp_path: Path) -> None:
    host = ready(tmp_path)
    for number in range(2, 6):
        host.put(peer(f"n{number}", f"192.0.2.{number}", f"10.244.{number}.0/24"))
        eventually(lambda number=number: len(ours()) == number - 1)
    host.put(peer("n2", "192.0.2.22", "10.244.2.0/24"))
    pod = Pod("c1")
    host.add(pod)
    host.delete(pod)
    host.drop("n3")
    eventually(lambda: len(ours()) == 3)
    host.looked()
    assert not any(host.reconciler.drift.repaired.all().values())
    assert not any(host.reconciler.errors.all().values())
    status = host.reconciler.status.get()
    assert (status.routes, status.programmed) == (3, 3)


def test_a_peer_that_is_not_on_link_is_reported_not_guessed(tmp_path: Path) -> None:
    host = ready(tmp_path)
    host.put(peer("far", "198.51.100.7", "10.244.7.0/24"))
    told = eventually(lambda: [str(p) for p in host.reconciler.status.get().problems])
    assert "198.51.100.7 is not on-link" in told[0]
    assert ours() == []


def test_all_goes_when_the_conf_goes_and_the_last_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, pod = Host(tmp_path, times=AddTimes(demand=0.2)), Pod("c1")
    before = {k: v for k, v in host.state().items() if k in ("links", "addresses", "routes", "nft")}
    host.confs.publish(Confs(frozenset({NETWORK})))
    host.put(peer("two", "192.0.2.2", "10.244.2.0/24"))
    host.add(pod)
    host.confs.publish(Confs())
    eventually(lambda: not host.demand.get())
    host.looked()
    assert pod.reaches("10.244.1.1"), "a network with pods stays"
    host.delete(pod)
    host.reconciler.drifted()
    eventually(lambda: {k: v for k, v in host.state().items() if k in before} == before)


@pytest.mark.alone
def test_three_thousand_peers_within_two_seconds(tmp_path: Path) -> None:
    host = Host(tmp_path)
    command("ip", "address", "add", "172.16.0.1/12", "dev", "eth0")
    host.confs.publish(Confs(frozenset({NETWORK})))
    host.ready()
    peers = [
        peer(f"n{n}", f"172.17.{n // 250}.{n % 250 + 1}", f"10.{100 + n // 250}.{n % 250}.0/24")
        for n in range(3000)
    ]
    wide = parse_conf({**CONF, "subnet": "10.0.0.0/8"}).network
    host.confs.publish(Confs(frozenset({wide})))

    def took(number: int, change: Callable[[], None]) -> float:
        began = time.monotonic()
        change()
        assert host.reconciler.status.wait(lambda status: status.programmed == number, Deadline.after(20))
        assert len(ours()) == number
        return time.monotonic() - began

    def turn(_number: int) -> bool:
        seconds = took(3000, lambda: host.put(*peers))
        print(f"3000 peers in {seconds:.2f} s")
        took(0, lambda: host.drop(*(one.name for one in peers)))
        return seconds < 2

    in_time(turn)


def test_an_old_block_with_pods_keeps_its_gateway(tmp_path: Path) -> None:
    host, pod = ready(tmp_path), Pod("c1")
    host.add(pod)
    host.put(Node("one", host.me.addresses, (net("10.244.8.0/24"),)))
    eventually(lambda: host.reconciler.status.get().blocks.get(NETWORK) == (net("10.244.8.0/24"),))
    assert pod.reaches("10.244.1.1")
    later = Pod("c2")
    assert host.add(later)["ips"][0]["address"] == "10.244.8.2/24"
    assert later.reaches("10.244.1.2")
