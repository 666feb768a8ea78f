"""Hand the status of the node to the pod path, the log and the file of what is prepared."""

from __future__ import annotations

import logging
from pathlib import Path

from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.node import ready_state_file
from agent.runtime.observable import Observable

log = logging.getLogger(__name__)


class StatusPublisher:
    """The status as it is now, and what was logged and written of it."""

    def __init__(self, status: Observable[NodeStatus], prepared: Path | None) -> None:
        """`prepared`: the file of what is prepared for pods; None: there is none."""
        self._status = status
        self._prepared = prepared
        self._logged: frozenset[Problem] = frozenset()
        self.is_saved = True
        """Whether the file says nothing else."""

    def publish(self, status: NodeStatus) -> None:
        """Publish the status, and log each problem once when it comes and when it goes."""
        now = frozenset(status.problems)
        for problem in status.problems:
            if problem not in self._logged:
                log.warning("%s", problem)
        for problem in self._logged - now:
            log.info("solved: %s: %s", problem.where, problem.what)
        self._logged = now
        self._save(status)
        self._status.publish(status)

    def _save(self, status: NodeStatus) -> None:
        """Keep the file as it should be, also where somebody removed it."""
        path = self._prepared
        if path is None:
            return
        if not (
            self.is_saved
            and ready_state_file.alike(status, self._status.get())
            and ready_state_file.is_there(path, status)
        ):
            self.is_saved = ready_state_file.save(path, status)
