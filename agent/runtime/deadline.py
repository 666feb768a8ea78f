"""One point in time that all waits of a call share."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on the clock of time.monotonic."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that is so many seconds from now."""
        return cls(time.monotonic() + seconds)

    def within(self, seconds: float) -> Deadline:
        """Return the deadline of one wait: so many seconds from now, but not later than this deadline."""
        return Deadline(min(self.at, time.monotonic() + seconds))

    def earlier(self, seconds: float) -> Deadline:
        """Return a deadline that leaves so many seconds of this one for a later step."""
        return Deadline(self.at - seconds)

    @property
    def left(self) -> float:
        """How many seconds are left, 0 once it has passed."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self.at


PAST = Deadline(0.0)
"""For what must not wait at all."""
