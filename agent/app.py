"""testcni-agent: puts the parts together, starts them in order and stops them on SIGTERM."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import config
from agent import log as logs
from agent.cluster.directory_store import DirectoryStore
from agent.cluster.pod_events import PodEventQueue
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import Datastore
from agent.cni.handler import CniHandler
from agent.cni.journal import Journal
from agent.cni.later_plugins import LaterPlugins
from agent.cni.protocol import Call
from agent.cni.server import WORKERS, Server
from agent.config import AgentConfig, ConfigError
from agent.ip import Address
from agent.ipam.attachment_store import AttachmentStore
from agent.ipam.block_controller import BlockController, ReclaimRules
from agent.ipam.reservations import controller as reservation_controller
from agent.ipam.reservations.claimant import ClaimContext
from agent.ipam.reservations.claims import ReservationClaims
from agent.ipam.reservations.controller import ControllerInputs, ReservationController
from agent.kernel import sysctl
from agent.kernel.bpf import loader
from agent.kernel.netlink_monitor import Monitor
from agent.model.marks import LINK_PREFIX, NFT_TABLE
from agent.model.node_status import Demand, NodeStatus, ReservationsInProgress
from agent.model.node_view import NodeView
from agent.model.problem_board import PartProblems, ProblemBoard
from agent.modes.ipip.bird.node_object import Bird
from agent.modes.ipip.bird.options import OptionsFile
from agent.modes.ipip.bird.supervisor import Supervisor
from agent.modes.ipip.device import IpipDevice
from agent.modes.parent.mac_filter_check import MacFilterCheck
from agent.modes.registry import BUILT_IN, Modes
from agent.modes.vxlan.checksum_check import ChecksumCheck
from agent.node import route_protocol
from agent.node.accepted_modes_publisher import AcceptedModesPublisher
from agent.node.cni_conf_dir import ConfDir
from agent.node.host_directories import HostDirectories
from agent.node.inputs import Inputs
from agent.node.installer import Installer, Places
from agent.node.reconciler import Reconciler
from agent.node.route_protocol import RouteMarks
from agent.node.run_dir import Lock, RunDir
from agent.objects import pod_port_setup
from agent.observe import health, metrics
from agent.observe.http import Http, Page, Pages
from agent.observe.status import bgp, report
from agent.runtime.observable import Observable
from agent.runtime.shutdown import MustEndError, Shutdown

if TYPE_CHECKING:
    from agent.cluster.api import Api
    from agent.observe.network_policies import NetworkPolicies

EXIT_FAILED, EXIT_USAGE, EXIT_BUSY = 1, 2, 3
ADD_WAITS = 2.0  # seconds for an answer of the API server
FINISH_WITHIN = 10.0  # seconds for calls at work when the agent is told to stop

log = logging.getLogger("agent")


class Agent:
    """All parts of an agent; nothing runs before `run`."""

    def __init__(self, conf: AgentConfig, lock: Lock, modes: Modes = BUILT_IN) -> None:
        self.conf = conf
        self._modes = modes
        self._lock = lock
        self.failed = False
        self._threads: list[threading.Thread] = []
        self._metrics = metrics.Metrics(modes)
        self._ending, self._stop = Shutdown(), threading.Event()
        self._began = time.monotonic()
        loader.use(conf.ebpf)
        pod_port_setup.use(route_protocol.of_pods(conf.route_protocol))
        sysctl.use(conf.sysctl_dir)
        store, quick, api = datastores(conf.datastore)
        board = ProblemBoard()
        demand: Observable[Demand] = Observable({})
        self._attachments = AttachmentStore(conf.run_dir, conf.cool_down, modes.options)
        kept = conf.run_dir / "reservations.json"
        self._snapshot_cache = SnapshotCache(store, reservation_controller.load(kept), board)
        busy: Observable[ReservationsInProgress] = Observable(frozenset())
        pod_events = PodEventQueue()
        self._reservations = ReservationController(
            store,
            conf.node,
            ControllerInputs(self._snapshot_cache.snapshot, busy, self._attachments, kept, pod_events.put),
            conf.keep_address,
            board.part("keeper"),
        )
        rules = ReclaimRules(conf.node_gone, whole=lambda: not self._snapshot_cache.troubles.get())
        self._block_controller = BlockController(
            store, conf.node, self._snapshot_cache.snapshot, rules, board.part("claimer")
        )
        self._confs = ConfDir(conf.conf_dir, conf.conflist, modes, board.part("confs"))
        self._host_directories = HostDirectories(folders(conf), board.part("folders"))
        self._bird = Supervisor(conf.run_dir / "bird", board.part("bird"))
        options, ipip = (
            OptionsFile(conf.bgp, conf.run_dir / "bgp-options", board.part("bgp-options").report_error),
            IpipDevice(conf.ipip),
        )
        self._checksum_check = ChecksumCheck(board.part("selftest"), conf.route_protocol)
        self._inputs = inputs = Inputs(
            self._snapshot_cache.snapshot,
            self._confs.found,
            demand,
            self._attachments,
            board,
            conf.sysctl_dir,
            conf.run_dir / "prepared.json",
            resume=reservation_controller.unusable(kept) is None,
            bgp=options,
            objects=modes.node_objects(ipip, Bird(self._bird.want, options)),
            nodes=conf.run_dir / "nodes.json",
            block_idle=conf.block_idle,
            servers=servers(conf.datastore),
            modes=modes,
            marks=RouteMarks(conf.run_dir, conf.route_protocol),
        )
        self._reconciler = Reconciler(
            conf.node, inputs, self._block_controller, conf.resync, self._metrics.timings
        )
        view = NodeView(conf.node, self._snapshot_cache.snapshot, self._reconciler.status)
        self._publisher = AcceptedModesPublisher(store, view, board.part("herald"))
        self._mac_filter_check = MacFilterCheck(view, board.part("segment"))
        seen = (conf.node, self._snapshot_cache, self._reconciler.status, self._attachments)
        self._accounting = accounting(api, seen, board) if api else {}
        self._announce = announcer(api, view, pod_events, board.part("announcer")) if api else None
        self._policies = policies(api, conf.node, board.part("policies")) if api else None
        self._installer: Installer | None = None
        if conf.conflist:
            places = Places(conf.bundle, conf.conflist, conf.bin_dir, conf.conf_dir)
            self._installer = Installer(places, self._reconciler.status, board.part("installer"), modes)
        claims: ReservationClaims | None = None
        if conf.pod_annotations:
            context = ClaimContext(
                conf.node, self._snapshot_cache.snapshot, self._reconciler.status, busy, pod_events.put
            )
            claims = ReservationClaims(quick, context, conf.keep_address, conf.namespace_reservations)
        confs = self._confs.found
        self._handler = CniHandler(
            self._attachments,
            self._reconciler.status,
            demand,
            self._metrics.timings,
            claims,
            later=LaterPlugins(
                lambda network: confs.get().foreign_macs.get(network, ""),
                lambda network: confs.get().unseen_macs.get(network, ""),
                lambda network: confs.get().egress_limits.get(network),  # noqa: PLW0108 - the confs as they are then
            ),
            snapshot=self._snapshot_cache.snapshot,
            tell=pod_events.put,
            modes=modes,
        )
        self._journal = Journal(
            conf.state_dir, self._handler.answer, conf.run_dir / "deletes-done", board.part("journal")
        )
        self._server = Server(conf.socket, self.answer)
        self._http = Http(conf.listen, self._pages(), board.part("http")) if conf.listen else None
        self._metrics.follow(
            metrics.Sources(
                conf.node,
                self.report,
                self._snapshot_cache,
                self._reconciler,
                self._journal,
                self._bird.status.get,
                ipip.counted,
            )
        )

    def run(self) -> None:
        """Recover, replay, serve; returns when `stop` was called or a part failed. Raises OSError at start."""
        self._attachments.load()
        self._handler.recover()
        self._journal.prepare()
        replayed = self._journal.replay()
        self._server.start()
        log.info("node %s: serving on %s, %d DELs replayed", self.conf.node, self.conf.socket, replayed)
        for name, part in self._parts().items():
            thread = threading.Thread(target=self._guard, args=(name, part), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        gc.freeze()  # what is there now stays: no collection need look at it again
        self._ending.wait()
        self._stop.set()
        if not self._server.stop(FINISH_WITHIN):
            log.warning("calls are still at work after %.0f s; the next start undoes them", FINISH_WITHIN)
        log.info("stopped; pods and routes stay as they are")

    def _parts(self) -> dict[str, Callable[[threading.Event], None]]:
        """What runs for as long as the agent does, each in a thread of its own."""
        parts: dict[str, Callable[[threading.Event], None]] = {
            "follower": self._snapshot_cache.run,
            "confs": self._confs.run,
            "claimer": self._block_controller.run,
            "keeper": self._reservations.run,
            "reconciler": self._reconciler.run,
            "herald": self._publisher.run,
            "journal": self._journal.run,
            "folders": self._host_directories.run,
            "run-dir": RunDir(
                self._inputs.board.part("run-dir"),
                self._lock.keep,
                self._server.keep,
                self._attachments.restore_files,
            ).run,
            "bird": self._bird.run,
            "selftest": self._checksum_check.run,
            "segment": self._mac_filter_check.run,
            "monitor": lambda stop: self._watch_kernel(stop, nft=False),
            "nft-monitor": lambda stop: self._watch_kernel(stop, nft=True),
        }
        if self._installer:
            parts["installer"] = self._installer.run
        if self.conf.bgp:
            parts["bgp-options"] = self._inputs.bgp.run
        if self._announce:
            parts["announcer"] = self._announce
        parts.update(self._accounting)
        if self._policies:
            parts["policies"] = self._policies.run
        if self._http:
            parts["http"] = self._http.run  # the last one: it says whether all others live
        return parts

    def _pages(self) -> Pages:
        return {
            "/metrics": lambda: Page(self._metrics.text(), metrics.CONTENT_TYPE),
            "/healthz": lambda: health.alive(self._threads, self.conf.listen),
            "/readyz": lambda: health.ready(
                self._reconciler.status.get(), self._confs.found.get(), self._installer
            ),
            "/status": lambda: Page(json.dumps(self.report(), indent=2).encode() + b"\n", "application/json"),
        }

    def stop(self) -> None:
        """Make `run` return."""
        self._ending.now()

    def stop_on(self, *numbers: int) -> None:
        """Make `run` return at these signals; for the main thread."""
        self._ending.on(*numbers)

    def answer(self, call: Call) -> dict[str, Any]:
        """The answer to a call; a DEL that was journaled earlier comes before it."""
        if call.command == "INFO":
            return self.report()
        self._journal.replay()
        return self._handler.answer(call)

    def report(self) -> dict[str, Any]:
        """What the agent says of itself."""
        snapshot, status = self._snapshot_cache.snapshot.get(), self._reconciler.status.get()
        told = report(self.conf, self._began, snapshot, status, self._attachments, self._modes)
        notes = [self._policies.note] if self._policies and self._policies.note else []
        return {**told, "notes": notes, "bgp": bgp(self._bird.status.get()), "rounds": self._rounds()}

    def _rounds(self) -> dict[str, int]:
        """How often each part that others wake has looked at things: it grows fast where parts wake each other."""
        paces = {
            "confs": self._confs.pace,
            "claimer": self._block_controller.pace,
            "keeper": self._reservations.pace,
            "reconciler": self._reconciler.pace,
            "herald": self._publisher.pace,
            **({"installer": self._installer.pace} if self._installer else {}),
        }
        return {name: pace.spent for name, pace in paces.items()}

    def _watch_kernel(self, stop: threading.Event, *, nft: bool) -> None:
        monitor = Monitor.of_nft(NFT_TABLE) if nft else Monitor.of_routes(self.conf.route_protocol, LINK_PREFIX)
        while not stop.is_set():
            if monitor.changed():
                self._reconciler.drifted()

    def _guard(self, name: str, part: Callable[[threading.Event], None]) -> None:
        """An agent that lost a part must not look alive: it ends, and is started anew."""
        try:
            part(self._stop)
        except MustEndError as error:
            log.error("%s: %s", name, error)
            self.failed = True
            self._ending.now()
        except Exception:
            log.exception("%s ended unexpectedly, so the agent ends", name)
            self.failed = True
            self._ending.now()


def folders(conf: AgentConfig) -> dict[str, Path]:
    """The folders of the host that the agent uses, by their options."""
    found = {
        "--conf-dir": conf.conf_dir,
        "--run-dir": conf.run_dir,
        "--state-dir": conf.state_dir,
        "--sysctl-dir": conf.sysctl_dir,
    }
    return {**found, "--bin-dir": conf.bin_dir} if conf.conflist else found


def datastores(text: str) -> tuple[Datastore, Datastore, Api | None]:
    """The datastore of `dir:PATH`, `kubernetes` or `kubernetes:KUBECONFIG`, and its API server.

    The second one is the same for those who can't wait long for an answer.
    """
    kind, _, where = text.partition(":")
    if kind == "dir":
        folder = DirectoryStore(Path(where))
        return folder, folder, None
    # the client costs 30 MiB and 0.3 s: only those who use it pay
    from agent.cluster import api  # noqa: PLC0415
    from agent.cluster.kubernetes_store import KubernetesStore  # noqa: PLC0415

    load = partial(api.from_kubeconfig, Path(where)) if where else api.from_cluster
    server = api.Api(load)
    return KubernetesStore(server), KubernetesStore(api.Api(load, ADD_WAITS, WORKERS)), server


def servers(datastore: str) -> frozenset[Address]:
    """Return the addresses of the API server behind a datastore, as far as they are known; a folder has none."""
    kind, _, where = datastore.partition(":")
    if kind == "dir":
        return frozenset()
    from agent.cluster import server_address  # noqa: PLC0415 - see above

    return server_address.addresses(where)


def announcer(
    api: Api, view: NodeView, pod_events: PodEventQueue, problems: PartProblems
) -> Callable[[threading.Event], None]:
    """Return the thread that writes the node's condition and Events."""
    from agent.cluster.node_events import NodeEventWriter  # noqa: PLC0415

    return NodeEventWriter(api, view, pod_events, problems.report_error).run


