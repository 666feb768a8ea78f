"""`make bench-rtt`, `make bench-ipip`: what a packet costs, side by side with a bridge and the kernel's own vxlan.

All contenders are in the same lab, and sockperf runs in them by turns, its two ends pinned to one core: a round
trip is then all that the kernel does for two packets, and no wake-up of another core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.table import EXIT_MISSED, Row, show
from tests.lab.lab import IPIP_CONF, SEED_CONF, VXLAN_CONF, Lab, LabNode, lab
from tests.lab.space import REPO
from tests.lab.test_metrics import value

PORT = 11111
BLOCKS = ("10.244.0.0/17", "10.244.128.0/17")  # so large that no ADD waits for an address to cool
FLANNEL_VNI, FLANNEL_PORT = 2, 4789
REFERENCE = "the reference's (a bridge; flannel's way with the kernel's vxlan; host-gw's ADD)"
CONFS = {"vxlan": VXLAN_CONF, "ipip": IPIP_CONF}


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Contender:
    """Two pods, by the command lines that enter them, and what was measured between them."""

    client: list[str]
    server: list[str]
    address: str
    """Of the server."""
    trips: list[float] = field(default_factory=list)
    """Medians of UDP round trips in µs."""
    cpu: list[float] = field(default_factory=list)
    """CPU time in µs for a packet that is received and another sent to the other end's socket."""

    def run(self, seconds: float, core: str) -> None:
        """Measure for some seconds. Raises RuntimeError with sockperf's words."""
        pinned = ["taskset", "-c", core, "sockperf"]
        server = subprocess.Popen(
            [*self.server, *pinned, "server", "-i", self.address, "-p", str(PORT)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            time.sleep(0.3)
            before = _on_cpu(server.pid)
            done = subprocess.run(
                [*self.client, *pinned, "ping-pong", "--full-rtt", "-i", self.address, "-p", str(PORT),
                 "-m", "64", "-t", str(seconds)],
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            used = _on_cpu(server.pid) - before
        finally:
            server.kill()
            server.wait()
        words = done.stdout + done.stderr
        median = re.search(r"percentile 50\.000\s*=\s*([\d.]+)", words)
        total = re.search(r"\[Total Run\].*ReceivedMessages=(\d+)", words)
        if not median or not total:
            raise RuntimeError(f"sockperf to {self.address}: {words.strip()[-500:]}")
        self.trips.append(float(median[1]))
        self.cpu.append(used / 1e3 / int(total[1]))


def _on_cpu(pid: int) -> int:
    """Nanoseconds that a process has run, its kernel work and the interrupts that fell into it included."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def bridged(node: LabNode, bridge: str, subnet: str, mtu: int) -> None:
    """A bridge with the gateway `subnet`.1, as the bridge plugin makes it."""
    node.space.batch([
        f"link add {bridge} mtu {mtu} type bridge",
        f"address add {subnet}.1/24 dev {bridge}",
        f"link set {bridge} up",
    ])  # fmt: skip


def port(node: LabNode, bridge: str, name: str, address: str, mtu: int) -> list[str]:
    """A pod on a bridge, as the bridge plugin makes it; the command line that enters it."""
    gateway = f"{address.rpartition('.')[0]}.1"
    node.space.batch([
        f"netns add {name}",
        f"link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}",
        f"link set {name} master {bridge} up",
    ])  # fmt: skip
    inside = [f"address add {address}/24 dev eth0", "link set eth0 up", f"route add default via {gateway}"]
    node.space.exec("ip", "-n", name, "-batch", "-", stdin="\n".join(inside) + "\n")
    return node.space.argv("nsenter", f"--net=/run/netns/{name}")


def flannel(nodes: Sequence[LabNode]) -> None:
    """A vxlan device on each node with route, neighbour and FDB entry of the other, as flanneld sets them."""
    macs = [f"0e:00:00:00:00:{node.number:02x}" for node in nodes]
    for node, mac in zip(nodes, macs, strict=True):
        tunnel = f"id {FLANNEL_VNI} dstport {FLANNEL_PORT} local {node.address} dev eth0 nolearning"
        node.space.batch([
            f"link add flannel.1 address {mac} mtu 1450 type vxlan {tunnel}",
            f"address add 10.88.{node.number}.0/32 dev flannel.1",
            "link set flannel.1 up",
        ])  # fmt: skip
        bridged(node, "cni0", f"10.88.{node.number}", 1450)
        for peer, peers_mac in zip(nodes, macs, strict=True):
            if peer is not node:
                vtep = f"10.88.{peer.number}.0"
                node.space.batch([
                    f"route add 10.88.{peer.number}.0/24 via {vtep} dev flannel.1 onlink",
                    f"neigh add {vtep} lladdr {peers_mac} dev flannel.1 nud permanent",
                ])  # fmt: skip
                fdb = f"fdb add {peers_mac} dev flannel.1 dst {peer.address} self permanent"
                node.space.exec("bridge", *fdb.split())


def near(node: LabNode) -> dict[str, Contender]:
    """Two pods of one node, ours and on a bridge."""
    a, b = node.add_pod("near0"), node.add_pod("near1")
    bridged(node, "ref0", "10.99.0", 1500)
    client, server = (port(node, "ref0", f"ref{n}", f"10.99.0.{n}", 1500) for n in (2, 3))
    return {
        "near, ours": Contender(a.argv(), b.argv(), b.address),
        "near, theirs": Contender(client, server, "10.99.0.3"),
    }


def far(it: Lab) -> dict[str, Contender]:
    """Two pods of two nodes, ours and by the kernel's vxlan."""
    a, b = (node.add_pod("far") for node in it.nodes)
    flannel(it.nodes)
    here, there = (port(node, "cni0", "fl", f"10.88.{node.number}.2", 1450) for node in it.nodes)
    return {
        "far, ours": Contender(a.argv(), b.argv(), b.address),
        "far, theirs": Contender(here, there, f"10.88.{it.nodes[1].number}.2"),
    }


def check_encapsulated(node: LabNode) -> None:
    """Raises RuntimeError when what was measured went without an outer header."""
    if not value(node, "testcni_ipip_packets_total", fate="sent"):
        raise RuntimeError(f"{node.name} has sent no packet in an outer header")


def adds(node: LabNode, rounds: int) -> Row:
    """ADDs of the mode vxlan and of host-gw by turns."""
    node.space.batch(["netns add bench0"])
    plugin = "/opt/cni/bin/testcni"
    seed = {**json.loads(SEED_CONF), "name": "bridged"}
    job = {
        "rounds": rounds, "bursts": 0, "width": 1, "names": ["bench0"],
        "contenders": {
            "ours": {"path": plugin, "conf": json.loads(VXLAN_CONF)},
            "theirs": {"path": plugin, "conf": seed},
        },
    }  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = node.space.exec(
        sys.executable, "-m", "tests.bench.worker", stdin=json.dumps(job), env=env, timeout=1200
    )
    times = json.loads(done.stdout)["pairs"]
    ours, theirs = (1e3 * statistics.median(times[who]["ADD"]) for who in ("ours", "theirs"))
    return Row("ADD, p50", ours, theirs, "ms", ours / theirs, 1.3)


def rows(found: dict[str, Contender]) -> list[Row]:
    """Return what came of the turns."""
    table = []
    for where, what, bound in (("near", "same node", 0.87), ("far", "other node", 0.90)):
        if f"{where}, ours" not in found:
            continue
        for values, text, limit in (("trips", "round trip, p50", bound), ("cpu", "CPU a packet", 1.0)):
            ours, theirs = (
                statistics.median(getattr(found[f"{where}, {who}"], values)) for who in ("ours", "theirs")
            )
            table.append(Row(f"{what}: {text}", ours, theirs, "µs", ours / theirs, limit))
    return table


def main() -> int:
    """Exit codes: 0 all bounds met, 1 not so, 2 wrong options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rtt")
    parser.add_argument("--mode", choices=CONFS, default="vxlan")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in a turn")
    parser.add_argument("--rounds", type=int, default=200, help="ADDs of each mode")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    core = str(max(os.sched_getaffinity(0)))
    ipip = options.mode == "ipip"
    with lab(2, agents=False, conf=CONFS[options.mode]) as it:
        for node, block in zip(it.nodes, BLOCKS, strict=True):
            node.block = block
            it.put_node(node)
            node.start_agent(*(("--ipip", "ebpf") if ipip else ()))
        it.each(LabNode.wait_ready)
        if ipip:
            it.wait_converged()
        found = far(it) if ipip else {**near(it.nodes[0]), **far(it)}
        for turn in range(options.turns):
            say(f"turn {turn + 1} of {options.turns}")
            for contender in found.values():
                contender.run(options.seconds, core)
        table = rows(found)
        if ipip:
            check_encapsulated(it.nodes[0])
        else:
            say(f"{options.rounds} ADDs of each mode, by turns")
            table.append(adds(it.nodes[0], options.rounds))
    show(table, options.output, REFERENCE)
    return 0 if all(row.met for row in table) else EXIT_MISSED


if __name__ == "__main__":
    sys.exit(main())
