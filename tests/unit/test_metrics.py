"""Metrics: what the parts count comes out whole, parses, and is what docs/reference/metrics.md says."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import agent
from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kinds import KINDS
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import Bookmark, Deleted, Listed, Upserted, WatchRestarted
from agent.cni.handler import CniHandler
from agent.cni.journal import Journal
from agent.cni.protocol import Call
from agent.config import AgentConfig, load
from agent.errors import CniError
from agent.host.cni_conf_dir import Confs
from agent.ip import Subnet
from agent.ipam import blocks
from agent.ipam.assign.add_times import AddTimes
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.block_claims.block_controller import BlockController
from agent.kernel.bpf.loader import Loader
from agent.kernel.bpf.map_entries import Count
from agent.kernel.bpf.syscall import BpfError
from agent.kernel.netns import NetnsLostError
from agent.model.cluster import IPBlock, Node
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.model.problem_board import ProblemBoard
from agent.modes.ipip import metrics as ipip_metrics
from agent.modes.ipip.bird.types import BirdStatus, Session, State
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan import maps as vxlan_maps
from agent.node.apply import ApplyResult, Drift
from agent.node.reconciler import Reconciler
from agent.node.reconciler_inputs import Inputs
from agent.objects import pod_guard
from agent.objects.base import Result
from agent.objects.host_kernel import HostKernel
from agent.objects.state import Bridge, NodeState, Route
from agent.observe.metrics import Metrics, Sources
from agent.observe.status import report
from agent.runtime.counter import LabelledCounter
from agent.runtime.observable import Observable
from tests.lab.space import REPO
from tests.networks import OPTIONS, network_of

PAGE = (REPO / "docs/reference/metrics.md").read_text()
POD_NET = network_of("pods", subnet=ipaddress.ip_network("10.244.0.0/16"))
BLOCK = ipaddress.ip_network("10.244.1.0/24")
Labels = Mapping[str, str]


class Parts:
    """The parts of an agent that metrics ask, not running."""

    def __init__(self, folder: Path) -> None:
        self.conf: AgentConfig = load(
            ["--node", "one", "--datastore", f"dir:{folder}"], {}, BUILT_IN.agent_options
        )
        store = DirectoryStore(folder)
        self.metrics = Metrics(modes=BUILT_IN)
        self.attachments = AttachmentStore(folder, 0, OPTIONS)
        self.snapshot_cache = SnapshotCache(store)
        self.block_controller = BlockController(store, "one", self.snapshot_cache.snapshot)
        board = ProblemBoard()
        self.host = HostKernel(Loader(folder, folder / "pins"))
        inputs = Inputs(
            self.snapshot_cache.snapshot,
            Observable(Confs()),
            Observable({}),
            self.attachments,
            board,
            self.host,
            modes=BUILT_IN,
        )
        self.reconciler = Reconciler("one", inputs, self.block_controller, 30, self.metrics.timings)
        status = self.reconciler.status
        self.handler = CniHandler(
            self.host,
            self.attachments,
            status,
            Observable({}),
            self.metrics.timings,
            modes=BUILT_IN,
            times=AddTimes(status=0),
        )
        self.journal = Journal(folder, self.handler.answer)
        self.journal.prepare()
        self.bird = BirdStatus()
        sources = Sources(
            "one",
            self.report,
            self.snapshot_cache,
            self.reconciler,
            self.journal,
            lambda: ipip_metrics.families(self.bird, lambda: {"sent": 7, "drop_unknown_node": 1}),
        )
        self.metrics.follow(sources)

    def report(self) -> dict[str, Any]:
        snapshot, status = self.snapshot_cache.snapshot.get(), self.reconciler.status.get()
        return report(self.conf, 0, snapshot, status, self.attachments, BUILT_IN, self.host)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample by name and labels; a series that is there twice fails."""
        found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for family in text_string_to_metric_families(self.metrics.text().decode()):
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in found
                found[key] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((f"testcni_{name}", tuple(sorted(labels.items()))))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def test_the_document_names_every_metric_and_no_other(parts: Parts) -> None:
    table = re.findall(r"^\| `(testcni_\w+)` \| (\w+) \|", PAGE, re.MULTILINE)
    assert len(table) == len(dict(table))
    names = list(parts.metrics.names())
    assert sorted(dict(table)) == sorted(name for name in names if name.startswith("testcni_"))
    assert "process_resident_memory_bytes" in names
    types = {f.name: f.type for f in text_string_to_metric_families(parts.metrics.text().decode())}
    for name, kind in table:
        assert types[name.removesuffix("_total")] == kind, name


