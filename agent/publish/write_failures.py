"""Count the failures of requests that write status objects, and make a problem of those that last."""

from __future__ import annotations

import logging

from agent.cluster.api import ApiError
from agent.cluster.store import NotFoundError, StoreError
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems

REFUSED = (401, 403, 404)  # HTTP: older CustomResourceDefinitions or an older ClusterRole
REFUSED_FOR = 60.0  # seconds until that is a problem: an API server needs 30 for new kinds, rights and policies

log = logging.getLogger(__name__)


class WriteFailures:
    """Requests that fail: one line of the log, a problem where a person must do something, and longer pauses."""

    def __init__(self, problems: PartProblems, what: str, backoff: tuple[float, float]) -> None:
        """`backoff`: seconds after a failure, first and longest."""
        self._problems = problems
        self._what = what
        self._backoff = backoff
        self._count = 0
        self._refused_since: float | None = None

    def clear(self) -> None:
        """Note that requests were answered."""
        if self._count:
            log.info("%s can be written again", self._what)
        self._count, self._refused_since = 0, None
        self._problems.update(lambda known: {k: p for k, p in known.items() if k != self._what})

    def note(self, error: StoreError, now: float) -> None:
        """Note that a request failed; `now` is of the clock."""
        log.log(logging.DEBUG if self._count else logging.WARNING, "%s can't be written: %s", self._what, error)
        self._count += 1
        if not (isinstance(error, NotFoundError) or (isinstance(error, ApiError) and error.status in REFUSED)):
            return
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since >= REFUSED_FOR:
            remedy = "apply the manifests of the agents' version: kubectl apply -f manifests/; pods do not need it"
            problem = Problem(self._what, f"it can't be written: {error}", remedy)
            self._problems.update(lambda known: {**known, self._what: problem})

    def pause(self) -> float:
        """Return the seconds to wait after the last failure."""
        first, longest = self._backoff
        return min(longest, first * 2.0 ** min(self._count - 1, 16))
