"""A clock for controllers in tests: waiting takes no time, and what happens at a time is said beforehand."""

from __future__ import annotations

import threading
from collections.abc import Callable


class FakeClock:
    """Its time moves only while something waits."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._planned: list[tuple[float, Callable[[], None]]] = []

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` when something waits `seconds` after the start, or beyond."""
        self._planned.append((1000.0 + seconds, action))
        self._planned.sort(key=lambda planned: planned[0])

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return round(self.time - 1000.0, 6)

    def now(self) -> float:
        """The time."""
        return self.time

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Move the time on until the event is set by a planned action, or the wait is over."""
        end = self.time + seconds
        while not event.is_set() and self._planned and self._planned[0][0] <= end:
            when, action = self._planned.pop(0)
            self.time = max(self.time, when)
            action()
        if not event.is_set():
            self.time = end
        return event.is_set()
