"""Clear the condition NetworkUnavailable of a Node, and remove it when testcni is uninstalled."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

from agent.cluster import listing
from agent.cluster.api import Api, Request
from agent.cluster.object_fields import rfc3339
from agent.cluster.store import ConflictError

TYPE = "NetworkUnavailable"
REASON = "TestcniIsUp"
"""The reason that marks the condition as testcni's: a cloud's route controller writes another."""
TRIES = 5
STRATEGIC = "application/strategic-merge-patch+json"


def clear(api: Api, node: str) -> None:
    """Write that the network is available; the kubelet of a cloud waits for this. Raises StoreError."""
    now = rfc3339(datetime.now(UTC))
    condition = {
        "type": TYPE,
        "status": "False",
        "reason": REASON,
        "message": "testcni has prepared this node for pods",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    api.ask(
        Request("PATCH", listing.status_path("Node", node), {}, {"status": {"conditions": [condition]}}, STRATEGIC)
    )


def remove(api: Api, node: str) -> bool:
    """Remove the condition if it is testcni's; return whether it was. Raises StoreError."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(ConflictError):  # the kubelet writes the Node's status every few seconds
            return _remove(api, node)
    return _remove(api, node)


def _remove(api: Api, node: str) -> bool:
    """Try once to remove the condition. Raises ConflictError where the Node changed since it was read."""
    found = api.ask(Request("GET", listing.path("Node", node)))
    if not any(_is_ours(condition) for condition in (found.get("status") or {}).get("conditions") or ()):
        return False
    body = {
        "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
        "status": {"conditions": [{"$patch": "delete", "type": TYPE}]},
    }
    api.ask(Request("PATCH", listing.status_path("Node", node), {}, body, STRATEGIC))
    return True


def _is_ours(condition: dict[str, Any]) -> bool:
    return (condition.get("type"), condition.get("status"), condition.get("reason")) == (TYPE, "False", REASON)
