"""The mode ipip with hundreds of nodes in full mesh: what is rendered, what it weighs, and a node that joins.

One machine does the work of all nodes. A few have a whole agent; on the others BIRD is told, by the same plan and
the same renderer, what their agents would tell it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from agent.model.cluster import Node, Snapshot
from agent.modes.base import ModeContext
from agent.modes.ipip.bird.control import Control, ControlError
from agent.modes.ipip.bird.daemon import Files
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.bird.render import render
from agent.modes.ipip.bird.types import BirdConfig, State
from agent.modes.registry import BUILT_IN
from agent.objects.state import LocalAddress, Underlay
from tests.lab.agents import StartedAgent
from tests.lab.lab import IPIP_CONF, Lab, LabNode, lab
from tests.lab.segment import PREFIX
from tests.lab.talk import TARGET, Servers, ask
from tests.netns.birds import needs_bird
from tests.networks import network_of
from tests.support import eventually

pytestmark = [needs_bird, pytest.mark.scale, pytest.mark.timeout(600)]

AGENTS = 4
RENDERED = 0.050  # seconds
NUMBERS = 60, 200
JOINED = 3.0  # seconds until all know a new node
NEWCOMERS = 3  # the others join when the machine was busy with something else while the first did
TOLD_AT_ONCE = 60  # nodes; with more, it counts from when this process has told the last BIRD without an agent
NETWORK = network_of("testcni", mode="ipip", subnet=ipaddress.ip_network("10.244.0.0/16"))


def introduce(nodes: Sequence[LabNode]) -> None:
    """Neighbours for good: the kernel has room for 1024 others (gc_thresh3), in all namespaces together."""
    macs = {
        node.name: json.loads(node.space.exec("ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
        for node in nodes
    }
    for node in nodes:
        others = (other for other in nodes if other is not node)
        node.space.batch([f"neigh add {o.address} lladdr {macs[o.name]} dev eth0 nud permanent" for o in others])


def object_of(node: LabNode) -> Node:
    return Node(node.name, (ipaddress.ip_address(node.address),), (ipaddress.ip_network(node.block),))


def snapshot_of(nodes: Iterable[LabNode]) -> Snapshot:
    return Snapshot(synced=True, nodes={node.name: object_of(node) for node in nodes})


def plan(node: LabNode, snapshot: Snapshot) -> BirdConfig:
    """Return what the agent of this node would have BIRD do."""
    local = LocalAddress("eth0", 1500, ipaddress.ip_interface(f"{node.address}/{PREFIX}"))
    blocks = (ipaddress.ip_network(node.block),)
    desired = BUILT_IN["ipip"].desired(
        ModeContext(
            snapshot, node.name, (local,), NETWORK, blocks, underlay=Underlay(False), routed=BUILT_IN.routed
        )
    )
    bird = desired.section(BirdPlan)
    assert bird
    assert desired.problems == frozenset()
    return bird.config


class Bird:
    """BIRD on a node without an agent."""

    def __init__(self, node: LabNode) -> None:
        self.node = node
        self.files = Files(node.path("/run/testcni/bird"))

    def begin(self, snapshot: Snapshot) -> None:
        self.files.folder.mkdir(parents=True)
        self.node.space.batch([f"address add {self.node.block.replace('.0/24', '.1/32')} dev lo"])
        self._write(snapshot)
        inside = Path("/run/testcni/bird")
        self.node.space.exec("bird", "-c", f"{inside}/bird.conf", "-s", f"{inside}/bird.ctl")

    def tell(self, snapshot: Snapshot) -> None:
        self._write(snapshot)
        with Control(self.files.socket, change=True) as connection:
            connection.configure()

    def _write(self, snapshot: Snapshot) -> None:
        self.files.conf.write_text(render(plan(self.node, snapshot)))


def established(node: LabNode, peers: int) -> bool:
    try:
        with Control(node.path("/run/testcni/bird/bird.ctl")) as connection:
            found = connection.protocols()
    except ControlError:  # an agent has not started it yet
        return False
    return sum(protocol.bgp is State.ESTABLISHED for protocol in found) == peers


def complete(node: LabNode, others: Sequence[LabNode]) -> bool:
    return node.bird_routes().keys() == {other.block for other in others if other is not node}


def memory(pid: int) -> float:
    """MiB that a process holds."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024


