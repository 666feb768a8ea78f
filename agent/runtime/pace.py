"""Limit how often a loop runs, as loops may wake each other in a circle."""

from __future__ import annotations

import threading

from agent.runtime.clock import SYSTEM_CLOCK, Clock


class Pace:
    """A token bucket: `at_once` turns without a wait, then one turn every `every` seconds."""

    def __init__(self, at_once: int, every: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._most = self._left = float(at_once)
        self._every = every
        self._clock = clock
        self._since = clock.now()
        self.spent = 0
        """The number of turns that were taken so far."""

    def spend(self) -> bool:
        """Take a turn if there is one left, and return whether there was."""
        now = self._clock.now()
        self._left = min(self._most, self._left + (now - self._since) / self._every)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        self.spent += 1
        return True

    def wait(self, stop: threading.Event) -> None:
        """Take a turn as soon as there is one; return without one when `stop` is set."""
        while not self.spend() and not self._clock.wait(stop, max(0.001, (1 - self._left) * self._every)):
            pass
