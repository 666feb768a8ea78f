"""What the cluster hears of this node: the condition NetworkUnavailable, and Events for what people must mend."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from urllib.parse import quote

from agent.cluster.api import Api, Request
from agent.cluster.store import StoreError
from agent.model import Problem
from agent.shared import Latest, NodeStatus

LASTING = 5.0  # seconds: what solves itself sooner is not worth an Event
LOOK_AGAIN = 5.0  # seconds
EVENTS_AT_ONCE, EVENT_EVERY = 10, 60.0  # then one in so many seconds: events cost the API server too
STRATEGIC = "application/strategic-merge-patch+json"
LONGEST_MESSAGE = 1024  # bytes (events.k8s.io)

log = logging.getLogger(__name__)


class Announcer:
    """Follows the node's status; an API server that is away hears of it later."""

    def __init__(self, api: Api, node: str, status: Latest[NodeStatus]) -> None:
        self._api = api
        self._node = node
        self._status = status
        self._wake = threading.Event()
        self._cleared = False
        self._since: dict[Problem, float] = {}
        self._told: set[Problem] = set()
        self._credit = float(EVENTS_AT_ONCE)
        self._credited = time.monotonic()
        status.listen(self._wake.set)

    def run(self, stop: threading.Event) -> None:
        """Tell what there is to tell until `stop` is set."""
        failed = False
        while not stop.is_set():
            self._wake.clear()
            try:
                self.once()
                failed = False
            except StoreError as error:
                log.log(logging.DEBUG if failed else logging.WARNING, "the cluster can't be told: %s", error)
                failed = True
            self._wake.wait(LOOK_AGAIN)

    def once(self) -> None:
        """One look at the status. Raises StoreError."""
        status, now = self._status.get(), time.monotonic()
        if status.blocks and not self._cleared:
            self._clear()
            self._cleared = True
        self._since = {problem: self._since.get(problem, now) for problem in status.problems}
        self._told &= self._since.keys()
        self._credit = min(EVENTS_AT_ONCE, self._credit + (now - self._credited) / EVENT_EVERY)
        self._credited = now
        for problem, since in self._since.items():
            if now - since >= LASTING and problem not in self._told and self._credit >= 1:
                self._event(problem)
                self._told.add(problem)
                self._credit -= 1

    def _clear(self) -> None:
        """Say that the network is there; a cloud's kubelet waits for it."""
        condition = {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "TestcniIsUp",
            "message": "testcni has prepared this node for pods",
            "lastHeartbeatTime": _now(),
            "lastTransitionTime": _now(),
        }
        path = f"/api/v1/nodes/{quote(self._node, safe='')}/status"
        self._api.ask(Request("PATCH", path, {}, {"status": {"conditions": [condition]}}, STRATEGIC))
        log.info("condition NetworkUnavailable of node %s is cleared", self._node)

    def _event(self, problem: Problem) -> None:
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "testcni-", "namespace": "default"},
            # kubelet's events have the name as uid, too: `kubectl describe node` looks for that
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node},
            "type": "Warning",
            "reason": "PodNetworkProblem",
            "message": str(problem)[:LONGEST_MESSAGE],
            "source": {"component": "testcni", "host": self._node},
            "firstTimestamp": _now(),
            "lastTimestamp": _now(),
            "count": 1,
        }
        self._api.ask(Request("POST", "/api/v1/namespaces/default/events", {}, event))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
