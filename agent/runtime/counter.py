"""Counters with labels."""

from __future__ import annotations

import threading
from collections.abc import Mapping


class LabelledCounter:
    """Counters that only grow, one for each tuple of label values. Safe for several threads."""

    def __init__(self, *known: tuple[str, ...]) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = dict.fromkeys(known, 0)

    def add(self, *labels: str, by: int = 1) -> None:
        """Count `by` more."""
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + by

    def all(self) -> Mapping[tuple[str, ...], int]:
        """Return all counts; counters that were known at the start are included even while they are 0."""
        with self._lock:
            return dict(self._counts)
