"""The clock of loops, which a test can replace so that it need not sleep."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Returns the time, and waits for events."""

    def now(self) -> float:
        """Return the seconds since some fixed moment, as time.monotonic does."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event is set, at most so many seconds, and return whether it is set."""


class SystemClock:
    """The clock of the kernel."""

    def now(self) -> float:
        """Return the seconds since some fixed moment."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event is set, at most so many seconds, and return whether it is set."""
        return event.wait(seconds)


SYSTEM_CLOCK = SystemClock()
