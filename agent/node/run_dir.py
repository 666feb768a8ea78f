"""What the run-dir must hold while an agent serves: its lock, its socket and the pods' files.

A cleaner of /run may remove any of them. Without the socket no call arrives, without the lock a second agent may
start, and without the files the next agent would give addresses of running pods to others.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from agent.errors import MustEndError

LOOK = 1.0  # seconds between two looks; an ADD waits longer for the socket

log = logging.getLogger(__name__)


class Lock:
    """The lock that says that one agent serves on this run-dir."""

    def __init__(self, run_dir: Path) -> None:
        """Take it. Raises BlockingIOError when another agent has it, OSError."""
        self._path = run_dir / "agent.lock"
        self._fd = _locked(self._path)

    def keep(self) -> None:
        """Take it again where its file is gone. Raises MustEndError, OSError."""
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
        log.warning("%s was removed: it is there again", self._path)


def _locked(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


class RunDir:
    """Puts back what is removed there. `keepers` each look at one thing and may raise OSError."""

    def __init__(self, *keepers: Callable[[], None]) -> None:
        self._keepers = keepers

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set. Raises MustEndError."""
        while not stop.wait(LOOK):
            self.once()

    def once(self) -> None:
        """One look; what can't be put back is tried again. Raises MustEndError."""
        for keep in self._keepers:
            try:
                keep()
            except OSError as error:
                log.error("what was removed from the run-dir can't be made anew: %s", error)
