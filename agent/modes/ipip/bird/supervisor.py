"""Keep BIRD running with the wanted configuration, and publish its status."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import tenacity

from agent.kernel import netlink
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.ipip.bird import control, daemon, kernel_routes, logs, render, session_checks
from agent.modes.ipip.bird.control import ControlError
from agent.modes.ipip.bird.daemon import Daemon, Files
from agent.modes.ipip.bird.hang_check import DiedError, HangCheck
from agent.modes.ipip.bird.restart_guard import Recovery
from agent.modes.ipip.bird.types import MAIN_TABLE, METRIC, BirdConfig, BirdError, BirdStatus, BirdTimes, State
from agent.runtime.observable import Observable

BACKOFF = (0.1, 10.0)  # seconds before BIRD is started again, first and longest
RECOVERING = 0.1  # seconds between two looks whether it has recovered
LOOK = (1.0, 5.0)  # seconds between two looks: while sessions are missing, and while all are established

log = logging.getLogger(__name__)


class Supervisor:
    """Supervises BIRD, started by this agent or an earlier one; all in the thread of `run`."""

    def __init__(
        self,
        folder: Path,
        problems: PartProblems | None = None,
        program: str = "bird",
        times: BirdTimes | None = None,
    ) -> None:
        self._times = times = times or BirdTimes()
        self.status: Observable[BirdStatus] = Observable(BirdStatus())
        self.problems = problems or PartProblems("bird")
        self._files = Files(folder, times.answer)
        self._program = program
        self._wanted: BirdConfig | None = None
        self._told = False
        self._since = 0.0
        self._applied: BirdConfig | None = None
        self._recovery: Recovery | None = None
        self._refused: Problem | None = None
        self._health = session_checks.Health(times.session)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop = threading.Event()
        self._log = -1

    def want(self, config: BirdConfig | None) -> None:
        """Set the configuration; None: no BIRD, no routes of it. Before the first call, BIRD goes on as it was."""
        if self._told and config == self._wanted:
            return
        self._since = time.monotonic()
        self._wanted, self._told = config, True
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Make `run` return at once."""
        self._stop.set()
        os.eventfd_write(self._wake, 1)

    def run(self, stop: threading.Event) -> None:
        """Supervise until `stop` is set; BIRD goes on, and the next agent adopts it."""
        self._stop = stop
        while not stop.is_set():
            try:
                self._retrying()(self._once)
            except (BirdError, OSError) as error:  # an end after a long life, or the agent stops
                if not stop.is_set():
                    log.warning("%s", error)

    def _prepare(self) -> None:
        """Make the folder and the pipe, and start the thread that reads the pipe."""
        self._files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._log < 0:
            self._log = logs.open_pipe(self._files.log)
            threading.Thread(
                target=logs.follow, args=(self._log, self._stop), name="bird-log", daemon=True
            ).start()

    def _retrying(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda e: isinstance(e, BirdError | OSError) and not (isinstance(e, DiedError) and e.lived_long)
            ),
            wait=tenacity.wait_exponential(multiplier=BACKOFF[0], max=BACKOFF[1]),
            stop=lambda _state: self._stop.is_set(),
            sleep=self._pause,
            before_sleep=self._tell,
            reraise=True,
        )

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        problem = (
            error.problem() if isinstance(error, BirdError) else Problem("bird", str(error), "it is tried again")
        )
        if problem not in self.status.get().problems:
            log.warning("%s", problem)
        self._publish(BirdStatus(starts=self.status.get().starts, problems=(problem,)))

    def _once(self) -> None:
        """Run BIRD until it ends or is not wanted any more, or remove it."""
        wanted = self._wanted
        if not self._told:
            self._stand_by()
        elif wanted:
            self._live(wanted)
        elif time.monotonic() - self._since < self._times.retire:
            self._pause(self._times.retire - (time.monotonic() - self._since))
        else:
            self._retire()
            self._pause(None)

    def _stand_by(self) -> None:
        """Keep an earlier agent's BIRD until the first `want`, which may take long.

        If it must be started, it does not change routes in the kernel. Raises DiedError.
        """
        if not self._files.standby.exists():
            self._pause(None)
            return
        version = daemon.version(self._program)
        self._prepare()
        found = daemon.find(self._files)
        if not found:
            daemon.restore(self._files)
        running = found[0] if found else self._launch(recover=True)
        try:
            watched = HangCheck(running, self._times.hung)
            while not self._told and not self._stop.is_set():
                watched.check_alive()
                self._publish(status := self._look(running, version))
                watched.end_if_hung(answers=status.running)
                self._pause(LOOK[status.running], running.fd)
        finally:
            running.forget()

    def _live(self, wanted: BirdConfig) -> None:
        version = daemon.version(self._program)
        self._prepare()
        running = self._adopt(version, wanted) or self._start(wanted)
        try:
            self._watch(running, version)
            if not self._stop.is_set():
                daemon.dismiss(running)
        finally:
            running.forget()

    def _adopt(self, version: str, wanted: BirdConfig) -> Daemon | None:
        found = daemon.find(self._files)
        if not found:
            return None
        running, its = found
        if its == version:
            log.info("adopted the BIRD %s of pid %d", version, running.pid)
            self._applied = None  # its configuration is unknown
            with self._files.control() as connection:
                if any(p.kind == "Kernel" and p.state == "down" for p in connection.protocols()):
                    self._recovery = _begin_recovery(wanted)
            return running
        log.info("replacing the BIRD of pid %d: it %s", running.pid, f"is {its}" if its else "does not answer")
        daemon.replace(running, self._files)
        running.forget()
        return None

    def _start(self, wanted: BirdConfig) -> Daemon:
        self._recovery = _begin_recovery(wanted)
        recover = self._recovery is not None
        self._write(wanted, kernel=not recover)
        self._applied, self._refused = wanted, None
        return self._launch(recover=recover)

    def _write(self, wanted: BirdConfig, *, kernel: bool) -> None:
        """Write both configurations: the one in force, and the one for an agent that has no `want` yet."""
        standby = render.render(wanted, kernel=False)
        text = render.render(wanted, kernel=True) if kernel else standby
        daemon.write(self._program, self._files, text, standby)

    def _launch(self, *, recover: bool) -> Daemon:
        started = daemon.start(self._program, self._files, recover=recover, log_to=self._log)
        self.status.update(lambda status: replace(status, starts=status.starts + 1))
        log.info("BIRD started, pid %d%s", started.pid, ", keeping the routes in the kernel" if recover else "")
        try:
            daemon.wait_for_socket(started, self._files)
        except BirdError:
            started.signal(signal.SIGKILL)
            started.wait(daemon.END_WITHIN)
            started.forget()
            raise
        return started

    def _watch(self, running: Daemon, version: str) -> None:
        """Watch BIRD until it is not wanted any more, or the agent stops. Raises DiedError."""
        watched = HangCheck(running, self._times.hung)
        while not self._stop.is_set() and (wanted := self._wanted or self._kept()):
            watched.check_alive()
            if self._recovery and self._is_recovered(self._recovery):
                self._recovery, self._applied = None, None
            self._apply(wanted)
            status = self._look(running, version, self._applied or wanted)
            self._publish(status)
            watched.end_if_hung(answers=status.running)
            self._pause(RECOVERING if self._recovery else LOOK[self._is_calm(status)], running.fd)

    def _is_recovered(self, recovery: Recovery) -> bool:
        try:
            with self._files.control() as connection:
                protocols, busy, known = connection.protocols(), connection.is_busy(), connection.routes()
        except ControlError:
            return False
        settled = not busy and all(p.bgp in (None, State.ESTABLISHED) for p in protocols)
        over = recovery.is_over(known, time.monotonic(), settled=settled)
        if over:
            log.info(
                "BIRD has recovered: it knows %d of %d old routes",
                len(recovery.routes & known),
                len(recovery.routes),
            )
        return over

    def _kept(self) -> BirdConfig | None:
        """Return the configuration that is kept for a moment though it is not wanted: that may change at once."""
        return self._applied if time.monotonic() - self._since < self._times.retire else None

    def _apply(self, wanted: BirdConfig) -> None:
        """Configure BIRD; if it refuses, the earlier configuration stays in force."""
        if wanted == self._applied:
            self._refused = None  # the refused configuration is not wanted any more
            return
        try:
            self._write(wanted, kernel=not self._recovery)
            with self._files.control(change=True) as connection:
                connection.configure()
        except BirdError as error:
            self._refused = error.problem()
        except OSError as error:
            self._refused = Problem("bird", f"not configured: {error}", "it is tried again")
        else:
            self._applied, self._refused = wanted, None
            log.info("BIRD configured: %d nodes, %d external peers", len(wanted.peers), len(wanted.externals))

    def _look(self, running: Daemon, version: str, config: BirdConfig | None = None) -> BirdStatus:
        """Return the status of BIRD; without its configuration that of its sessions is unknown."""
        refused = (self._refused,) if self._refused else ()
        starts = self.status.get().starts
        try:
            with self._files.control() as connection:
                protocols = connection.protocols()
        except ControlError as error:
            silent = Problem("bird", f"does not answer: {error}", "it is asked again; its routes stay")
            return BirdStatus(version=version, pid=running.pid, starts=starts, problems=(silent, *refused))
        sessions = control.sessions(protocols, render.symbols(config)) if config else ()
        late = self._health.problems(config, sessions, time.monotonic()) if config else ()
        return BirdStatus(
            running=True,
            version=version,
            pid=running.pid,
            starts=starts,
            sessions=sessions,
            kernel_routes=sum(p.exported for p in protocols if p.kind == "Kernel"),
            problems=(*refused, *late),
        )

    def _is_calm(self, status: BirdStatus) -> bool:
        return not status.problems and not self._health.waiting and self._wanted == self._applied

    def _retire(self) -> None:
        """Remove BIRD, its routes, and its passwords on disk."""
        if not self._files.folder.exists():  # no BIRD has run since the node started
            return
        old = self._applied
        _, gone = retire(self._files, old.table if old else MAIN_TABLE, old.metric if old else METRIC)
        self._applied = None
        self._publish(BirdStatus(starts=self.status.get().starts))
        log.info("BIRD is not wanted: %d routes of it removed", gone)

    def _publish(self, status: BirdStatus) -> None:
        self.status.publish(status)
        self.problems.publish({str(problem): problem for problem in status.problems})

    def _pause(self, seconds: float | None, *also: int) -> None:
        """Wait until `want` is called, one of `also` is readable, or `seconds` are over."""
        select.select([self._wake, *also], [], [], seconds)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return


def retire(files: Files, table: int = MAIN_TABLE, metric: int = METRIC) -> tuple[bool, int]:
    """End BIRD permanently, and remove its routes and the passwords on disk.

    Return whether it ran, and the number of removed routes. Raises OSError, and BirdError if another process holds
    its socket.
    """
    found = daemon.find(files)
    if found:
        daemon.dismiss(found[0])
        found[0].forget()
    for path in files.folder.glob("bird.conf*"):  # also refused and incomplete ones
        path.unlink(missing_ok=True)
    return bool(found), kernel_routes.flush(netlink.host(), table, metric)


def _begin_recovery(wanted: BirdConfig) -> Recovery | None:
    """Return what to wait for if an earlier BIRD has left routes in the kernel. Raises OSError."""
    held = kernel_routes.read(netlink.host(), wanted.table, wanted.metric)
    routes = frozenset(route.dst for route in held if route.unicast)
    return Recovery(routes, time.monotonic()) if routes else None
