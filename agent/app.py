"""Build the agent from its parts: the cluster's objects, the node path, the pod path, and what observes them."""

from __future__ import annotations

import gc
import json
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cluster import datastores
from agent.cluster.pod_events import PodEventQueue
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cni.handler import CniHandler
from agent.cni.journal import Journal
from agent.cni.protocol import Call
from agent.cni.server import WORKERS, Server
from agent.config import AgentConfig
from agent.host.cni_conf_dir import ConfDir
from agent.host.host_directories import HostDirectories, used_by
from agent.host.installer import Installer, Places
from agent.host.run_dir import Lock, RunDir
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.block_claims.block_controller import BlockController, ReclaimRules
from agent.ipam.reservations import controller as reservation_controller
from agent.ipam.reservations.claimant import ClaimContext
from agent.ipam.reservations.claims import ReservationClaims
from agent.ipam.reservations.controller import ControllerInputs, ReservationController
from agent.kernel.bpf.loader import Loader
from agent.kernel.netlink_monitor import Monitor
from agent.model.marks import BPF_PINS, LINK_PREFIX, NFT_TABLE
from agent.model.node_status import Demand, ReservationsInProgress
from agent.model.node_view import NodeView
from agent.model.problem_board import ProblemBoard
from agent.modes.base import AgentContext
from agent.modes.registry import Modes
from agent.node import route_protocol
from agent.node.drift_monitor import DriftMonitor
from agent.node.reconciler import Reconciler
from agent.node.reconciler_inputs import Inputs
from agent.node.route_protocol import RouteMarks
from agent.objects.host_kernel import HostKernel
from agent.observe import health, metrics
from agent.observe.http import Http, Page, Pages
from agent.observe.status import report
from agent.publish.accepted_modes_publisher import AcceptedModesPublisher
from agent.runtime.controller import Controller
from agent.runtime.observable import Observable
from agent.runtime.shutdown import Shutdown
from agent.runtime.threads import Part, PartThreads

if TYPE_CHECKING:
    from agent.publish.network_policies import NetworkPolicies

FINISH_WITHIN = 10.0  # seconds that calls of the plugin have to end when the agent stops
WOKEN = ("cni-conf", "blocks", "reservations", "reconciler", "accepted-modes", "installer")
"""The controllers whose number of rounds is in /status: it grows fast where parts wake each other."""

log = logging.getLogger("agent")


@dataclass(frozen=True, slots=True)
class Shared:
    """The values that several groups of parts read or write."""

    conf: AgentConfig
    modes: Modes
    host: HostKernel
    metrics: metrics.Metrics
    attachments: AttachmentStore
    board: ProblemBoard = field(default_factory=ProblemBoard)
    demand: Observable[Demand] = field(default_factory=lambda: Observable({}))
    in_progress: Observable[ReservationsInProgress] = field(default_factory=lambda: Observable(frozenset()))
    pod_events: PodEventQueue = field(default_factory=PodEventQueue)

    @property
    def reservations_file(self) -> Path:
        """The file by which an agent knows the reservations while the datastore is away."""
        return self.conf.run_dir / "reservations.json"


class ClusterParts:
    """The parts that read the cluster's objects, claim blocks and keep reservations."""

    def __init__(self, shared: Shared) -> None:
        conf, board, file = shared.conf, shared.board, shared.reservations_file
        self.datastores = datastores.open_all(conf.datastore, WORKERS)
        store = self.datastores.store
        self.snapshot_cache = SnapshotCache(store, reservation_controller.load(file), board)
        self.snapshot = self.snapshot_cache.snapshot
        inputs = ControllerInputs(
            self.snapshot, shared.in_progress, shared.attachments, file, shared.pod_events.put
        )
        self.reservations = ReservationController(
            store, conf.node, inputs, conf.keep_address, board.part("reservations")
        )
        rules = ReclaimRules(conf.node_gone, whole=lambda: not self.snapshot_cache.problems.get())
        self.block_controller = BlockController(store, conf.node, self.snapshot, rules, board.part("blocks"))
        self.parts: dict[str, Part] = {
            "snapshot": self.snapshot_cache,
            "blocks": self.block_controller,
            "reservations": self.reservations,
        }
        """The parts, by the names of their threads."""


