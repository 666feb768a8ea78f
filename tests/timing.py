"""Times on machines that are busy with something else now and then."""

from __future__ import annotations

import time
from collections.abc import Callable


def in_time(turn: Callable[[int], bool], turns: int = 3) -> None:
    """Hold a time that is promised: a turn that took longer is tried again, as noise only adds.

    `turn` gets its number, from 0, and says whether it was in time.
    """
    assert any(turn(number) for number in range(turns)), f"never in time in {turns} turns"


class Starved:
    """Stands for the module `time` in a thread that gets the processor only so many seconds after it asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def monotonic(self) -> float:
        """The time, when it is this thread's turn again."""
        time.sleep(self._seconds)
        return time.monotonic()
