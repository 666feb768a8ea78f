"""Restore what the run-dir must hold while an agent serves: its lock, its socket and the files of pods.

A cleaner of /run may remove any of them. Without the socket no call arrives, without the lock a second agent may
start, and without the files the next agent would give addresses of running pods to others.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

from agent.model.problem_board import PartProblems
from agent.runtime.controller import Controller, Schedule
from agent.runtime.shutdown import MustEndError

SCHEDULE = Schedule(resync=1.0)  # an ADD waits longer for the socket

log = logging.getLogger(__name__)


class Lock:
    """The lock that only one agent at a time has on a run-dir."""

    def __init__(self, run_dir: Path) -> None:
        """Take the lock. Raises BlockingIOError when another agent has it, OSError."""
        self._path = run_dir / "agent.lock"
        self._fd = _locked(self._path)

    def keep(self) -> None:
        """Take the lock again if its file was removed. Raises MustEndError, OSError."""
        try:
            if os.path.samestat(self._path.stat(), os.fstat(self._fd)):
                return
        except FileNotFoundError:
            pass
        try:
            self._fd, old = _locked(self._path), self._fd
        except BlockingIOError as error:
            raise MustEndError(f"{self._path} was removed, and another agent has the lock now") from error
        os.close(old)
        log.warning("%s was removed, and is made again", self._path)


def _locked(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


class RunDir(Controller):
    """Restores what is removed from the run-dir."""

    def __init__(self, problems: PartProblems, *keepers: Callable[[], None]) -> None:
        """`keepers`: each restores one thing if it is missing, and may raise OSError."""
        super().__init__(SCHEDULE, problems.report_error)
        self._keepers = keepers

    def once(self) -> bool:
        """Restore what is missing; what fails is retried by the next round. Raises MustEndError."""
        for keep in self._keepers:
            try:
                keep()
            except OSError as error:
                log.error("what was removed from the run-dir can't be made again: %s", error)
        return True