class NodePath:
    """The parts of the node path: they program the kernel and install files on the host."""

    def __init__(self, shared: Shared, cluster: ClusterParts) -> None:
        conf, board = shared.conf, shared.board
        self._conf = conf
        self.confs = ConfDir(conf.conf_dir, conf.conflist, shared.modes, board.part("cni-conf"))
        context = AgentContext(conf, board, shared.host)
        self.of_modes = [mode.parts(context) for mode in shared.modes]
        inputs = self._inputs(shared, cluster)
        self.reconciler = Reconciler(
            conf.node, inputs, cluster.block_controller, conf.resync, shared.metrics.timings
        )
        self.status = self.reconciler.status
        self.view = NodeView(conf.node, cluster.snapshot, self.status)
        self._publisher = AcceptedModesPublisher(cluster.datastores.store, self.view, board.part("accepted-modes"))
        self._host_directories = HostDirectories(used_by(conf), board.part("host-directories"))
        self.mode_threads = {name: one for of in self.of_modes for name, one in of.threads(self.view).items()}
        self.installer: Installer | None = None
        if conf.conflist:
            places = Places(conf.bundle, conf.conflist, conf.bin_dir, conf.conf_dir)
            self.installer = Installer(places, self.status, board.part("installer"), shared.modes)

    def _inputs(self, shared: Shared, cluster: ClusterParts) -> Inputs:
        """Return what the reconciler reads and writes."""
        conf = shared.conf
        return Inputs(
            cluster.snapshot,
            self.confs.found,
            shared.demand,
            shared.attachments,
            shared.board,
            shared.host,
            shared.modes,
            conf.run_dir / "prepared.json",
            resume=reservation_controller.unusable(shared.reservations_file) is None,
            objects=shared.modes.node_objects(*(each for of in self.of_modes for each in of.objects)),
            wake_on=tuple(source for of in self.of_modes for source in of.wake_on),
            nodes=conf.run_dir / "nodes.json",
            block_idle=conf.block_idle,
            mode_grace=conf.grace.mode,
            servers=datastores.server_addresses(conf.datastore),
            marks=RouteMarks(conf.run_dir, conf.route_protocol),
        )

    def parts(self) -> dict[str, Part]:
        """Return the parts by the names of their threads."""
        routes = partial(Monitor.of_routes, self._conf.route_protocol, LINK_PREFIX)
        parts: dict[str, Part] = {
            "cni-conf": self.confs,
            "reconciler": self.reconciler,
            "accepted-modes": self._publisher,
            "host-directories": self._host_directories,
            **self.mode_threads,
            "monitor": DriftMonitor(routes, self.reconciler.drifted),
            "nft-monitor": DriftMonitor(partial(Monitor.of_nft, NFT_TABLE), self.reconciler.drifted),
        }
        if self.installer:
            parts["installer"] = self.installer
        return parts


class PodPath:
    """The parts of the pod path: they answer the calls of the CNI plugin."""

    def __init__(self, shared: Shared, cluster: ClusterParts, node: NodePath) -> None:
        conf = shared.conf
        self.handler = CniHandler(
            shared.host,
            shared.attachments,
            node.status,
            shared.demand,
            shared.metrics.timings,
            claims=self._claims(shared, cluster, node) if conf.pod_annotations else None,
            later=node.confs.later_plugins(),
            snapshot=cluster.snapshot,
            report_event=shared.pod_events.put,
            modes=shared.modes,
        )
        done, problems = conf.run_dir / "deletes-done", shared.board.part("journal")
        self.journal = Journal(conf.state_dir, self.handler.answer, done, problems)

    @staticmethod
    def _claims(shared: Shared, cluster: ClusterParts, node: NodePath) -> ReservationClaims:
        """Return what claims reserved addresses for pods."""
        conf = shared.conf
        context = ClaimContext(conf.node, cluster.snapshot, node.status, shared.in_progress, shared.pod_events.put)
        return ReservationClaims(cluster.datastores.quick, context, conf.keep_address, conf.namespace_reservations)


class ClusterPublishers:
    """The parts that write Events, conditions and status objects; there are none without Kubernetes."""

    def __init__(self, shared: Shared, cluster: ClusterParts, node: NodePath) -> None:
        self.parts: dict[str, Part] = {}
        """The parts, by the names of their threads."""
        self._policies: NetworkPolicies | None = None
        if not (api := cluster.datastores.api):
            return
        # these load the client of the API server: only those who use it pay
        from agent.cluster.usage_objects import Usages  # noqa: PLC0415
        from agent.publish.network_policies import NetworkPolicies  # noqa: PLC0415
        from agent.publish.node_events import NodeEventWriter  # noqa: PLC0415
        from agent.publish.pool_status_writer import PoolStatusWriter  # noqa: PLC0415
        from agent.publish.status_inputs import StatusInputs  # noqa: PLC0415
        from agent.publish.usage_writer import UsageWriter  # noqa: PLC0415

        board, usages = shared.board, Usages(api)
        inputs = StatusInputs(shared.conf.node, cluster.snapshot_cache, node.status, shared.attachments)
        report_error = board.part("node-events").report_error
        self._policies = NetworkPolicies(api, shared.conf.node, board.part("policies").report_error)
        self.parts = {
            "node-events": NodeEventWriter(api, node.view, shared.pod_events, report_error),
            "usage": UsageWriter(usages, inputs, board.part("usage")),
            "pool-status": PoolStatusWriter(usages, inputs, board.part("pool-status")),
            "policies": self._policies,
        }

    @property
    def notes(self) -> list[str]:
        """Return notes for people that are no problems."""
        return [self._policies.note] if self._policies and self._policies.note else []