def accounting(
    api: Api,
    seen: tuple[str, SnapshotCache, Observable[NodeStatus], AttachmentStore],
    board: ProblemBoard,
) -> dict[str, Callable[[threading.Event], None]]:
    """Return the threads that write for people which addresses are in use."""
    from agent.cluster.usage_objects import Usages  # noqa: PLC0415
    from agent.node.pool_status_writer import PoolStatusWriter  # noqa: PLC0415
    from agent.node.usage_writer import Seen, UsageWriter  # noqa: PLC0415

    usages, known = Usages(api), Seen(*seen)
    return {
        "usage": UsageWriter(usages, known, board.part("usage")).run,
        "pool-status": PoolStatusWriter(usages, known, board.part("pool-status")).run,
    }


def policies(api: Api, node: str, problems: PartProblems) -> NetworkPolicies:
    """Return the controller that looks for NetworkPolicies."""
    from agent.observe.network_policies import NetworkPolicies  # noqa: PLC0415

    return NetworkPolicies(api, node, problems.report_error)


def main(argv: list[str] | None = None, modes: Modes = BUILT_IN) -> int:
    """Exit codes: 0 stopped, 1 failed, 2 wrong options, 3 another agent serves on the run-dir."""
    try:
        conf = config.load(sys.argv[1:] if argv is None else argv, os.environ)
        logs.set_up(conf.log_level)
        agent = Agent(conf, Lock(conf.run_dir), modes)
    except ConfigError as error:
        print(f"testcni-agent: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    except BlockingIOError:
        print(f"testcni-agent: another agent serves on {conf.run_dir}", file=sys.stderr)  # noqa: T201
        return EXIT_BUSY
    except OSError as error:
        print(f"testcni-agent: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    agent.stop_on(signal.SIGTERM, signal.SIGINT)
    try:
        agent.run()
    except OSError:
        log.exception("the agent can't start")
        return EXIT_FAILED
    return EXIT_FAILED if agent.failed else 0
