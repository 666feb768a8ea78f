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
from agent.shared import Latest, NodeStatus, Notice, Notices

LASTING = 5.0  # seconds: what solves itself sooner is not worth an Event
LOOK_AGAIN = 5.0  # seconds
EVENTS_AT_ONCE, EVENT_EVERY = 10, 60.0  # then one in so many seconds: events cost the API server too
POD_EVENTS = 30, 2.0  # of all pods of the node, in the same way
NOTICE_EVERY = 60.0  # seconds
STRATEGIC = "application/strategic-merge-patch+json"
LONGEST_MESSAGE = 1024  # bytes (events.k8s.io)

log = logging.getLogger(__name__)


class Credit:
    """So many at once, then one in so many seconds."""

    def __init__(self, at_once: int, every: float) -> None:
        self._most = self._left = float(at_once)
        self._every = every
        self._since = time.monotonic()

    def spend(self) -> bool:
        """Whether there is one left; it is gone then."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._since) / self._every)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Announcer:
    """Follows the node's status, and what pods should hear; an API server that is away hears of it later."""

    def __init__(self, api: Api, node: str, status: Latest[NodeStatus], notices: Notices | None = None) -> None:
        self._api = api
        self._node = node
        self._status = status
        self._wake = threading.Event()
        self._cleared = False
        self._since: dict[Problem, float] = {}
        self._told: set[Problem] = set()
        self._credit = Credit(EVENTS_AT_ONCE, EVENT_EVERY)
        self._notices = notices or Notices()
        self._noticed: dict[Notice, float] = {}
        self._pods_credit = Credit(*POD_EVENTS)
        status.listen(self._wake.set)
        self._notices.listen(self._wake.set)

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
        for problem, since in self._since.items():
            if now - since >= LASTING and problem not in self._told and self._credit.spend():
                # kubelet's events have the name as uid, too: `kubectl describe node` looks for that
                about = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node}
                self._event("default", about, "PodNetworkProblem", str(problem))
                self._told.add(problem)
        self._tell_pods(now)

    def _tell_pods(self, now: float) -> None:
        """The same about the same pod once in a while only, as its runtime tries again. Raises StoreError."""
        self._noticed = {notice: when for notice, when in self._noticed.items() if now - when < NOTICE_EVERY}
        while notice := self._notices.take():
            if notice in self._noticed or not self._pods_credit.spend():
                continue
            namespace, _, name = notice.pod.partition("/")
            about = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": notice.uid}
            self._event(namespace, about, notice.reason, notice.message)
            self._noticed[notice] = now

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

    def _event(self, namespace: str, about: dict[str, str], reason: str, message: str) -> None:
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "testcni-", "namespace": namespace},
            "involvedObject": about,
            "type": "Warning",
            "reason": reason,
            "message": message[:LONGEST_MESSAGE],
            "source": {"component": "testcni", "host": self._node},
            "firstTimestamp": _now(),
            "lastTimestamp": _now(),
            "count": 1,
        }
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/events"
        self._api.ask(Request("POST", path, {}, event))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
