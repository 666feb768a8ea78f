"""Report that testcni does not enforce NetworkPolicies, as long as there are any."""

from __future__ import annotations

import logging
import random

from agent.cluster import listing
from agent.cluster.api import METADATA_LIST, Api, Request
from agent.cluster.store import ConflictError, StoreError
from agent.publish.node_events import event, event_name
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.controller import Controller, ReportError, Schedule

PATH = "/apis/networking.k8s.io/v1/networkpolicies"
EVERY = 600.0  # seconds between two looks
TELL_AGAIN = 3600.0  # seconds: the API server keeps Events for an hour
REASON = "NetworkPolicyNotEnforced"
MESSAGE = "testcni does not enforce NetworkPolicies: pods can be reached as if there were none"

log = logging.getLogger(__name__)


class NetworkPolicies(Controller):
    """Looks for a NetworkPolicy every few minutes, without a watch."""

    def __init__(
        self,
        api: Api,
        node: str,
        report_error: ReportError,
        every: float = EVERY,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(Schedule(every, first=0.0), report_error, clock=clock)
        self._api = api
        self._node = node
        self._outcome_unknown = False
        """Whether the last request had no answer."""
        self._told: tuple[str, float] | None = None
        self.note = ""
        """The note in the status report; empty if there is no NetworkPolicy, or the agent may not list them."""

    def once(self) -> bool:
        """Look for a NetworkPolicy. An agent without the right to do so works as well."""
        self._outcome_unknown = False
        try:
            self._look()
        except StoreError as error:
            log.debug("NetworkPolicies: %s", error)
            self._outcome_unknown = error.outcome_unknown
        return True

    def pause(self) -> float:
        """Return the seconds to the next look, at random so that not all nodes ask at once."""
        pause = super().pause() / 10 if self._outcome_unknown else super().pause()
        return pause * random.uniform(0.8, 1.0)  # noqa: S311

    def _look(self) -> None:
        """Look for a NetworkPolicy, and write an Event about it once an hour. Raises StoreError."""
        answer = self._api.ask(Request("GET", PATH, {"limit": "1"}, accept=METADATA_LIST))
        items = answer.get("items")
        first = next((item for item in items if isinstance(item, dict)), None) if isinstance(items, list) else None
        if first is None:
            self.note = ""
            return
        metadata = listing.metadata(first)
        namespace, name, uid = (str(metadata.get(key) or "") for key in ("namespace", "name", "uid"))
        self.note = f"{MESSAGE} (there is {namespace}/{name})"
        now = self._clock.now()
        if self._told is None or self._told[0] != uid or now - self._told[1] >= TELL_AGAIN:
            self._tell(namespace, name, uid)
            self._told = (uid, now)

    def _tell(self, namespace: str, name: str, uid: str) -> None:
        """Write an Event whose name is that of the policy, so that only one agent can. Raises StoreError."""
        about = {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": namespace, "name": name,
            "uid": uid,
        }  # fmt: skip
        try:
            self._api.ask(event(self._node, about, REASON, MESSAGE, event_name("not-enforced", uid)))
        except ConflictError:
            log.debug("another agent has written the Event for NetworkPolicy %s/%s", namespace, name)