def test_the_documents_labels_are_the_metrics(parts: Parts) -> None:
    rows = re.findall(r"^\| `testcni_(\w+)` \| \w+ \| ([^|]*)\|", PAGE, re.MULTILINE)
    parts.snapshot_cache.deliver([*(Listed(kind, ()) for kind in KINDS), WatchRestarted("Node", "expired")])
    parts.reconciler.status.publish(NodeStatus(synced=True, blocks={POD_NET: (BLOCK,)}))
    parts.metrics.timings.call("ADD", "host-gw", "ok", 0.1)
    seen: dict[str, set[str]] = {}
    for name, labels in parts.samples():
        base = re.sub(r"_(bucket|sum|count)$", "", name).removeprefix("testcni_")
        seen.setdefault(base, set()).update(key for key, _value in labels if key != "le")
    for name, cell in rows:
        assert set(re.findall(r"`(\w+)", cell)) == seen[name], name


def test_the_page_has_every_kind_of_node_state(parts: Parts) -> None:
    kinds = {dict(labels)["kind"] for name, labels in parts.samples() if name == "testcni_drift_repaired_total"}
    assert kinds
    assert [kind for kind in kinds if f"`{kind}`" not in PAGE] == []


def test_alerts_ask_for_metrics_labels_and_values_that_exist(parts: Parts) -> None:
    alerts = re.findall(r"^\| `([^`]+)` \| \d+[mh] \|", PAGE.partition("## Alerts")[2], re.MULTILINE)
    known = {re.sub(r"_total$", "", name) for name in parts.metrics.names()}
    rows = dict(re.findall(r"^\| `(testcni_\w+)` \| \w+ \| ([^|]*\|[^\n]*)", PAGE, re.MULTILINE))
    assert len(alerts) > 20
    for alert in alerts:
        for name, _, matchers in re.findall(r"((?:testcni|process)_\w+)(\{([^}]*)\})?", alert):
            base = re.sub(r"_(total|bucket|count|sum)$", "", name)
            assert base in known, alert
            for label, values in re.findall(r'(\w+)!?=~?"([^"]*)"', matchers):
                row = rows[name if name in rows else base]
                assert f"`{label}`" in row, alert
                said = f"{row} {' '.join((*vxlan_maps.REASONS, *pod_guard.REASONS))} ADD DEL Established ipip"
                assert all(value in said for value in values.split("\\|")), alert


def test_calls_are_timed_with_their_outcome(parts: Parts) -> None:
    gateway = '{"cniVersion": "1.1.0", "name": "n", "type": "testcni"}'
    calls = {
        ("DEL", "unknown", "4"): Call("DEL", config='{"mode": ["x"]}'),
        ("DEL", "macvlan", "4"): Call("DEL", config='{"mode": "macvlan"}'),
        ("STATUS", "host-gw", "50"): Call("STATUS", config=gateway),
        ("CHECK", "host-gw", "3"): Call("CHECK", config=gateway),
        ("GC", "host-gw", "ok"): Call("GC", config=gateway),
        ("ADD", "unknown", "7"): Call("ADD", config='{"name": 7}'),
        ("other", "unknown", "4"): Call("SING", config=gateway),
    }
    for (verb, mode, result), call in calls.items():
        with contextlib.suppress(CniError):
            parts.handler.answer(call)
        count = parts.value("cni_request_duration_seconds_count", verb=verb, mode=mode, result=result)
        assert count == 1, (verb, mode, result)


