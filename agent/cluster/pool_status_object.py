"""Read and write the status of an IPPool, which agents write for people. An unreadable one is overwritten."""

from __future__ import annotations

from typing import Any

from agent.model.usage import Condition, PoolCounts, PoolStatus

LARGEST = (1 << 63) - 1  # of an integer in a CustomResourceDefinition; IPv6 has more addresses
LONGEST_MESSAGE = 1024  # characters of a condition's message


def read(status: object) -> PoolStatus:
    """Return a status without its unreadable parts."""
    if not isinstance(status, dict):
        return PoolStatus()
    conditions = status.get("conditions")
    found = (_condition(entry) for entry in conditions) if isinstance(conditions, list) else ()
    return PoolStatus(_counts(status), next((condition for condition in found if condition), None))


def counts_doc(counts: PoolCounts) -> dict[str, Any]:
    """Return the part of a status that counts addresses and blocks."""
    return {"used": counts.used, "free": counts.free, "blocks": counts.blocks}


def condition_doc(condition: Condition) -> dict[str, Any]:
    """Return the part of a status with the condition Ready."""
    entry = {
        "type": Condition.TYPE,
        "status": "True" if condition.ok else "False",
        "reason": condition.reason,
        "message": condition.message[:LONGEST_MESSAGE],
        "lastTransitionTime": condition.since,
    }
    return {"conditions": [entry]}


def is_count(value: object) -> bool:
    """Return whether a value is a number of addresses or blocks."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _counts(status: dict[str, Any]) -> PoolCounts | None:
    numbers = [status.get(key) for key in ("used", "free", "blocks")]
    return PoolCounts(*numbers) if all(map(is_count, numbers)) else None  # type: ignore[arg-type]


def _condition(entry: object) -> Condition | None:
    if not isinstance(entry, dict) or entry.get("type") != Condition.TYPE:
        return None
    texts = [entry.get(key) for key in ("reason", "message", "lastTransitionTime")]
    if entry.get("status") not in ("True", "False") or not all(isinstance(text, str) for text in texts):
        return None
    return Condition(entry["status"] == "True", *texts)  # type: ignore[arg-type]
