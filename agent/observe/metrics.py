"""What an agent counts and measures, for Prometheus; docs/reference/metrics.md says what each is good for."""

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
    """Whom to ask when somebody wants to know."""

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
            """Found once for each combination: it is the pod path that waits."""
            known = (verb if verb in VERBS else "other", mode if mode in modes else "unknown", result)
            return calls.labels(*known).observe

        self.timings = Timings(
            call=lambda verb, mode, result, seconds: observer(verb, mode, result)(seconds), round=rounds.observe
        )

    def follow(self, sources: Sources) -> None:
        """Ask these too from now on."""
        self._registry.register(_State(sources))

    def names(self) -> Iterator[str]:
        """The name of every metric, as a query has it."""
        for metric in self._registry.collect():
            yield f"{metric.name}_total" if metric.type == "counter" else metric.name

    def text(self) -> bytes:
        """All metrics in the text format 0.0.4 of Prometheus."""
        return generate_latest(self._registry)


class _State(Collector):
    """Nothing is counted twice: what the agent knows anyway is looked up when it is asked for."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry need not ask us before the agent runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every gauge and counter."""
        sources = self._sources
        report = sources.report()
        status, snapshot = sources.reconciler.status.get(), sources.snapshot_cache.snapshot.get()
        yield gauge("build_info", "1; the version is its label", ["version"], {(__version__,): 1})
        yield from _networks(report["networks"])
        for name, text, value in (
            ("attachments", "Interfaces of pods, those that an ADD is at work on included", report["attachments"]),
            ("nodes", "Node objects", len(snapshot.nodes)),
            ("peers", "Other nodes that have a block of addresses", _peers(snapshot, sources.node)),
            ("routes_desired", "Routes to peers that should be in the kernel", status.routes),
            ("routes_programmed", "Those of them that are", status.programmed),
            ("problems", "Problems that a person must fix; testcnictl status lists them", len(status.problems)),
        ):
            yield gauge(name, text, [], {(): value})
        yield gauge(
            "reservations", "Addresses that stay, of pods of this node", ["state"], _held(snapshot, sources.node)
        )
        try:
            yield gauge("journal_length", "Journaled DELs still to be done", [], {(): sources.journal.waiting()})
        except OSError:
            yield gauge("journal_length", "Journaled DELs; the journal can't be read", [], {})
        yield counter(
            "reconcile_errors", "Rounds in which a kind failed", ["what"], sources.reconciler.errors.all()
        )
        yield counter(
            "drift_repaired",
            "What others changed and was put right",
            ["kind"],
            sources.reconciler.drift.repaired.all(),
        )
        yield counter(
            "watch_restarts", "Watches begun anew", ["kind", "reason"], sources.snapshot_cache.watch_restarts.all()
        )
        yield from sources.of_modes()
        ages: dict[tuple[str, ...], float] = {
            (k,): age for k, age in sources.snapshot_cache.seconds_since_change().items()
        }
        yield gauge("watch_last_event_age_seconds", "Since the datastore last told of a kind", ["kind"], ages)
        yield from _ebpf(report["ebpf"] or {})


def _networks(reported: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """Addresses and blocks; of two confs of one name (one has changed, pods are on both) the larger counts."""
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
    """What the eBPF programs did, by reason."""
    for unit, text in (("packets", "Packets that the eBPF programs saw"), ("bytes", "Their bytes")):
        values: dict[tuple[str, ...], float] = {(reason,): count[unit] for reason, count in counted.items()}
        yield counter(f"ebpf_{unit}", f"{text}, by what became of them", ["reason"], values)


def _held(snapshot: Snapshot, node: str) -> dict[tuple[str, ...], float]:
    """Reservations of this node by what they wait for: their pod's end, their own, another node's word."""
    mine = [held for held in snapshot.reservations.values() if held.node == node]
    used, asked = sum(held.in_use for held in mine), sum(bool(held.asks) for held in mine)
    return {("used",): used, ("asked",): asked, ("kept",): len(mine) - used - asked}


def _peers(snapshot: Snapshot, node: str) -> int:
    owners = {name for name, other in snapshot.nodes.items() if other.blocks}
    owners |= {block.node for block in snapshot.blocks.values() if block.node in snapshot.nodes}
    return len(owners - {node})
