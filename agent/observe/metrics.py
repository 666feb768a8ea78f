"""The metrics of an agent, for Prometheus; docs/reference/metrics.md explains each."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent import __version__
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cni.journal import Journal
from agent.ip import FAMILIES
from agent.model.cluster import Snapshot
from agent.model.node_status import Timings
from agent.modes.registry import Modes
from agent.node.reconciler import Reconciler
from agent.runtime.metric_families import counter, gauge

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds
ROUND_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)  # seconds


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts of the agent whose values are read at a scrape."""

    node: str
    report: Callable[[], Mapping[str, Any]]
    snapshot_cache: SnapshotCache
    reconciler: Reconciler
    journal: Journal
    of_modes: Callable[[], Iterable[Metric]]
    """Metrics that modes add."""


class Metrics:
    """All metrics of an agent, in a registry of their own."""

    def __init__(self, modes: Modes) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # no second series for every histogram
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        calls = Histogram(
            "testcni_cni_request_duration_seconds",
            "Calls of the CNI plugin",
            ("verb", "mode", "result"),
            buckets=CALL_BUCKETS,
            registry=self._registry,
        )
        rounds = Histogram(
            "testcni_reconcile_duration_seconds",
            "Comparisons of all node state with the kernel",
            buckets=ROUND_BUCKETS,
            registry=self._registry,
        )

        @functools.lru_cache(256)
        def observer(verb: str, mode: str, result: str) -> Callable[[float], None]:
            """Return where to add a duration; cached, as the pod path waits for it."""
            known = (verb if verb in VERBS else "other", mode if mode in modes else "unknown", result)
            return calls.labels(*known).observe

        self.timings = Timings(
            call=lambda verb, mode, result, seconds: observer(verb, mode, result)(seconds), round=rounds.observe
        )

    def follow(self, sources: Sources) -> None:
        """Read these sources at each scrape from now on."""
        self._registry.register(_State(sources))

    def names(self) -> Iterator[str]:
        """Yield the name of each metric, as a query has it."""
        for metric in self._registry.collect():
            yield f"{metric.name}_total" if metric.type == "counter" else metric.name

    def text(self) -> bytes:
        """Return all metrics in the text format 0.0.4 of Prometheus."""
        return generate_latest(self._registry)


class _State(Collector):
    """Metrics that are computed at the scrape, from values that the agent has in any case."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect before the agent runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge and counter."""
        sources = self._sources
        report = sources.report()
        status, snapshot = sources.reconciler.status.get(), sources.snapshot_cache.snapshot.get()
        yield gauge("build_info", "1; the version is its label", ["version"], {(__version__,): 1})
        yield from _networks(report["networks"])
        for name, text, value in (
            ("attachments", "Interfaces of pods, including those that an ADD is making", report["attachments"]),
            ("nodes", "Node objects", len(snapshot.nodes)),
            ("peers", "Other nodes that have a block of addresses", _peers(snapshot, sources.node)),
            ("routes_desired", "Routes to peers that should be in the kernel", status.routes),
            ("routes_programmed", "Routes to peers that should be in the kernel, and are", status.programmed),
            ("problems", "Problems that a person must fix; testcnictl status lists them", len(status.problems)),
        ):
            yield gauge(name, text, [], {(): value})
        held = _held(snapshot, sources.node)
        yield gauge("reservations", "Reserved addresses of pods of this node", ["state"], held)
        yield from _of_parts(sources)
        yield from sources.of_modes()
        yield from _ebpf(report["ebpf"] or {})


def _of_parts(sources: Sources) -> Iterator[Metric]:
    """Yield the metrics of the journal, the reconciler and the watches."""
    try:
        yield gauge("journal_length", "Journaled DELs that are not done yet", [], {(): sources.journal.waiting()})
    except OSError:
        yield gauge("journal_length", "Journaled DELs; the journal cannot be read", [], {})
    errors, repaired = sources.reconciler.errors.all(), sources.reconciler.drift.repaired.all()
    yield counter("reconcile_errors", "Rounds of the reconciler in which this kind failed", ["what"], errors)
    yield counter("drift_repaired", "Changes by other programs that were repaired", ["kind"], repaired)
    cache = sources.snapshot_cache
    restarts = cache.watch_restarts.all()
    yield counter("watch_restarts", "Watches that were restarted", ["kind", "reason"], restarts)
    ages: dict[tuple[str, ...], float] = {(kind,): age for kind, age in cache.seconds_since_change().items()}
    text = "Seconds since the last event of this kind from the datastore"
    yield gauge("watch_last_event_age_seconds", text, ["kind"], ages)


def _networks(reported: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield addresses and blocks. If pods are on two versions of a conf, the larger number counts."""
    largest: dict[tuple[str, str, str], Mapping[str, int]] = {}
    blocks: dict[tuple[str, ...], float] = {}
    for entry in reported:
        found = Counter(FAMILIES[ip_network(block).version] for block in entry["blocks"])
        for family, counts in entry["addresses"].items():
            key = (entry["name"], entry["mode"], family)
            largest[key] = max(counts, largest.get(key, {}), key=lambda counts: sum(counts.values()))
            blocks[entry["name"], family] = max(blocks.get((entry["name"], family), 0), found[family])
    addresses: dict[tuple[str, ...], float] = {
        (*key, state): count for key, counts in largest.items() for state, count in counts.items()
    }
    labels = ["network", "mode", "family", "state"]
    yield gauge("addresses", "Addresses in this node's blocks, by IP version", labels, addresses)
    yield gauge("blocks", "Blocks of addresses that this node has", ["network", "family"], blocks)


def _ebpf(counted: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    """Yield what the eBPF programs did with packets, by reason."""
    for unit, text in (
        ("packets", "Packets in the eBPF programs"),
        ("bytes", "Bytes of packets in the eBPF programs"),
    ):
        values: dict[tuple[str, ...], float] = {(reason,): count[unit] for reason, count in counted.items()}
        yield counter(f"ebpf_{unit}", f"{text}, by what happened to them", ["reason"], values)


def _held(snapshot: Snapshot, node: str) -> dict[tuple[str, ...], float]:
    """Return the number of this node's reservations by state: in use, waiting for another node, kept."""
    mine = [held for held in snapshot.reservations.values() if held.node == node]
    used, asked = sum(held.in_use for held in mine), sum(bool(held.asks) for held in mine)
    return {("used",): used, ("asked",): asked, ("kept",): len(mine) - used - asked}


def _peers(snapshot: Snapshot, node: str) -> int:
    owners = {name for name, other in snapshot.nodes.items() if other.blocks}
    owners |= {block.node for block in snapshot.blocks.values() if block.node in snapshot.nodes}
    return len(owners - {node})
