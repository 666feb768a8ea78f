"""`make conformance`: upstream's [sig-network] Conformance cases on a cluster of this machine, in one mode."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.conformance import build, results
from tests.e2e import images, programs
from tests.e2e.cluster import DEFAULT, ON_THE_SUBNET, Cluster, eventually
from tests.lab.gotools import NoGoError
from tests.lab.space import REPO

NODES = 2
BESIDE = 5  # cases mostly wait
WITHIN = 1200.0  # seconds
DNS = "k8s-app=kube-dns"
EXIT_FAULTS, EXIT_NO_BUILD = 1, 3


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def prepare(cluster: Cluster) -> None:
    """A cluster as upstream's cases expect one: nodes that are Ready, their image, and DNS."""
    cluster.up(NODES, say=say)
    cluster.install()
    archive, names = str(build.archive(say)), build.names()
    cluster.each(lambda node: node.load(archive, build.IMAGE, names))
    cluster.all_ready()
    eventually(lambda: not any(node["spec"].get("taints") for node in cluster.get("nodes")), 60)
    cluster.apply(Path(__file__).with_name("dns.yaml"))
    cluster.running(DNS, 1, 60, "kube-system")
    # The API server is no node, and proxies to pods.
    for node, block in ((node, _block(cluster, node.name)) for node in cluster.nodes):
        if block:
            cluster.space.exec("ip", "route", "add", block, "via", node.address)


def _block(cluster: Cluster, name: str) -> str:
    """A node's podCIDR; empty where pods are on the nodes' subnet, which the API server is on as well."""
    (node,) = (node for node in cluster.get("nodes") if node["metadata"]["name"] == name)
    return "" if cluster.mode in ON_THE_SUBNET else str(node["spec"]["podCIDR"])


def run(cluster: Cluster, report: Path, log: Path) -> int:
    """Upstream's runner, in the control plane's network; its exit code."""
    suite, kubeconfig = build.suite(say), cluster.control.kubeconfig()
    focus = r"\[sig-network\].*\[Conformance\]"
    argv = [
        "nsenter", f"--net={cluster.space.netns}", str(suite / build.GINKGO), f"--procs={BESIDE}", "--no-color",
        f"--timeout={WITHIN:.0f}s", f"--focus={focus}", str(suite / build.SUITE), "--",
        f"--kubeconfig={kubeconfig}", "--provider=skeleton", f"--kubectl-path={programs.build('kubectl')}/kubectl",
        f"--report-dir={report}", f"--e2e-output-dir={report}",
    ]  # fmt: skip
    with log.open("wb") as words:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=words, stderr=words, check=False, timeout=WITHIN + 120
        ).returncode


def main() -> int:
    """Exit codes: 0 all of upstream's cases passed, 1 not so, 2 wrong options, 3 there is nothing to run."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--mode", default=DEFAULT)
    parser.add_argument("--proxy", default="iptables", help="kube-proxy's mode")
    options = parser.parse_args()
    folder = REPO / f"build/conformance-{options.mode}"
    folder.mkdir(parents=True, exist_ok=True)
    report, log = folder / "junit_01.xml", folder / "ginkgo.log"
    report.unlink(missing_ok=True)
    try:
        build.archive(say)
        images.archives()
    except (NoGoError, images.ImageError) as error:
        say(f"the Conformance cases can't run: {error}")
        return EXIT_NO_BUILD
    with Cluster(options.mode, options.proxy) as cluster:
        prepare(cluster)
        began = time.monotonic()
        code = run(cluster, folder, log)
        took = time.monotonic() - began
    return _say_results(report, log, code, f"{options.mode}, kube-proxy {options.proxy}, {took:.0f} s")


def _say_results(report: Path, log: Path, code: int, title: str) -> int:
    cases = results.read(report) if report.exists() else []
    print(f"[sig-network] Conformance of Kubernetes {programs.VERSION} ({title}): {results.table(cases)}")
    faults = results.faults(cases, results.expected(build.suite() / build.CASES))
    if code and not faults:
        faults = [f"upstream's runner ended with {code}"]
    for fault in faults:
        print(fault)
    if not cases:
        print(log.read_text(errors="replace")[-results.WORDS :])
    results.write(cases, report.parent.with_suffix(".xml"))
    return EXIT_FAULTS if faults else 0


if __name__ == "__main__":
    sys.exit(main())
