"""The times for which an ADD waits for its addresses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddTimes:
    """Seconds that one wait of an ADD takes at most; each wait ends with the deadline of the ADD, too."""

    prepared: float = 8.0
    """The wait for the node path; after it the runtime tries again."""
    cooled: float = 20.0
    """The wait for an address to cool."""
    gone: float = 8.0
    """The wait for the earlier pod of a reserved address to go, here or on another node."""
    status: float = 1.0
    """The wait of a STATUS for the node path."""
    demand: float = 10.0
    """The time that the node path keeps a network with neither a conf nor a pod, after an ADD asked for it."""
