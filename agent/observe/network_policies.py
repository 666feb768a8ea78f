"""NetworkPolicies, which testcni does not enforce: said as long as there are any, as a policy looks in force."""

from __future__ import annotations

import logging
import random
import threading
import time

from agent.cluster import listing
from agent.cluster.api import METADATA_LIST, Api, Request
from agent.cluster.node_events import event, event_name
from agent.cluster.store import ConflictError, StoreError

PATH = "/apis/networking.k8s.io/v1/networkpolicies"
EVERY = 600.0  # seconds between two looks
TELL_AGAIN = 3600.0  # seconds: the API server keeps Events for an hour
REASON = "NetworkPolicyNotEnforced"
MESSAGE = "testcni does not enforce NetworkPolicies: pods can be reached as if there were none"

log = logging.getLogger(__name__)


class Policies:
    """Looks now and then for a NetworkPolicy, without a watch."""

    def __init__(self, api: Api, node: str, every: float = EVERY) -> None:
        self._api = api
        self._node = node
        self._every = every
        self._told: tuple[str, float] | None = None
        self.note = ""
        """What people should know; empty where there is no NetworkPolicy, or none may be listed."""

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        while not stop.is_set():
            wait = self._every
            try:
                self.once()
            except StoreError as error:  # without the right the agent works as well
                log.debug("NetworkPolicies: %s", error)
                wait = self._every / 10 if error.unsure else self._every
            stop.wait(wait * random.uniform(0.9, 1.1))  # noqa: S311 - so that not all nodes ask at once

    def once(self) -> None:
        """One look. Raises StoreError."""
        answer = self._api.ask(Request("GET", PATH, {"limit": "1"}, accept=METADATA_LIST))
        items = answer.get("items")
        first = next((item for item in items if isinstance(item, dict)), None) if isinstance(items, list) else None
        if first is None:
            self.note = ""
            return
        metadata = listing.metadata(first)
        namespace, name, uid = (str(metadata.get(key) or "") for key in ("namespace", "name", "uid"))
        self.note = f"{MESSAGE} (there is {namespace}/{name})"
        now = time.monotonic()
        if self._told is None or self._told[0] != uid or now - self._told[1] >= TELL_AGAIN:
            self._tell(namespace, name, uid)
            self._told = (uid, now)

    def _tell(self, namespace: str, name: str, uid: str) -> None:
        """Make one Event in the cluster: its name is of the policy, so the first agent does. Raises StoreError."""
        about = {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": namespace, "name": name,
            "uid": uid,
        }  # fmt: skip
        try:
            self._api.ask(event(self._node, about, REASON, MESSAGE, event_name("not-enforced", uid)))
        except ConflictError:
            log.debug("another agent has told of NetworkPolicy %s/%s", namespace, name)
