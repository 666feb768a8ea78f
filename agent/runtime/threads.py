"""The threads of the agent's parts: the agent ends when one of them fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Protocol

from agent.runtime.shutdown import MustEndError, Shutdown

log = logging.getLogger(__name__)


class Part(Protocol):
    """A part of the agent that runs in a thread of its own."""

    def run(self, stop: threading.Event) -> None:
        """Run until `stop` is set."""


class PartThreads:
    """Runs each part in a thread, and ends the agent when a part fails: without it the agent would not work."""

    def __init__(self, shutdown: Shutdown) -> None:
        self.failed = False
        """Whether a part has failed."""
        self.all: list[threading.Thread] = []
        self._shutdown = shutdown
        self._stop = threading.Event()

    def start(self, parts: Mapping[str, Part]) -> None:
        """Start a thread for each part, with the part's name."""
        for name, part in parts.items():
            thread = threading.Thread(target=self._run, args=(name, part), name=name, daemon=True)
            self.all.append(thread)
            thread.start()

    def stop(self) -> None:
        """Ask all parts to end."""
        self._stop.set()

    def _run(self, name: str, part: Part) -> None:
        try:
            part.run(self._stop)
        except MustEndError as error:
            log.error("%s: %s", name, error)
        except Exception:
            log.exception("%s ended unexpectedly, so the agent ends", name)
        else:
            return
        self.failed = True
        self._shutdown.now()
