"""What the cluster hears of this node: the condition NetworkUnavailable, and Events for what people must mend."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from agent.cluster import node_condition
from agent.cluster.api import Api, Request
from agent.cluster.objects import rfc3339
from agent.cluster.pod_events import PodEventQueue
from agent.cluster.store import ConflictError, StoreError
from agent.model.cluster import Node, Snapshot
from agent.model.node_status import NodeStatus, PodEvent
from agent.model.problem import Problem
from agent.runtime.observable import Observable
from agent.runtime.pace import Pace, pace

LASTING = 5.0  # seconds: what solves itself sooner is not worth an Event
LOOK_AGAIN = 5.0  # seconds
EVENTS_AT_ONCE, EVENT_EVERY = 10, 60.0  # then one in so many seconds: events cost the API server too
TELL_AGAIN = 1800.0  # seconds: Events are kept for an hour
CLEARS = 5, 60.0  # at once, then one in so many seconds: another controller may set the condition again and again
SEEN_WITHIN = 30.0  # seconds in which the watch shows a change
POD_EVENTS = 30, 2.0  # of all pods of the node, in the same way
NOTICE_EVERY = 600.0  # seconds between two Events with the same words about a pod
PROBLEM = "PodNetworkProblem"
"""The reason of Events about problems of the node."""
LONGEST_MESSAGE = 1024  # bytes (events.k8s.io)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cleared:
    """When the condition was cleared (time.monotonic), and what the node's object was then."""

    before: Node
    at: float


class NodeEventWriter:
    """Follows the node's status, and what pods should hear; an API server that is away hears of it later."""

    def __init__(
        self,
        api: Api,
        node: str,
        status: Observable[NodeStatus],
        snapshot: Observable[Snapshot],
        pod_events: PodEventQueue | None = None,
    ) -> None:
        self._api = api
        self._node = node
        self._status = status
        self._wake = threading.Event()
        self._me = snapshot.get().nodes.get(node)
        self.pace = pace()
        self._snapshot = snapshot
        self._created = ""
        self._cleared: Cleared | None = None
        self._clears = Pace(*CLEARS)
        self._since: dict[Problem, float] = {}
        self._told: dict[Problem, float] = {}
        self._credit = Pace(EVENTS_AT_ONCE, EVENT_EVERY)
        self._pod_events = pod_events or PodEventQueue()
        self._noticed: dict[PodEvent, float] = {}
        self._pods_credit = Pace(*POD_EVENTS)
        status.listen(self._wake.set)
        snapshot.listen(self._changed)
        self._pod_events.listen(self._wake.set)

    def run(self, stop: threading.Event) -> None:
        """Tell what there is to tell until `stop` is set."""
        failed = False
        while not stop.is_set():
            self.pace.wait(stop)
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
        me = self._me
        if me and me.created != self._created:  # made anew, it knows nothing of what was said to the last one
            self._created, self._cleared, self._told = me.created, None, {}
        if status.blocks and me and self._is_to_be_cleared(now, me) and self._clears.spend():
            self._clear()
            self._cleared = Cleared(me, now)
        self._since = {problem: self._since.get(problem, now) for problem in status.problems}
        self._told = {problem: when for problem, when in self._told.items() if problem in self._since}
        for problem, since in self._since.items():
            due = now - since >= LASTING and now - self._told.get(problem, -TELL_AGAIN) >= TELL_AGAIN
            if due and self._credit.spend():
                # kubelet's events have the name as uid, too: `kubectl describe node` looks for that
                about = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node}
                self._api.ask(event(self._node, about, PROBLEM, str(problem)))
                self._told[problem] = now
        self._tell_pods(now)

    def _changed(self) -> None:
        """Other nodes' objects wake nobody."""
        me = self._snapshot.get().nodes.get(self._node)
        if me is not self._me:
            self._me = me
            self._wake.set()

    def _is_to_be_cleared(self, now: float, me: Node) -> bool:
        """At the first look, and whenever the cluster says that the network is unavailable."""
        if self._cleared is None:
            return True
        return me.unavailable and (me is not self._cleared.before or now - self._cleared.at > SEEN_WITHIN)

    def _tell_pods(self, now: float) -> None:
        """The same about the same pod once in a while only, as its runtime tries again. Raises StoreError."""
        self._noticed = {pod_event: when for pod_event, when in self._noticed.items() if now - when < NOTICE_EVERY}
        while pod_event := self._pod_events.take():
            if pod_event in self._noticed or not self._pods_credit.spend():
                continue
            namespace, _, name = pod_event.pod.partition("/")
            about = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": pod_event.uid}
            try:
                self._api.ask(event(self._node, about, pod_event.reason, pod_event.message, _name(pod_event)))
            except ConflictError:
                log.debug("pod %s has this Event already: %s", pod_event.pod, pod_event.message)
            self._noticed[pod_event] = now

    def _clear(self) -> None:
        """Say that the network is there. Raises StoreError."""
        node_condition.clear(self._api, self._node)
        log.info("condition NetworkUnavailable of node %s is cleared", self._node)


def _name(event: PodEvent) -> str:
    """Return the name that makes an Event unique, or an empty string for an Event that may repeat."""
    return event_name("pod", event.pod, event.uid, event.reason, event.once) if event.once else ""


def event_name(kind: str, *about: str) -> str:
    """Return the name of the only Event about something, whichever agent says it and however often."""
    return f"testcni-{kind}-{hashlib.sha256(' '.join(about).encode()).hexdigest()[:16]}"


def event(node: str, about: dict[str, str], reason: str, message: str, name: str = "") -> Request:
    """Return the request that makes an Event about an object, as this node's agent; without a name it gets one."""
    namespace, now = about.get("namespace", "default"), rfc3339(datetime.now(UTC))
    doc = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {**({"name": name} if name else {"generateName": "testcni-"}), "namespace": namespace},
        "involvedObject": about,
        "type": "Warning",
        "reason": reason,
        "message": message[:LONGEST_MESSAGE],
        "source": {"component": "testcni", "host": node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    return Request("POST", f"/api/v1/namespaces/{quote(namespace, safe='')}/events", {}, doc)
