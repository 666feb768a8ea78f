"""Tells the cluster in which modes this node takes packets for pods; alone in its thread, as stores hang."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from agent.cluster import accepted_modes
from agent.cluster.store import Datastore, StoreError
from agent.model.cluster import ENDS, AcceptedModes, Snapshot
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.runtime.observable import Observable
from agent.runtime.pace import pace

AGAIN = 5.0  # seconds

log = logging.getLogger(__name__)


class AcceptedModesPublisher:
    """Makes what the datastore says of this node what its status says: desired minus actual."""

    def __init__(
        self,
        store: Datastore,
        node: str,
        snapshot: Observable[Snapshot],
        status: Observable[NodeStatus],
        problems: Observable[Mapping[str, Problem]],
    ) -> None:
        self._problems = problems
        self._store = store
        self._node = node
        self._snapshot = snapshot
        self._status = status
        self._told: tuple[AcceptedModes, float] | None = None
        self._wake = threading.Event()
        self.pace = pace()
        for source in (snapshot, status):
            source.listen(self._wake.set)

    def run(self, stop: threading.Event) -> None:
        """Tell what there is to tell until `stop` is set."""
        while not stop.is_set():
            self._wake.wait(AGAIN)
            self.pace.wait(stop)
            self._wake.clear()
            self.once()

    def once(self) -> None:
        """One look; what fails is tried again."""
        status, me = self._status.get(), self._snapshot.get().nodes.get(self._node)
        # without any of these it is not known yet what to announce
        known = status.accepted_modes or status.blocks or status.refused
        if not status.synced or not known or me is None:
            return
        if me.accepted_modes == status.accepted_modes:
            self._problems.publish({})
            return
        now = time.monotonic()
        if self._told and self._told[0] == status.accepted_modes and now < self._told[1] + AGAIN:
            return  # it is not in the snapshot yet
        self._told = (status.accepted_modes, now)
        text = accepted_modes.encode(status.accepted_modes)
        try:
            self._store.publish_accepted_modes(self._node, text)
        except StoreError as error:
            log.warning("peers can't be told that this node receives %s: %s", text, error)
            if any(
                len(modes) > 1 or network == ENDS for network, modes in status.accepted_modes
            ):  # else peers guess right
                what = f"peers can't be told of the modes {text}: {error}"
                remedy = "let the agent write there; until then both modes stay in force"
                self._problems.publish({"receives": Problem(f"node {self._node}", what, remedy)})
            return
        log.info("this node receives %s", text)
