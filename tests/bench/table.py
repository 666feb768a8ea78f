"""The results of a benchmark as a table with ratios."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tests.lab.matrix import BOLD, GREEN, PLAIN, RED

EXIT_MISSED = 1
REFERENCE = "the reference's (bridge + host-local)"


@dataclass(frozen=True)
class Row:
    """One line of the table; `ratio` is ours to theirs, and `bound` what it must not exceed."""

    what: str
    ours: float
    theirs: float | None
    unit: str
    ratio: float
    bound: float

    @property
    def met(self) -> bool:
        """Return whether the bound is kept."""
        return self.ratio <= self.bound


def show(rows: Sequence[Row], output: str, reference: str = REFERENCE) -> None:
    """Print the table for a person, or as JSON; `reference` says whose costs ours are compared with."""
    if output == "json":
        print(json.dumps([{**asdict(row), "met": row.met} for row in rows], indent=1))
        return
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(text: str, code: str) -> str:
        return f"{code}{text}{PLAIN}" if colour else text

    print(paint(f"{'':<28}{'testcni':>12}{'reference':>12}  {'unit':<8}{'ratio':>7}{'bound':>7}", BOLD))
    for row in rows:
        theirs = "" if row.theirs is None else f"{row.theirs:.2f}"
        verdict = paint("met", GREEN) if row.met else paint("NOT met", RED)
        line = f"{row.what:<28}{row.ours:>12.2f}{theirs:>12}  {row.unit:<8}{row.ratio:>7.3f}{row.bound:>7.3f}  "
        print(line + verdict)
    print(f"\nratio: testcni's cost to {reference}, or to the limit where there is none")
