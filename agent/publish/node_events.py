"""Write the condition NetworkUnavailable of this node, and Events for problems that a person must fix."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from agent.cluster import node_condition
from agent.cluster.api import Api, Request
from agent.cluster.object_fields import rfc3339
from agent.cluster.pod_events import PodEventQueue
from agent.cluster.store import ConflictError, StoreError
from agent.model.cluster import Node
from agent.model.node_status import PodEvent
from agent.model.node_view import NodeView
from agent.model.problem import Problem
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.controller import Controller, ReportError, Schedule
from agent.runtime.pace import Pace

SCHEDULE = Schedule(resync=5.0, first=0.0, backoff=(5.0, 5.0))
LASTING = 5.0  # seconds: a problem that ends sooner gets no Event
EVENTS = 10, 60.0  # at once, then one in so many seconds: Events cost the API server too
REPEAT_AFTER = 1800.0  # seconds: the API server keeps Events for an hour
CLEARS = 5, 60.0  # at once, then one in so many seconds: another controller may set the condition again and again
SEEN_WITHIN = 30.0  # seconds in which the watch shows a change
POD_EVENTS = 30, 2.0  # of all pods of the node, in the same way
POD_EVENT_EVERY = 600.0  # seconds between two Events with the same words about a pod
PROBLEM = "PodNetworkProblem"
"""The reason of Events about problems of the node."""
LONGEST_MESSAGE = 1024  # bytes (events.k8s.io)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cleared:
    """The time when the condition was cleared (time.monotonic), and the Node object at that time."""

    before: Node
    at: float


class NodeEventWriter(Controller):
    """Writes the condition and Events for the node's status and the queue of pod events; retries on failure."""

    def __init__(
        self,
        api: Api,
        view: NodeView,
        pod_events: PodEventQueue,
        report_error: ReportError,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(SCHEDULE, report_error, (view.status, pod_events), clock)
        self._api = api
        self._node = view.node
        self._view = view
        self._pod_events = pod_events
        self._me = view.snapshot.get().nodes.get(view.node)
        self._created = ""
        self._cleared: Cleared | None = None
        self._clears = Pace(*CLEARS, clock)
        self._since: dict[Problem, float] = {}
        self._reported: dict[Problem, float] = {}
        self._credit = Pace(*EVENTS, clock)
        self._written: dict[PodEvent, float] = {}
        self._pods_credit = Pace(*POD_EVENTS, clock)
        view.snapshot.listen(self._changed)

    def once(self) -> bool:
        """Write the condition and all Events that are due; return False if the API server fails."""
        try:
            self._write()
        except StoreError as error:
            level = logging.DEBUG if self.failures else logging.WARNING
            log.log(level, "cannot write node events or conditions: %s", error)
            return False
        return True

    def _write(self) -> None:
        """Write the condition, and Events for the node and its pods. Raises StoreError."""
        status, now = self._view.status.get(), self._clock.now()
        me = self._me
        if me and me.created != self._created:  # a new Node object has neither condition nor Events yet
            self._created, self._cleared, self._reported = me.created, None, {}
        if status.blocks and me and self._is_to_be_cleared(now, me) and self._clears.spend():
            self._clear()
            self._cleared = Cleared(me, now)
        self._since = {problem: self._since.get(problem, now) for problem in status.problems}
        self._reported = {problem: when for problem, when in self._reported.items() if problem in self._since}
        for problem, since in self._since.items():
            due = now - since >= LASTING and now - self._reported.get(problem, -REPEAT_AFTER) >= REPEAT_AFTER
            if due and self._credit.spend():
                # `kubectl describe node` finds Events whose uid is the node's name, as in kubelet's Events
                about = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node}
                self._api.ask(event(self._node, about, PROBLEM, str(problem)))
                self._reported[problem] = now
        self._write_pod_events(now)

    def _changed(self) -> None:
        """Wake the loop if this node's object has changed."""
        me = self._view.snapshot.get().nodes.get(self._node)
        if me is not self._me:
            self._me = me
            self.wake()

    def _is_to_be_cleared(self, now: float, me: Node) -> bool:
        """Return whether this is the first round, or the Node says that the network is unavailable."""
        if self._cleared is None:
            return True
        return me.unavailable and (me is not self._cleared.before or now - self._cleared.at > SEEN_WITHIN)

    def _write_pod_events(self, now: float) -> None:
        """Write the Events of the queue; an equal one only once in POD_EVENT_EVERY. Raises StoreError."""
        self._written = {one: when for one, when in self._written.items() if now - when < POD_EVENT_EVERY}
        while pod_event := self._pod_events.take():
            if pod_event in self._written or not self._pods_credit.spend():
                continue
            namespace, _, name = pod_event.pod.partition("/")
            about = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": pod_event.uid}
            try:
                self._api.ask(event(self._node, about, pod_event.reason, pod_event.message, _name(pod_event)))
            except ConflictError:
                log.debug("pod %s has this Event already: %s", pod_event.pod, pod_event.message)
            self._written[pod_event] = now

    def _clear(self) -> None:
        """Write that the network is available. Raises StoreError."""
        node_condition.clear(self._api, self._node)
        log.info("condition NetworkUnavailable of node %s is cleared", self._node)


def _name(event: PodEvent) -> str:
    """Return the name that makes an Event unique, or an empty string for an Event that may repeat."""
    return event_name("pod", event.pod, event.uid, event.reason, event.once) if event.once else ""


def event_name(kind: str, *about: str) -> str:
    """Return the name of an Event that must be unique, whichever agent writes it and however often."""
    return f"testcni-{kind}-{hashlib.sha256(' '.join(about).encode()).hexdigest()[:16]}"


def event(node: str, about: dict[str, str], reason: str, message: str, name: str = "") -> Request:
    """Return the request that creates an Event about an object; without a name the API server gives it one."""
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
