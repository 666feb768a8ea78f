"""`python3 -m tests.ci`: run what CI runs. It needs nothing but Python.

CI has 90 minutes. What slower tiers need on a new machine (20 minutes for two cores) is built beside
`make test`, with the processor time that is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.ci import times
from tests.ci.plan import PLAN
from tests.ci.runner import Runner, end

FOLDER = Path("build/tiers")
END = 5250.0  # seconds
LEAST = 300.0  # seconds that an optional tier needs
BUILDING, BESIDE = 20, 50
"""Percent of the time of another session. With 2, builds beside a loaded machine did not end in ten minutes."""
GROUPS = (("/sys/fs/cgroup/cpu", "cpu.shares", 1024), ("/sys/fs/cgroup", "cpu.weight", 100))
"""The file and the default of cgroup v1 and v2."""
ENTER = 'echo $$ > "$0/cgroup.procs"; exec nice -n 19 "$@"'
SETUP = ("make", "deps", "build/.debs-image", "build/.debs-e2e", "build/.debs-kernel", "build/.debs-debian13")


def background(percent: int) -> list[str]:
    """Return what starts a command that leaves the processor to others.

    nice(1) alone does not do it where each session is a group of its own for the scheduler (sched(7), autogroup).
    """
    group = share(percent, percent)
    return ["sh", "-c", ENTER, str(group)] if group else ["nice", "-n", "19"]


def share(background: int, percent: int) -> Path | None:
    """Give the commands of `background` another share from now on; return their group, None without groups."""
    for place, file, default in GROUPS:
        group = Path(place) / f"testcni-ci-{background}"
        with suppress(OSError):
            group.mkdir(exist_ok=True)
            (group / file).write_text(str(default * percent // 100))
            return group
    return None


def main() -> int:
    """Run all; exit codes: 0 all passed, 1 a tier failed."""
    os.environ["PYTEST_ADDOPTS"] = "--durations=10 --durations-min=1"
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    (FOLDER / "seconds").touch()
    began = time.monotonic()
    subprocess.run(SETUP, check=True)  # before all else: apt is for one at a time
    runner = Runner(FOLDER, began + END, LEAST, background(BESIDE))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    log = FOLDER / "built.log"
    with log.open("wb") as out:
        built = subprocess.Popen(
            [*background(BUILDING), "make", "built"], stdout=out, stderr=out, start_new_session=True
        )
    try:
        for step in PLAN:
            if step.needs_built:
                share(BUILDING, 100)  # the tests wait for it now
                if built.wait():
                    print(log.read_text(errors="replace"))
                    return 1
            if not runner.step(step.lanes):
                return 1
        return 0
    finally:
        runner.stop()
        end(built)
        print(times.table(FOLDER))
        print(f"all of it took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
