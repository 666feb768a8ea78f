"""Notice that a running BIRD has ended or hangs. Either way it is started again, and its routes stay."""

from __future__ import annotations

import logging
import signal
import time

from agent.modes.ipip.bird.daemon import Daemon
from agent.modes.ipip.bird.types import BirdError

LIVED_LONG = 30.0  # seconds after which an end does not count as repeated

log = logging.getLogger(__name__)


class DiedError(BirdError):
    """BIRD has ended by itself."""

    def __init__(self, what: str, *, lived_long: bool) -> None:
        super().__init__(what, "it is started again; its routes stay")
        self.lived_long = lived_long


class HangCheck:
    """Checks one BIRD, from the moment when it is made."""

    def __init__(self, running: Daemon, hung: float) -> None:
        """`hung`: the seconds without an answer after which BIRD is killed."""
        self._running = running
        self._hung = hung
        self._began = time.monotonic()
        self._silent_since: float | None = None

    def check_alive(self) -> None:
        """Raise DiedError if BIRD has ended."""
        if not self._running.is_alive():
            self._running.wait(0)
            lived = time.monotonic() - self._began
            raise DiedError(f"BIRD {self._running.how_it_ended()}", lived_long=lived > LIVED_LONG)

    def end_if_hung(self, *, answers: bool) -> None:
        """Kill BIRD if it has not answered for too long. `answers`: whether it has answered just now."""
        now = time.monotonic()
        if answers:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > self._hung:
            log.error("BIRD has not answered for %.0f s and is killed", self._hung)
            self._running.signal(signal.SIGKILL)
