"""How long an ADD waits for its addresses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddTimes:
    """Seconds that one wait of an ADD takes at most; each wait ends with the deadline of the ADD, too."""

    prepared: float = 8.0
    """For the node path; the runtime tries again."""
    cooled: float = 20.0
    """For an address to cool."""
    gone: float = 8.0
    """For the earlier pod of a reserved address to go, here or on another node."""
    status: float = 1.0
    """For the node path, in a STATUS."""
    demand: float = 10.0
    """For which the node path keeps a network that has neither a conf nor a pod, after an ADD asked for it."""