@pytest.mark.parametrize(("error", "result"), [(ZeroDivisionError(), "999"), (NetnsLostError(), "11")])
def test_bugs_and_lost_threads_count_by_the_code_they_are_told_by(
    parts: Parts, error: BaseException, result: str
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise error

    parts.handler._verbs["ADD"] = fail
    with pytest.raises(type(error)):
        parts.handler.answer(Call("ADD", config='{"name": "n", "type": "testcni"}'))
    labels = {"verb": "ADD", "mode": "host-gw", "result": result}
    assert parts.value("cni_request_duration_seconds_count", **labels) == 1


def test_node_and_networks(parts: Parts) -> None:
    def node(name: str, *blocks: str) -> Node:
        return Node(name, (), tuple(map(ipaddress.ip_network, blocks)))

    nodes = (node("one", "10.244.1.0/24"), node("two", "10.244.2.0/24"), node("three"), node("four"))
    claimed = IPBlock(ipaddress.ip_network("10.245.0.0/24"), "three", "pool")
    orphan = IPBlock(ipaddress.ip_network("10.245.1.0/24"), "gone", "pool")
    parts.snapshot_cache.deliver(
        [Listed("Node", nodes), Listed("IPPool", ()), Listed("IPBlock", (claimed, orphan))]
    )
    parts.reconciler.status.publish(
        NodeStatus(True, {POD_NET: (BLOCK,)}, routes=3, programmed=2, problems=(Problem("x", "y", "z"),))
    )
    assert parts.value("nodes") == 4
    assert parts.value("peers") == 2, "those that have a block"
    assert parts.value("routes_desired") == 3
    assert parts.value("routes_programmed") == 2
    assert parts.value("problems") == 1
    assert parts.value("attachments") == 0
    assert parts.value("blocks", network="pods", family="ipv4") == 1
    assert parts.value("addresses", network="pods", mode="host-gw", family="ipv4", state="free") == 253
    assert parts.value("build_info", version=agent.__version__) == 1


def test_a_network_whose_conf_changed_is_one_series(parts: Parts) -> None:
    smaller = replace(POD_NET, range_start=ipaddress.ip_address("10.244.1.200"))
    for order in ({POD_NET: (BLOCK,), smaller: (BLOCK,)}, {smaller: (BLOCK,), POD_NET: (BLOCK,)}):
        parts.reconciler.status.publish(NodeStatus(True, order))
        assert parts.value("addresses", network="pods", mode="host-gw", family="ipv4", state="free") == 253


BOTH = network_of("both")
SIX = ipaddress.ip_network("fd00:1::/120")


def test_addresses_and_blocks_are_counted_by_ip_version(parts: Parts) -> None:
    more = ipaddress.ip_network("10.244.2.0/30")
    known = {BOTH: frozenset({4, 6})}
    parts.reconciler.status.publish(NodeStatus(True, {BOTH: (BLOCK, more, SIX)}, families=known))
    parts.attachments.load()
    status = parts.reconciler.status.get()
    for n in range(2):
        wanted = Attachment(f"c{n}", "eth0", BOTH, "/x", "", (), "")
        parts.attachments.take(wanted, blocks.prepared(status, BOTH, status.blocks[BOTH]), ())
    expected = {("ipv4", "used"): 2, ("ipv4", "free"): 252, ("ipv6", "used"): 2, ("ipv6", "free"): 252}
    for (family, state), count in expected.items():
        found = parts.value("addresses", network="both", mode="host-gw", family=family, state=state)
        assert found == count, (family, state)
    assert parts.value("blocks", network="both", family="ipv4") == 2
    assert parts.value("blocks", network="both", family="ipv6") == 1


@pytest.mark.parametrize(
    ("own", "families", "listed"),
    [
        ((BLOCK,), {4}, {"ipv4": 253}),
        ((BLOCK,), {4, 6}, {"ipv4": 253, "ipv6": 0}),  # pools of both, and no IPv6 block is left
        ((BLOCK, SIX), {4}, {"ipv4": 253}),  # links that are too small for IPv6
        ((BLOCK, SIX), None, {"ipv4": 253, "ipv6": 254}),
        ((SIX,), {6}, {"ipv6": 254}),
    ],
)
def test_an_ip_version_that_pods_get_no_address_of_is_not_listed(
    parts: Parts, own: tuple[Subnet, ...], families: set[int] | None, listed: dict[str, int]
) -> None:
    known = {} if families is None else {BOTH: frozenset(families)}
    parts.reconciler.status.publish(NodeStatus(True, {BOTH: own}, families=known))
    (entry,) = parts.report()["networks"]
    assert {family: counts["free"] for family, counts in entry["addresses"].items()} == listed
    found = {dict(labels)["family"] for name, labels in parts.samples() if name == "testcni_addresses"}
    assert found == listed.keys()


def test_watches(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("agent.cluster.snapshot_cache.time.monotonic", lambda: clock[0])
    assert parts.value("watch_last_event_age_seconds", kind="Node") is None
    parts.snapshot_cache.deliver([Listed("Node", ())])
    clock[0] += 5
    assert parts.value("watch_last_event_age_seconds", kind="Node") == 5
    for change in (Bookmark("Node"), Upserted(Node("a")), Deleted("Node", "a")):
        clock[0] += 5
        parts.snapshot_cache.deliver([change])
        assert parts.value("watch_last_event_age_seconds", kind="Node") == 0
    clock[0] += 5
    parts.snapshot_cache.deliver([WatchRestarted("Node", "expired"), WatchRestarted("Node", "expired")])
    assert parts.value("watch_restarts_total", kind="Node", reason="expired") == 2
    assert parts.value("watch_last_event_age_seconds", kind="Node") == 5, "a restart alone brings no news"
    assert parts.value("watch_last_event_age_seconds", kind="IPPool") is None


def test_the_journals_length(parts: Parts, tmp_path: Path) -> None:
    for name in ("1.json", "2.json", ".3.json", "4.rejected"):
        (tmp_path / "deletes" / name).touch()
    assert parts.value("journal_length") == 2
    for path in (tmp_path / "deletes").iterdir():
        path.unlink()
    (tmp_path / "deletes").rmdir()
    assert parts.value("journal_length") is None, "a journal out of reach is not an empty one"
    assert parts.value("nodes") == 0


def test_counters_begin_at_zero(parts: Parts) -> None:
    for kind in ("bridges", "forwarding", "nft", "routes"):
        assert parts.value("drift_repaired_total", kind=kind) == 0
        assert parts.value("reconcile_errors_total", what=kind) == 0
    assert parts.value("reconcile_errors_total", what="netlink") == 0
    assert parts.value("reconcile_duration_seconds_count") == 0


def test_what_became_of_packets(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loader, "maps", lambda *_family: None)
    assert {parts.value("ebpf_packets_total", reason=reason) for reason in vxlan_maps.REASONS} == {0}
    monkeypatch.setattr(Loader, "maps", lambda *_family: {"counters": None})
    monkeypatch.setattr(
        pod_guard, "counters", lambda _maps: {"drop_pod_router": Count(3, 300), "drop_no_pod": Count(0, 0)}
    )
    counted = {**vxlan_maps.no_counters(), "drop_no_pod": Count(2, 120)}
    monkeypatch.setattr(vxlan_maps, "counters", lambda _maps: counted)
    assert parts.value("ebpf_packets_total", reason="drop_no_pod") == 2
    assert parts.value("ebpf_bytes_total", reason="drop_no_pod") == 120
    assert parts.report()["ebpf"]["drop_no_pod"] == {"packets": 2, "bytes": 120}
    assert parts.report()["ebpf"]["drop_pod_router"] == {"packets": 3, "bytes": 300}

    def refuse(*_family: object) -> None:
        raise BpfError(errno.EPERM, "open pins")

    monkeypatch.setattr(Loader, "maps", refuse)
    assert parts.value("ebpf_packets_total", reason="drop_no_pod") is None
    assert parts.value("nodes") == 0, "all else is told"


def test_every_reason_has_its_words() -> None:
    for page, reasons in (("vxlan", vxlan_maps.REASONS), ("host-gw", pod_guard.REASONS)):
        text = (REPO / f"docs/modes/{page}.md").read_text()
        assert [reason for reason in reasons if f"`{reason}`" not in text] == []


ROUTE = Route(ipaddress.ip_network("10.244.2.0/24"), ipaddress.ip_address("192.0.2.2"), "eth0")
BRIDGE = Bridge("testcni0", "0a:58:0a:f4:01:01", 1500, frozenset())


def test_drift_is_what_others_changed() -> None:
    drift = Drift(("routes", "bridges"))

    def repaired(desired: NodeState, *failures: str, **changed: int) -> dict[str, int]:
        done = ApplyResult()
        for kind in ("routes", "bridges"):
            done.add(kind, Result(changed=changed.get(kind, 0), failed=kind in failures))
        drift.note({"routes": desired.routes, "bridges": desired.bridges}, done)
        return {kind: count for (kind,), count in drift.repaired.all().items() if count}

    first = NodeState(routes=frozenset({ROUTE}), bridges=frozenset({BRIDGE}))
    assert repaired(first, routes=1, bridges=1) == {}, "at the start everything is made"
    assert repaired(first) == {}
    assert repaired(first, routes=1) == {"routes": 1}
    more = replace(first, routes=frozenset({ROUTE, replace(ROUTE, device="eth1")}))
    assert repaired(more, routes=1) == {"routes": 1}, "more is desired"
    assert repaired(more, routes=0, bridges=1) == {"routes": 1, "bridges": 1}
    assert repaired(more, "routes") == {"routes": 1, "bridges": 1}
    assert repaired(more, routes=2) == {"routes": 1, "bridges": 1}, "what failed before is done late, not repaired"
    assert repaired(more, routes=2) == {"routes": 3, "bridges": 1}


def test_a_tally_loses_nothing() -> None:
    counter = LabelledCounter(("a",))

    def count() -> None:
        for _ in range(5000):
            counter.add("a")
            counter.add("b", "c", by=2)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.all() == {("a",): 20_000, ("b", "c"): 40_000}


def test_bird_and_ipip(parts: Parts) -> None:
    assert parts.value("bird_running") == 0
    assert parts.value("bgp_sessions", state="Established") == 0
    sessions = (Session("two", State.ESTABLISHED, 2, 1), Session("three", State.ESTABLISHED, 3, 1))
    parts.bird = BirdStatus(
        True, "2.0.12", 7, 2, (*sessions, Session("four", State.ACTIVE, error="no")), kernel_routes=6
    )
    assert parts.value("bird_running") == 1
    assert parts.value("bird_starts_total") == 2
    assert parts.value("bird_kernel_routes") == 6
    states = {state: parts.value("bgp_sessions", state=state.value) for state in State}
    assert {state: number for state, number in states.items() if number} == {State.ESTABLISHED: 2, State.ACTIVE: 1}
    assert [parts.value("bgp_routes", direction=d) for d in ("imported", "exported")] == [5, 2]
    assert parts.value("ipip_packets_total", fate="drop_unknown_node") == 1
