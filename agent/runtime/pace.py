"""Limit how often a loop runs, as parts that wake each other must not do so at full speed."""

from __future__ import annotations

import threading
import time


class Pace:
    """So many turns at once, then one in so many seconds: for what others can make come again and again."""

    def __init__(self, at_once: int, every: float) -> None:
        self._most = self._left = float(at_once)
        self._every = every
        self._since = time.monotonic()
        self.spent = 0

    def spend(self) -> bool:
        """Whether there is a turn left; it is gone then."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._since) / self._every)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        self.spent += 1
        return True

    def wait(self, stop: threading.Event) -> None:
        """Spend a turn, when there is one or `stop` is set."""
        while not self.spend() and not stop.wait(max(0.001, (1 - self._left) * self._every)):
            pass


def pace() -> Pace:
    """The pace of each loop that others wake: parts may wake each other in a circle, but not at full speed."""
    return Pace(60, 1.0)
