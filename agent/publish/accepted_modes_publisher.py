"""Publish in which modes this node accepts packets for pods, so that peers know how to send them."""

from __future__ import annotations

import logging

from agent.cluster import accepted_modes
from agent.cluster.store import Datastore, StoreError
from agent.model.cluster import ENDS, AcceptedModes
from agent.model.node_view import NodeView
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.controller import Controller, Schedule

SCHEDULE = Schedule(resync=5.0, backoff=(5.0, 5.0))
SEEN_WITHIN = 5.0  # seconds in which the snapshot shows what was written

log = logging.getLogger(__name__)


class AcceptedModesPublisher(Controller):
    """Makes the accepted modes in the datastore those of the node's status."""

    def __init__(
        self, store: Datastore, view: NodeView, problems: PartProblems, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__(SCHEDULE, problems.report_error, (view.snapshot, view.status), clock)
        self._problems = problems
        self._store = store
        self._view = view
        self._written: tuple[AcceptedModes, float] | None = None

    def once(self) -> bool:
        """Write the accepted modes if the datastore has others."""
        status, me = self._view.status.get(), self._view.snapshot.get().nodes.get(self._view.node)
        # without any of these it is not known yet what to publish
        known = status.accepted_modes or status.blocks or status.refused
        if not status.synced or not known or me is None:
            return True
        if me.accepted_modes == status.accepted_modes:
            self._problems.publish({})
            return True
        now = self._clock.now()
        if self._written and self._written[0] == status.accepted_modes and now < self._written[1] + SEEN_WITHIN:
            return True  # it is not in the snapshot yet
        self._written = (status.accepted_modes, now)
        text = accepted_modes.encode(status.accepted_modes)
        try:
            self._store.publish_accepted_modes(self._view.node, text)
        except StoreError as error:
            log.warning("the accepted modes %s of this node can't be published: %s", text, error)
            # else peers guess right
            if any(len(modes) > 1 or network == ENDS for network, modes in status.accepted_modes):
                what = f"the accepted modes {text} can't be published to peers: {error}"
                remedy = "let the agent write there; until then both modes stay in force"
                self._problems.publish({"receives": Problem(f"node {self._view.node}", what, remedy)})
            return False
        log.info("this node accepts %s", text)
        return True
