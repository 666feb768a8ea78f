"""`make bench-pods`: how long a pod takes to run, by turns with bridge + host-local on the same cluster."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from tests.bench.table import EXIT_MISSED, Row, show
from tests.e2e.cluster import Cluster, ClusterNode
from tests.e2e.workload import container, pod
from tests.lab import gotools

REFERENCE = "/etc/cni/net.d/00-reference.conflist"  # sorts before ours, so the runtime takes it while it is there
BOUND = 1.1


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def prepare(node: ClusterNode) -> None:
    """The reference plugins on a node."""
    for path in gotools.reference_plugins().iterdir():
        target = node.machine.root / "opt/cni/bin" / path.name
        if not target.exists():
            target.write_bytes(path.read_bytes())
            target.chmod(0o755)


def switch(node: ClusterNode, *, reference: bool) -> None:
    """Let the runtime use the one or the other for new pods."""
    if not reference:
        node.machine.exec("rm", "-f", REFERENCE)
    else:
        plugins = [
            {
                "type": "bridge", "bridge": "ref0", "isGateway": True, "hairpinMode": True,
                "ipam": {"type": "host-local", "subnet": "10.99.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        ]  # fmt: skip
        doc = json.dumps({"cniVersion": "1.0.0", "name": "reference", "plugins": plugins})
        node.machine.exec("tee", REFERENCE, stdin=doc)
    time.sleep(1)  # containerd follows its conf folder by inotify


def start(cluster: Cluster, node: ClusterNode, name: str) -> float:
    """Seconds from a pod's creation, bound to its node, until it runs, as a watch sees it."""
    doc = pod(name, container("sleep", "36000"), nodeName=node.name)
    began = time.perf_counter()
    cluster.apply(doc)
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Running", f"pod/{name}", "--timeout=60s")
    took = time.perf_counter() - began
    cluster.kubectl("delete", "pod", name, "--wait=true")
    return took


def main() -> int:
    """Exit codes: 0 the bound is met, 1 not so, 2 wrong options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pods")
    parser.add_argument("--turns", type=int, default=6, help="turns of each")
    parser.add_argument("--pods", type=int, default=5, help="pods a turn")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    times: dict[bool, list[float]] = {False: [], True: []}
    with Cluster() as cluster:
        cluster.up(1, say=say)
        cluster.apply(cluster.manifests())
        cluster.all_ready()
        (node,) = cluster.nodes
        prepare(node)
        for turn in range(options.turns):
            for reference in (False, True):
                say(f"turn {turn + 1}: {options.pods} pods on {'bridge + host-local' if reference else 'testcni'}")
                switch(node, reference=reference)
                names = [f"pod-{turn}-{int(reference)}-{number}" for number in range(options.pods)]
                times[reference] += [start(cluster, node, name) for name in names]
    ours, theirs = (1e3 * statistics.median(times[reference]) for reference in (False, True))
    rows = [Row("pod, created to running, p50", ours, theirs, "ms", ours / theirs, BOUND)]
    show(rows, options.output)
    return 0 if all(row.met for row in rows) else EXIT_MISSED


if __name__ == "__main__":
    sys.exit(main())
