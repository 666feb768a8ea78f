"""The loop that all controllers share: when it does a round, and what follows from how the round went."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from agent.model.problem_board import ProblemBoard
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable
from agent.runtime.shutdown import MustEndError
from tests.fake_clock import FakeClock


class Recorded(Controller):
    """Notes when it did a round, and ends after the last one that was asked for."""

    def __init__(
        self,
        schedule: Schedule,
        rounds: int,
        outcome: Callable[[int], bool] = lambda _number: True,
        wake_on: tuple[Observable[int], ...] = (),
    ) -> None:
        self.clock = FakeClock()
        self.board = ProblemBoard()
        self.problems = self.board.part("recorded")
        super().__init__(schedule, self.problems.report_error, wake_on, self.clock)
        self.at: list[float] = []
        self.resyncs: list[float] = []
        self.stop = threading.Event()
        self._rounds = rounds
        self._outcome = outcome

    def once(self) -> bool:
        self.at.append(self.clock.elapsed)
        if len(self.at) == self._rounds:
            self.stop.set()
        return self._outcome(len(self.at))

    def resync(self) -> None:
        self.resyncs.append(self.clock.elapsed)

    def rounds(self) -> list[float]:
        """Run to the end; seconds from the start to each round."""
        self.run(self.stop)
        return self.at


def publishing(source: Observable[int]) -> Callable[[int], bool]:
    """A round that changes what wakes it."""

    def outcome(number: int) -> bool:
        source.publish(number)
        return True

    return outcome


def test_nothing_wakes_it_so_it_does_a_round_each_resync_period() -> None:
    made = Recorded(Schedule(resync=5.0), rounds=3)
    assert made.rounds() == [5.0, 10.0, 15.0]
    assert made.resyncs == [5.0, 10.0, 15.0]


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_the_first_round_has_a_time_of_its_own(first: float) -> None:
    assert Recorded(Schedule(resync=5.0, first=first), rounds=2).rounds() == [first, first + 5.0]


def test_a_change_of_any_source_wakes_it() -> None:
    one, two = Observable(0), Observable(0)
    made = Recorded(Schedule(resync=30.0), 3, wake_on=(one, two))
    made.clock.at(1.0, lambda: one.publish(1))
    made.clock.at(2.0, lambda: one.publish(1))  # the same value is no change
    made.clock.at(3.0, lambda: two.publish(1))
    assert made.rounds() == [1.0, 3.0, 33.0]
    assert made.resyncs == [33.0], "only the last round is one that nothing asked for"


def test_changes_that_come_together_are_handled_together() -> None:
    source = Observable(0)
    made = Recorded(Schedule(resync=30.0, debounce=0.5), 2, wake_on=(source,))
    for at in (1.0, 1.2, 1.4):
        made.clock.at(at, lambda at=at: source.publish(at))  # type: ignore[misc]
    assert made.rounds() == [1.5, 32.0]


def test_a_change_during_a_round_brings_another_round() -> None:
    source = Observable(0)
    made = Recorded(Schedule(resync=30.0), 2, publishing(source), (source,))
    made.clock.at(1.0, made.wake)
    assert made.rounds() == [1.0, 1.0]


def test_failed_rounds_are_retried_after_longer_and_longer_pauses() -> None:
    made = Recorded(Schedule(resync=30.0, first=0.0, backoff=(0.5, 3.0)), 8, lambda number: number in (5, 7))
    assert made.rounds() == [0.0, 0.5, 1.5, 3.5, 6.5, 36.5, 37.0, 67.0]


def test_a_wake_up_ends_a_backoff() -> None:
    made = Recorded(Schedule(resync=30.0, first=0.0, backoff=(10.0, 10.0)), 2, lambda _number: False)
    made.clock.at(4.0, made.wake)
    assert made.rounds() == [0.0, 4.0]


def test_many_failures_do_not_overflow() -> None:
    made = Recorded(Schedule(resync=1.0, first=0.0, backoff=(1.0, 2.0)), 2000, lambda _number: False)
    assert made.rounds()[-1] >= 2 * 1998


def test_a_subclass_may_say_when_the_next_round_is() -> None:
    class Sooner(Recorded):
        def pause(self) -> float:
            return 2.0

    assert Sooner(Schedule(resync=30.0), 3).rounds() == [30.0, 32.0, 34.0]


def test_controllers_that_wake_themselves_keep_their_pace() -> None:
    source = Observable(0)
    made = Recorded(Schedule(resync=30.0, first=0.0), 63, publishing(source), (source,))
    made.rounds()
    assert made.at[:60] == [0.0] * 60
    assert made.at[60:] == pytest.approx([1.0, 2.0, 3.0], abs=0.01)
    assert made.pace.spent == 63


def test_a_stopped_controller_does_no_round() -> None:
    made = Recorded(Schedule(resync=30.0), 1)
    made.clock.at(1.0, made.stop.set)
    made.clock.at(1.0, made.wake)
    assert made.rounds() == []


def test_an_unexpected_error_is_logged_once_reported_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    def outcome(number: int) -> bool:
        if number < 4:
            raise ValueError("odd input")
        return True

    made = Recorded(Schedule(resync=30.0, first=0.0, backoff=(1.0, 1.0)), 5, outcome)
    told: list[str] = []
    made.board.listen(lambda: told.append(str(*made.board.all())))
    with caplog.at_level(logging.ERROR):
        assert made.rounds() == [0.0, 1.0, 2.0, 3.0, 33.0]
    (record,) = caplog.records
    assert record.exc_info is not None, "the trace is in the log"
    assert len(told) == 2
    assert told[0].startswith("recorded: internal error, it is retried: ValueError: odd input; a bug of testcni")
    assert told[1] == "", "it goes with the next round that has none"


def test_a_part_that_must_end_ends_the_loop() -> None:
    def outcome(number: int) -> bool:
        raise MustEndError(f"round {number}")

    with pytest.raises(MustEndError, match="round 1"):
        Recorded(Schedule(resync=1.0), 9, outcome).rounds()
