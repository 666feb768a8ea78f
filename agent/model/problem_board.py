"""The board where each part of the agent posts its problems, and the node path reads all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.model.problem import Problem
from agent.runtime.observable import Observable

INTERNAL = "internal error"
"""The key of the problem that a part's unexpected error is."""


class ProblemBoard:
    """All problems by part and key. Parts are in the order in which they were added."""

    def __init__(self) -> None:
        self._posted: Observable[Mapping[str, Mapping[str, Problem]]] = Observable({})

    def part(self, name: str) -> PartProblems:
        """Add a part, and return its place on the board."""
        self._posted.update(lambda posted: {**posted, name: {}} if name not in posted else posted)
        return PartProblems(name, self._posted)

    def all(self) -> tuple[Problem, ...]:
        """Return all problems."""
        return tuple(problem for problems in self._posted.get().values() for problem in problems.values())

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change, in the thread of the part that made it."""
        self._posted.listen(listener)


class PartProblems:
    """The problems of one part, by keys that the part chooses."""

    def __init__(self, name: str, posted: Observable[Mapping[str, Mapping[str, Problem]]] | None = None) -> None:
        """`posted`: the problems of all parts; None: this part is on no board."""
        self._name = name
        self._posted = posted or Observable({})

    def get(self) -> Mapping[str, Problem]:
        """Return the part's problems now."""
        return self._posted.get().get(self._name, {})

    def publish(self, problems: Mapping[str, Problem]) -> None:
        """Replace the part's problems."""
        self.update(lambda _old: problems)

    def update(self, change: Callable[[Mapping[str, Problem]], Mapping[str, Problem]]) -> None:
        """Replace the part's problems by what `change` makes of them; nothing is woken when they stay the same."""
        self._posted.update(lambda posted: {**posted, self._name: change(posted.get(self._name, {}))})

    def report_error(self, error: Exception | None) -> None:
        """Post an unexpected error of the part, or remove it when there is none any more."""
        if error is None:
            if INTERNAL in self.get():
                self.update(lambda known: {key: one for key, one in known.items() if key != INTERNAL})
            return
        what = f"internal error, it is retried: {type(error).__name__}: {error}"
        problem = Problem(self._name, what, "a bug of testcni; its log has the trace")
        self.update(lambda known: {**known, INTERNAL: problem})
