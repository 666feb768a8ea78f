"""Print where the time of a CI run went: `python3 -m tests.ci.times FOLDER`.

.ci/run writes what each tier prints into TIER.log, and a line `SECONDS TIER` for each that ended into `seconds`.
The logs contain pytest's lists of the slowest cases (--durations).
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

SLOWEST = 10
LISTED = re.compile(r"^\s*(\d+\.\d+)s (?:setup|call|teardown|passed|failed) +(\S.*)$", re.MULTILINE)


def tiers(folder: Path) -> list[tuple[int, str]]:
    """Return the seconds and the command of each tier, in the order in which they ended."""
    lines = (folder / "seconds").read_text().splitlines()
    return [(int(seconds), tier) for seconds, tier in (line.split(" ", 1) for line in lines)]


def slowest(folder: Path) -> list[tuple[float, str, str]]:
    """Return the seconds, tier and name of the slowest cases of all tiers; set-up and tear-down are included."""
    cases: defaultdict[tuple[str, str], float] = defaultdict(float)
    for _seconds, tier in tiers(folder):
        log = (folder / f"{re.sub('[^A-Za-z0-9]', '-', tier)}.log").read_text(errors="replace")
        for seconds, case in LISTED.findall(log):
            cases[tier, case] += float(seconds)
    found = [(seconds, tier, case) for (tier, case), seconds in cases.items()]
    return sorted(found, reverse=True)[:SLOWEST]


def table(folder: Path) -> str:
    """Return both lists as text."""
    taken = [f"{seconds:7}  {tier}" for seconds, tier in tiers(folder)]
    cases = [f"{seconds:7.1f}  {case}  ({tier})" for seconds, tier, case in slowest(folder)]
    return "\n".join(["seconds  tier", *taken, "", "seconds  the slowest cases", *cases])


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
