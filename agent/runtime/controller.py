"""The loop that all controllers of the agent share: wait, do a round, retry with longer and longer pauses."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.pace import Pace
from agent.runtime.shutdown import MustEndError

ROUNDS_AT_ONCE, ROUND_EVERY = 60, 1.0  # controllers may wake each other in a circle, but not at full speed
LARGEST_EXPONENT = 16  # of a backoff: 2.0**1024 would overflow

log = logging.getLogger(__name__)

ReportError = Callable[[Exception | None], None]
"""Takes the unexpected error of a round, and None after a round without one."""


class Source(Protocol):
    """Something that can wake a controller, such as an Observable."""

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times of a controller's rounds, in seconds."""

    resync: float
    """The time from a successful round to the next one, when nothing wakes the controller."""
    first: float | None = None
    """The time from the start to the first round, when nothing wakes the controller; None: `resync`."""
    backoff: tuple[float, float] = (0.5, 10.0)
    """The time from a failed round to the next: after the first failure, and at most. It doubles in between."""
    debounce: float = 0.0
    """The time from a wake-up to its round, so that changes that come together are handled together."""


class Controller(ABC):
    """A loop in a thread of its own that compares what should be with what is.

    A subclass implements `once`. A round that raises an unexpected exception is logged with its trace, reported
    and retried, as a restarted agent would get the same input again. A MustEndError ends the agent.
    """

    def __init__(
        self,
        schedule: Schedule,
        report_error: ReportError,
        wake_on: Iterable[Source] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.pace = Pace(ROUNDS_AT_ONCE, ROUND_EVERY, clock)
        self._schedule = schedule
        self._report_error = report_error
        self._clock = clock
        self._wake = threading.Event()
        self.failures = 0
        """The number of rounds that have failed since the last one that succeeded."""
        self._logged = ""
        """The last unexpected error: the same one is logged only once."""
        for source in wake_on:
            source.listen(self.wake)

    @abstractmethod
    def once(self) -> bool:
        """Do one round; return False when it failed and is to be retried. Raises MustEndError."""

    def wake(self) -> None:
        """Have a round done soon."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Do rounds until `stop` is set; `wake` makes it look at `stop` at once. Raises MustEndError."""
        first = self._schedule.first
        pause = self._schedule.resync if first is None else first
        while not stop.is_set():
            if not self._clock.wait(self._wake, pause):
                self.resync()
            if self._schedule.debounce and self._clock.wait(stop, self._schedule.debounce):
                return
            self.pace.wait(stop)
            if stop.is_set():
                return
            self._wake.clear()  # before the round: later changes are for the next round
            pause = self.round()

    def round(self) -> float:
        """Do one round, and return the seconds to the next one if nothing wakes the loop. Raises MustEndError."""
        if self._succeeds():
            self.failures = 0
            return self.pause()
        self.failures += 1
        first, longest = self._schedule.backoff
        return min(longest, first * 2.0 ** min(self.failures - 1, LARGEST_EXPONENT))

    def resync(self) -> None:  # noqa: B027 - most controllers do the same in each round
        """Prepare a round that no wake-up has requested."""

    def pause(self) -> float:
        """Return the seconds to the next round after a successful one."""
        return self._schedule.resync

    def _succeeds(self) -> bool:
        """Do one round and return whether it succeeded. Raises MustEndError."""
        try:
            succeeded = self.once()
        except MustEndError:
            raise
        except Exception as error:
            if self._logged != (text := f"{type(error).__name__}: {error}"):
                log.exception("a round failed unexpectedly")
                self._logged = text
            self._report_error(error)
            return False
        self._logged = ""
        self._report_error(None)
        return succeeded
