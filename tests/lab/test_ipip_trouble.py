"""The mode ipip in the lab: who may die and come and go, how long it takes, and what must not be lost."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.lab import underlay
from tests.lab.lab import IPIP_CONF, Lab, LabNode, Pod, lab
from tests.lab.space import PATIENCE, REPO, start_time
from tests.lab.state import difference, net_state
from tests.lab.talk import RATE, TARGET, Flow, Servers, ask
from tests.netns.birds import needs_bird
from tests.support import eventually, seconds_until
from tests.timing import in_time

pytestmark = needs_bird

SOON = 3.0 * PATIENCE  # seconds until all nodes know what one of them has; in a guest they share a slow processor


@pytest.fixture
def pods() -> Iterator[tuple[Lab, list[Pod]]]:
    """Four nodes with a pod each."""
    with lab(4, conf=IPIP_CONF) as it:
        it.wait_converged()
        yield it, it.each(lambda node: node.add_pod(f"pod{node.number}"))


@contextmanager
def flowing(*pairs: tuple[Pod, Pod], settle: float = 1.0) -> Iterator[None]:
    """Datagrams to and fro between pods, one each ms where there is time for it, of which none may be lost."""
    with Servers() as servers:
        for pod in {id(target): target for _, target in pairs}.values():
            servers.start(pod)
        flows = [Flow(source, target.address) for source, target in pairs]
        yield
        time.sleep(settle)
        told = {f"{s.name} to {t.name}": flow.end() for (s, t), flow in zip(pairs, flows, strict=True)}
        print(f"datagrams sent and lost: {told}")
        assert all(sent > RATE / 2 for sent, _ in told.values())
        assert [lost for _, lost in told.values()] == [0] * len(pairs)


def pings(source: Pod | LabNode, address: str) -> bool:
    argv = ("ping", "-c1", "-W0.2", "-q", address)
    where = source.space if isinstance(source, LabNode) else source
    return where.exec(*argv, check=False).returncode == 0


def bird_of(node: LabNode) -> int:
    """The pid of its BIRD, 0 when there is none."""
    told = node.ask()["bgp"]
    return int(told["pid"]) if told else 0


def established(it: Lab) -> bool:
    wanted = {"Established": len(it.nodes) - 1}
    return all((node.ask()["bgp"] or {}).get("sessionsByState") == wanted for node in it.nodes)


def test_bird_and_agent_are_killed_under_traffic(pods: tuple[Lab, list[Pod]]) -> None:
    it, (a, b, c, _) = pods
    one, two = it.nodes[:2]
    eventually(lambda: established(it))
    with flowing((a, b), (b, a), (b, c), settle=2):
        pid = bird_of(one)
        os.kill(pid, signal.SIGKILL)
        took = seconds_until(lambda: bird_of(one) not in (0, pid) and established(it))
        print(f"BIRD was killed: all sessions are back in {took:.2f} s")
        pid = bird_of(two)
        two.stop_agent(signal.SIGKILL)
        two.start_agent()
        two.wait_ready()
        eventually(lambda: bird_of(two) == pid, 5)
        two.stop_agent()
        os.kill(pid, signal.SIGKILL)
        two.start_agent()
        two.wait_ready()
        took = seconds_until(lambda: established(it))
        print(f"agent and BIRD were killed: all sessions are back in {took:.2f} s")
    assert [node.problems() for node in it.nodes] == [[]] * 4


def reached(pods: Sequence[Pod], address: str) -> float:
    """Seconds until all pods reach an address."""
    began = time.monotonic()
    for pod in pods:
        eventually(lambda pod=pod: pings(pod, address))
    return time.monotonic() - began


@pytest.mark.alone
def test_a_node_leaves_and_joins_under_traffic(pods: tuple[Lab, list[Pod]]) -> None:
    it, (a, b, c, d) = pods
    four = it.nodes[3]

    def turn(_number: int) -> bool:
        with flowing((a, b), (b, c), (c, a)):
            it.delete_node(four)
            left = seconds_until(lambda: not any(four.block in node.bird_routes() for node in it.nodes[:3]))
            eventually(lambda: any("has no Node object" in one for one in four.problems()))
            assert bird_of(four), "all that is in the kernel for its pods stays, should its Node come back"
            it.put_node(four)
            joined = reached((a, b, c), d.address)
        print(f"a node has left in {left:.2f} s, and is reached by all {joined:.2f} s after its Node object came")
        return max(left, joined) <= SOON

    in_time(turn)


@pytest.mark.alone
def test_a_node_is_readdressed_under_traffic(pods: tuple[Lab, list[Pod]]) -> None:
    it, (a, b, c, d) = pods

    def turn(number: int) -> bool:
        with flowing((a, b), (b, c), (c, a)):
            it.readdress(it.nodes[3], f"172.18.9.{9 + number}")
            took = reached((a, b, c), d.address)
        print(f"a node with a new address is reached by all pods after {took:.2f} s")
        return took <= SOON

    in_time(turn)


def test_routes_and_filters_that_somebody_deletes_come_back(pods: tuple[Lab, list[Pod]]) -> None:
    it, (a, b, *_) = pods
    one = it.nodes[0]
    one.space.exec("ip", "link", "delete", "testcni-ipip")
    took = seconds_until(lambda: pings(a, b.address) and pings(one, b.address))
    print(f"the device is back in {took:.2f} s")
    one.space.exec("ip", "route", "delete", "10.244.2.0/24", "proto", "bird")
    print(f"a route is back in {seconds_until(lambda: pings(a, b.address)):.2f} s")
    by_ebpf = underlay.take(one)  # none where the kernel has ipip devices
    one.space.exec(
        "ip", "link", "set", "testcni-ipip", "mtu", "1400"
    )  # wakes the agent, which looks at everything
    eventually(lambda: pings(a, b.address))
    eventually(lambda: " mtu 1480 " in one.space.exec("ip", "link", "show", "testcni-ipip").stdout)
    eventually(lambda: underlay.programs(one) == by_ebpf)


def test_uninstall_leaves_nothing() -> None:
    with lab(2, conf=IPIP_CONF, agents=False) as it:
        one = it.nodes[0]
        before = net_state(one)
        it.each(lambda node: node.start_agent())
        it.each(LabNode.wait_ready)
        it.wait_converged()
        pod = one.add_pod("a")
        eventually(lambda: pings(pod, it.nodes[1].address))
        pid = bird_of(one)
        one.delete_pod(pod)
        one.stop_agent()
        assert one.bird_routes()
        argv = (sys.executable, "-m", "agent.uninstall", "--node", "node1", "--datastore", f"dir:{it.datastore}")
        told = one.space.exec(*argv, env={"PYTHONPATH": str(REPO), "PATH": os.environ["PATH"]}).stdout
        assert "removed BIRD, 2 routes of it" in told
        assert start_time(pid) == "", "BIRD runs"
        left = [line for line in difference(before, net_state(one)) if "/var/lib/cni" not in line]
        assert left == []
        assert one.space.exec("tc", "qdisc", "show", "dev", "eth0").stdout.startswith("qdisc noqueue")
        assert "clsact" not in one.space.exec("tc", "qdisc", "show", "dev", "eth0").stdout
        assert underlay.programs(one) == []
        assert "testcni" not in one.space.exec("ls", "/sys/fs/bpf").stdout
        eventually(lambda: one.block not in it.nodes[1].bird_routes(), 5)
        one.start_agent()
        one.wait_ready()
        it.wait_converged()
        with Servers() as servers:
            servers.start(it.nodes[1].add_pod("b"))
            assert ask(one.add_pod("a"), "tcp", "10.244.2.2", TARGET) == "10.244.1.2"
