"""Run the steps of a plan: lanes side by side, and for each tier a log and its seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.ci.plan import Lane, Tier

LATE = 124  # the exit code of a tier that was ended, as of timeout(1)
ENDS_WITHIN = 30.0  # seconds that a tier has to end its own processes
LOOKED_AT = 0.2  # seconds between two looks at a log


class Runner:
    """Runs tiers until `end` (seconds of time.monotonic), and shows the output of each when it has ended."""

    def __init__(self, folder: Path, end: float, least: float, background: Sequence[str] = ()) -> None:
        self._folder, self._end, self._least, self._background = folder, end, least, background
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self.failed: list[str] = []
        """The commands of the tiers that failed."""

    def step(self, lanes: Sequence[Lane]) -> bool:
        """Run the lanes of a step and return whether no tier has failed so far."""
        measured = threading.Event()
        if not any(tier.alone_until for lane in lanes for tier in lane.tiers):
            measured.set()
        beside = sum(min(lane.slots, len(lane.tiers)) for lane in lanes)
        with ThreadPoolExecutor(beside) as pool:
            done = [
                pool.submit(self._work, left, lane.background, measured, beside)
                for lane, left in ((lane, iter(lane.tiers)) for lane in lanes)
                for _slot in range(min(lane.slots, len(lane.tiers)))
            ]
        for each in done:
            each.result()  # an error of this program ends it
        return not self.failed

    def stop(self) -> None:
        """End the tiers that run; none begins after that."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            end(process)

    def _work(self, left: Iterator[Tier], background: bool, measured: threading.Event, beside: int) -> None:
        while tier := self._next(left):
            if not tier.alone_until:
                measured.wait()
            prefix = self._background if background else ()
            number = 1 if tier.alone_until else beside
            try:
                self._run(tier, prefix, number, measured)
            except OSError as error:
                self._note(tier, f"could not run: {error}", passed=False)
            finally:
                if tier.alone_until:
                    measured.set()

    def _next(self, left: Iterator[Tier]) -> Tier | None:
        """Return the next tier of a lane; a slot of the lane takes it."""
        with self._lock:
            return None if self._stopped else next(left, None)

    def _run(self, tier: Tier, prefix: Sequence[str], beside: int, measured: threading.Event) -> None:
        if tier.optional and self._end - time.monotonic() < self._least:
            self._say(f"LEFT OUT: {tier.command}")
            return
        self._say(f"begins: {tier.command}")
        log, began = self._folder / tier.log, time.monotonic()
        with (
            log.open("wb") as out,
            self._process([*prefix, *tier.command.split()], out.fileno(), beside) as process,
        ):
            code = self._wait(process, tier, log, measured)
        with (self._folder / "seconds").open("a") as file:
            file.write(f"{time.monotonic() - began:.0f} {tier.command}\n")
        late = code == LATE
        self._note(
            tier,
            f"ended with {code}" + (": no time was left" if late else ""),
            passed=code == 0 or (late and tier.optional),
            output=log.read_text(errors="replace"),
        )

    @contextmanager
    def _process(self, argv: Sequence[str], out: int, beside: int) -> Iterator[subprocess.Popen[bytes]]:
        environment = {**os.environ, "SIDE_BY_SIDE": str(beside)}
        with self._lock:  # `stop` finds each process that has been started
            if self._stopped:
                raise InterruptedError("the run was stopped")
            # in a session of its own: the scheduler shares the processors among sessions (sched(7), autogroup)
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
            )
            self._running.add(process)
        try:
            yield process
        finally:
            end(process)
            with self._lock:
                self._running.remove(process)

    def _wait(self, process: subprocess.Popen[bytes], tier: Tier, log: Path, measured: threading.Event) -> int:
        """Wait for a tier, and say when it has measured what it has to measure alone."""
        while time.monotonic() < self._end:
            try:
                return process.wait(LOOKED_AT)
            except subprocess.TimeoutExpired:
                if (
                    tier.alone_until
                    and not measured.is_set()
                    and tier.alone_until in log.read_text(errors="replace")
                ):
                    measured.set()
        return LATE

    def _note(self, tier: Tier, text: str, *, passed: bool, output: str = "") -> None:
        with self._lock:
            if not passed:
                self.failed.append(tier.command)
        self._say(f"{text}: {tier.command}", output, *([] if passed else [f"FAILED: {tier.command}"]))

    def _say(self, text: str, *more: str) -> None:
        with self._lock:
            print(f"== after {time.monotonic() - self._began:.0f} s {text}", *more, sep="\n", flush=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process group of a tier: politely at first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            continue
