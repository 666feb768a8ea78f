"""`make bench`: what an ADD, a DEL, a burst and a peer cost, side by side with bridge + host-local in one run."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from agent.model.marks import ROUTE_PROTOCOL
from tests.bench.table import EXIT_MISSED, Row, show
from tests.lab import gotools
from tests.lab.lab import SEED_CONF, Lab, LabNode, lab
from tests.lab.space import REPO

NAMES = 100
WIDTH = 10
PEERS = 3000


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def calls(node: LabNode, rounds: int, bursts: int) -> list[Row]:
    """ADD, DEL and bursts of ours and of the reference plugins."""
    for path in gotools.reference_plugins().iterdir():
        node.path(f"/opt/cni/bin/{path.name}").write_bytes(path.read_bytes())
        node.path(f"/opt/cni/bin/{path.name}").chmod(0o755)
    reference = {
        "cniVersion": "0.3.1",
        "name": "reference",
        "type": "bridge",
        "bridge": "ref0",
        "isGateway": True,
        "ipMasq": False,  # iptables would cost it another 45 ms; ours is in place before the pod
        "hairpinMode": True,
        "ipam": {"type": "host-local", "subnet": "10.99.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]},
    }
    names = [f"bench{number}" for number in range(NAMES)]
    node.space.batch([f"netns add {name}" for name in names])
    job = {
        "rounds": rounds,
        "bursts": bursts,
        "width": WIDTH,
        "names": names,
        "contenders": {
            "ours": {"path": "/opt/cni/bin/testcni", "conf": json.loads(SEED_CONF)},
            "theirs": {"path": "/opt/cni/bin/bridge", "conf": reference},
        },
    }
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = node.space.exec(
        sys.executable, "-m", "tests.bench.worker", stdin=json.dumps(job), env=env, timeout=1200
    )
    times: dict[str, Any] = json.loads(done.stdout)
    rows = []
    for verb, bound in (("ADD", 1 / 3), ("DEL", 1 / 5)):
        mine, other = (1e3 * statistics.median(times["pairs"][who][verb]) for who in ("ours", "theirs"))
        rows.append(Row(f"{verb}, p50", mine, other, "ms", mine / other, bound))
    mine, other = (NAMES / statistics.median(times["bursts"][who]) for who in ("ours", "theirs"))
    rows.append(Row(f"{NAMES} ADDs, {WIDTH} at a time", mine, other, "pods/s", other / mine, 1 / 2))
    return rows


def memory(node: LabNode) -> Row:
    """The agent's resident memory."""
    status = Path(f"/proc/{node.agent_pid}/status").read_text()
    mib = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return Row("agent's memory", mib, None, "MiB", mib / 64, 1)


def peers(it: Lab, node: LabNode) -> Row:
    """From a file with many Nodes to their routes in the kernel."""
    conf = node.path("/etc/cni/net.d/10-testcni.conf")
    conf.write_text(SEED_CONF.replace("10.244.0.0/16", "10.0.0.0/8"))
    docs = []
    for number in range(PEERS):
        a, b = divmod(number, 250)
        address = {"type": "InternalIP", "address": f"172.18.{100 + a}.{b + 1}"}
        docs.append({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": f"peer{number}"},
            "spec": {"podCIDR": f"10.{a}.{b}.0/24"}, "status": {"addresses": [address]},
        })  # fmt: skip
    hidden = it.datastore / ".peers"
    hidden.write_text("---\n".join(json.dumps(doc) + "\n" for doc in docs))
    began = time.perf_counter()
    hidden.rename(it.datastore / "peers.yaml")
    while node.space.exec("ip", "route", "show", "proto", str(ROUTE_PROTOCOL)).stdout.count("\n") < PEERS:
        time.sleep(0.01)
    took = time.perf_counter() - began
    return Row(f"{PEERS} peers, file to routes", took, None, "s", took / 2, 1)


def main() -> int:
    """Exit codes: 0 all bounds met, 1 not so, 2 wrong options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=200, help="ADD and DEL pairs of each")
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    with lab(1, agents=False) as it:
        node = it.nodes[0]
        node.block = "10.244.0.0/16"  # as many addresses as host-local has: no ADD waits for one to cool
        it.put_node(node)
        node.start_agent()
        node.wait_ready()
        rows = [memory(node)]
        say(f"{options.rounds} pairs and {options.bursts} bursts of each, by turns")
        rows = [*calls(node, options.rounds, options.bursts), *rows]
        say(f"{PEERS} peers")
        rows.append(peers(it, node))
    show(rows, options.output)
    return 0 if all(row.met for row in rows) else EXIT_MISSED


if __name__ == "__main__":
    sys.exit(main())