class Agent:
    """All parts of an agent; nothing runs before `run`."""

    def __init__(self, conf: AgentConfig, lock: Lock, modes: Modes) -> None:
        self.conf = conf
        self._lock = lock
        self._shutdown = Shutdown()
        self._threads = PartThreads(self._shutdown)
        self._began = time.monotonic()
        attachments = AttachmentStore(conf.run_dir, conf.cool_down, modes.options)
        pods = route_protocol.of_pods(conf.route_protocol)
        host = HostKernel(Loader(conf.ebpf, BPF_PINS), conf.sysctl_dir, pods)
        self.shared = Shared(conf, modes, host, metrics.Metrics(modes), attachments)
        self.cluster = ClusterParts(self.shared)
        self.node = NodePath(self.shared, self.cluster)
        self.pods = PodPath(self.shared, self.cluster, self.node)
        self._publishers = ClusterPublishers(self.shared, self.cluster, self.node)
        self._server = Server(conf.socket, self.answer)
        self._follow()
        self._parts = self.parts()

    def _follow(self) -> None:
        """Have the metrics ask the agent's parts."""
        self.shared.metrics.follow(
            metrics.Sources(
                self.conf.node,
                self.report,
                self.cluster.snapshot_cache,
                self.node.reconciler,
                self.pods.journal,
                lambda: (family for of in self.node.of_modes for family in of.metrics()),
            )
        )

    def parts(self) -> dict[str, Part]:
        """Return what runs for as long as the agent does, by the names of the threads."""
        board, attachments = self.shared.board, self.shared.attachments
        keepers = (self._lock.keep, self._server.keep, attachments.restore_files)
        parts: dict[str, Part] = {
            **self.cluster.parts,
            **self.node.parts(),
            "journal": self.pods.journal,
            "run-dir": RunDir(board.part("run-dir"), *keepers),
            **self._publishers.parts,
        }
        if self.conf.listen:  # the last one: it says whether all others live
            parts["http"] = Http(self.conf.listen, self._pages(), board.part("http"))
        return parts

    def run(self) -> None:
        """Recover, replay the journal and serve until `stop` is called or a part fails. Raises OSError."""
        self.shared.attachments.load()
        self.pods.handler.recover()
        self.pods.journal.prepare()
        replayed = self.pods.journal.replay()
        self._server.start()
        log.info("node %s: serving on %s, %d DELs replayed", self.conf.node, self.conf.socket, replayed)
        self._threads.start(self._parts)
        gc.freeze()  # what is there now stays: no collection need look at it again
        self._shutdown.wait()
        self._threads.stop()
        if not self._server.stop(FINISH_WITHIN):
            log.warning("calls are still at work after %.0f s; the next start undoes them", FINISH_WITHIN)
        log.info("stopped; pods and routes stay as they are")

    @property
    def failed(self) -> bool:
        """Whether a part has failed, so that the agent ends."""
        return self._threads.failed

    def stop(self) -> None:
        """Make `run` return."""
        self._shutdown.now()

    def stop_on(self, *numbers: int) -> None:
        """Make `run` return at these signals; only the main thread may call it."""
        self._shutdown.on(*numbers)

    def answer(self, call: Call) -> dict[str, Any]:
        """Return the answer to a call, after the DELs that were journaled earlier."""
        if call.command == "INFO":
            return self.report()
        self.pods.journal.replay()
        return self.pods.handler.answer(call)

    def report(self) -> dict[str, Any]:
        """Return the agent's status as JSON."""
        shared = self.shared
        snapshot, status = self.cluster.snapshot.get(), self.node.status.get()
        own = report(self.conf, self._began, snapshot, status, shared.attachments, shared.modes, shared.host)
        of_modes = {key: value for of in self.node.of_modes for key, value in of.report().items()}
        summaries = [line for of in self.node.of_modes for line in of.summary()]
        notes = self._publishers.notes
        return {**own, "notes": notes, **of_modes, "summaries": summaries, "rounds": self._rounds()}

    def _rounds(self) -> dict[str, int]:
        woken = {name: self._parts.get(name) for name in WOKEN}
        return {name: part.pace.spent for name, part in woken.items() if isinstance(part, Controller)}

    def _pages(self) -> Pages:
        node = self.node
        return {
            "/metrics": lambda: Page(self.shared.metrics.text(), metrics.CONTENT_TYPE),
            "/healthz": lambda: health.alive(self._threads.all, self.conf.listen),
            "/readyz": lambda: health.ready(node.status.get(), node.confs.found.get(), node.installer),
            "/status": lambda: Page(json.dumps(self.report(), indent=2).encode() + b"\n", "application/json"),
        }
