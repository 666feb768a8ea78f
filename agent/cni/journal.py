"""The plugin's journal of DELs that came while no agent was there: replayed before anything else is served."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent.cni import protocol
from agent.cni.protocol import Call
from agent.errors import CniError, Code

ABANDONED = 60.0  # seconds; a plugin writes for milliseconds
EVERY = 1.0  # seconds: a DEL may have been journaled just as the agent came up

log = logging.getLogger(__name__)


class Journal:
    """The folder of journaled DELs; an entry goes when its DEL is done."""

    def __init__(self, state_dir: Path, delete: Callable[[Call], object]) -> None:
        self._dir = state_dir / "deletes"
        self._delete = delete
        self._lock = threading.Lock()
        self._failing: set[Path] = set()

    def prepare(self) -> None:
        """Make the folder, and clear away what plugins that were killed left half-written. Raises OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._dir.glob(".*"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()

    def replay(self) -> int:
        """Do every DEL that is due, the oldest first; how many were done. Those that fail stay."""
        try:
            if not any(self._dir.iterdir()):
                return 0
            with self._lock:
                return sum(self._replay(path) for path in sorted(self._dir.glob("[!.]*.json")))
        except OSError as error:  # a journal out of reach must not keep pods from starting
            log.error("the journal %s can't be replayed: %s", self._dir, error)
            return 0

    def waiting(self) -> int:
        """How many DELs are still to be done. Raises OSError."""
        return sum(path.suffix == ".json" and path.name[0] != "." for path in self._dir.iterdir())

    def run(self, stop: threading.Event) -> None:
        """Replay again and again until `stop` is set."""
        while not stop.wait(EVERY):
            self.replay()

    def _replay(self, path: Path) -> bool:
        try:
            call = protocol.decode(path.read_bytes(), None)
            if call.command != "DEL":
                raise CniError(Code.DECODING_FAILURE, f"a journal of DELs has no {call.command!r}")
        except CniError as error:
            log.error("%s is no journaled DEL and is set aside as .rejected: %s", path, error)
            path.rename(path.with_suffix(".rejected"))
            return False
        try:
            self._delete(call)
        except CniError as error:
            if error.code in (Code.DECODING_FAILURE, Code.INVALID_ENVIRONMENT):
                log.error("%s can never be done and is set aside as .rejected: %s", path, error)
                path.rename(path.with_suffix(".rejected"))
                return False
            if path not in self._failing:
                log.warning("the journaled DEL %s failed and is tried again: %s", path, error)
            self._failing.add(path)
            return False
        path.unlink(missing_ok=True)
        self._failing.discard(path)
        return True
