"""The board of all parts' problems."""

from __future__ import annotations

from agent.model.problem import Problem
from agent.model.problem_board import PartProblems, ProblemBoard

ONE, TWO = Problem("one", "is wrong", "fix it"), Problem("two", "is wrong", "fix it")


def test_parts_post_under_their_own_names_and_are_read_in_their_order() -> None:
    board = ProblemBoard()
    first, second = board.part("first"), board.part("second")
    second.publish({"key": TWO})
    first.publish({"key": ONE})
    assert board.all() == (ONE, TWO)
    first.publish({})
    assert (board.all(), first.get(), second.get()) == ((TWO,), {}, {"key": TWO})


def test_only_a_change_wakes_those_who_listen() -> None:
    board, woken = ProblemBoard(), []
    part = board.part("part")
    board.listen(lambda: woken.append(board.all()))
    part.publish({})
    part.publish({"key": ONE})
    part.publish({"key": ONE})
    part.update(lambda known: {**known, "more": TWO})
    assert woken == [(ONE,), (ONE, TWO)]


def test_two_that_share_a_part_change_the_same_problems() -> None:
    board = ProblemBoard()
    one, same = board.part("part"), board.part("part")
    one.publish({"key": ONE})
    same.update(lambda known: {**known, "more": TWO})
    assert board.all() == (ONE, TWO)


def test_an_unexpected_error_is_a_problem_until_there_is_none() -> None:
    part = PartProblems("part")
    part.publish({"key": ONE})
    part.report_error(ValueError("odd"))
    assert [str(problem) for problem in part.get().values()] == [
        str(ONE),
        "part: internal error, it is retried: ValueError: odd; a bug of testcni; its log has the trace",
    ]
    part.report_error(None)
    part.report_error(None)
    assert part.get() == {"key": ONE}


def test_the_name_of_a_file_cannot_move_the_cursor_or_begin_a_line() -> None:
    problem = Problem("/cluster/\x1b[31m\nproblem \x9b \u2028 \udcff é.yaml", "nft:\n\tno\x1b", "fix it")
    assert str(problem) == ("/cluster/\\x1b[31m\\nproblem \\x9b \\u2028 \\udcff é.yaml: nft:\n\tno\\x1b; fix it")