def busy() -> float:
    """Seconds that all processors of this machine together have been at work (proc_stat(5))."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (
        Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def rendering(nodes: Sequence[LabNode]) -> list[float]:
    """Seconds of this thread for each node's configuration."""
    snapshot = snapshot_of(nodes)
    configs = [plan(node, snapshot) for node in nodes]
    taken = []
    for config in configs:
        began = time.thread_time()
        text = render(config)
        taken.append(time.thread_time() - began)
        assert text.count("protocol bgp") == len(nodes) - 1
    return taken


def joining(it: Lab, nodes: Sequence[LabNode], birds: Mapping[str, Bird], newcomer: LabNode) -> float:
    """Seconds from a node's object until the kernels of all others have its block."""
    began, worked = time.monotonic(), busy()
    it.put_node(newcomer)
    snapshot = snapshot_of([*nodes, newcomer])
    it.each(lambda node: birds[node.name].tell(snapshot), [node for node in nodes if node.name in birds])
    telling = time.monotonic() - began
    print(f"all nodes without an agent were told of the new one in {telling:.2f} s")
    it.each(lambda node: eventually(lambda: newcomer.block in node.bird_routes(), 60), nodes)
    joined = time.monotonic() - began
    print(f"the block of a new node is in all kernels {joined:.2f} s after its Node object")
    print(f"which took {1e3 * (busy() - worked) / (len(nodes) + 1):.0f} ms of a processor for each node")
    return joined - (telling if len(nodes) > TOLD_AT_ONCE else 0)


@pytest.mark.parametrize("number", NUMBERS)
def test_nodes_in_full_mesh(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LabNode, "AGENT", StartedAgent)  # its memory is measured
    with lab(number + NEWCOMERS, conf=IPIP_CONF, agents=False) as it, Servers() as servers:
        nodes, newcomers = it.nodes[:number], it.nodes[number:]
        for newcomer in newcomers:
            it.delete_node(newcomer)
        introduce(it.nodes)
        took = rendering(nodes)
        print(f"rendered in {1e3 * statistics.median(took):.1f} ms, the slowest in {1e3 * max(took):.1f} ms")
        assert max(took) <= RENDERED
        whole, birds = nodes[:AGENTS], {node.name: Bird(node) for node in nodes[AGENTS:]}
        snapshot = snapshot_of(nodes)
        it.each(lambda node: node.start_agent(), [*whole, *newcomers])
        it.each(LabNode.wait_ready, whole)
        began = time.monotonic()
        it.each(lambda node: birds[node.name].begin(snapshot), nodes[AGENTS:])
        # seldom: to look costs BIRD as much as to work
        it.each(lambda node: eventually(lambda: established(node, number - 1), 400, 3), nodes)
        print(f"{number * (number - 1) // 2} sessions established in {time.monotonic() - began:.0f} s")
        it.each(lambda node: eventually(lambda: complete(node, nodes), 60, 1), nodes)
        print(f"{number * (number - 1)} routes in all kernels in {time.monotonic() - began:.0f} s")
        told = [(memory(node.agent_pid), memory(node.ask()["bgp"]["pid"])) for node in whole]
        for (agent, bird), node in zip(told, whole, strict=True):
            print(f"{node.name}: agent {agent:.1f} MiB, BIRD {bird:.1f} MiB")
        pods = it.each(lambda node: node.add_pod("a"), whole)

        for newcomer in newcomers:
            joined = joining(it, nodes, birds, newcomer)
            nodes = [*nodes, newcomer]
            if joined <= JOINED:
                break
        servers.start(newcomer.add_pod("b"))
        address = newcomer.pods["b"].address
        assert [ask(pod, "tcp", address, TARGET) for pod in pods] == [pod.address for pod in pods]
        it.each(lambda node: eventually(lambda: complete(node, nodes), 60, 1), nodes)
        assert [node.problems() for node in (*whole, newcomer)] == [[]] * (AGENTS + 1)
        assert joined <= JOINED
