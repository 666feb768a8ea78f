"""The number of examples of a property: `make check` must be quick, and has a third of those of `make test`."""

from __future__ import annotations

import os

FEW = os.environ.get("EXAMPLES") == "few"


def examples(count: int) -> int:
    """Return how many examples to try where all are `count`."""
    return max(1, count // 3) if FEW else count
