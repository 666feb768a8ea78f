"""`python -m tests.kernel [pytest's arguments]`: tests on a kernel that has what this machine's may lack."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from tests.kernel import guest, uml
from tests.lab.space import REPO

# What `make test-kernel` runs: a guest for each, at once, as a guest has one processor.
SELECTION = (
    (
        "tests/kernel",
        "tests/netns/test_duplicate_address.py",
        "tests/lab/test_ipip.py",
        "tests/lab/test_ipip_trouble.py",
        "tests/lab/test_paths.py",
        "-k=not test_paths or ipip",
    ),
    (
        "tests/netns/test_guards_first.py",
        "tests/netns/test_pod_guard_parent_modes.py",
        "tests/lab/test_parent_modes.py",
        "tests/lab/test_nothing_leaks.py",
        "tests/lab/test_paths.py",
        "-k=not (test_paths or test_nothing_leaks) or ipvlan",
        "tests/lab/test_lab.py::test_pods_keep_their_address_among_themselves_and_lose_it_outside",
        "tests/lab/test_lab.py::test_an_agent_that_is_restarted_changes_nothing",
    ),
)
WITHIN = 2400.0  # seconds: CI gives a guest the time that clusters leave
TEST_WITHIN = 300  # seconds for one test: a guest is slow
EXIT_NO_KERNEL = 3
SHOWING = threading.Lock()
BEGAN = time.monotonic()


def say(text: str) -> None:
    """Progress goes to stderr, what the tests say to stdout."""
    print(f"{time.monotonic() - BEGAN:5.1f} s  {text}", file=sys.stderr, flush=True)


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of pytest in the guest."""
    colour = "yes" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else "no"
    pytest = [sys.executable, "-m", "pytest", "-p", "tests.kernel.plugin", f"--color={colour}"]
    return [*pytest, "-o", f"timeout={TEST_WITHIN}", *arguments]


def attempts(boot: Callable[[], int]) -> int:
    """The exit code of a guest, which is tried once more when its kernel, and not a test, is what failed."""
    code = boot()
    if code == guest.CRASHED:
        say("ATTENTION: THE GUEST'S KERNEL CRASHED, which is no test's doing: all its tests run once more")
        code = boot()
    return code


def side_by_side(boot: Callable[[Sequence[str], int, BinaryIO], int]) -> int:
    """Run the selection, a guest on each core; what it said is shown when it has ended. The first bad code."""
    cores = sorted(os.sched_getaffinity(0))
    free: SimpleQueue[int] = SimpleQueue()
    for core in cores:
        free.put(core)

    def run(tests: Sequence[str]) -> int:
        core = free.get()
        try:
            with tempfile.TemporaryFile() as out:
                code = attempts(lambda: boot(command(tests), core, _emptied(out)))
                out.seek(0)
                with SHOWING:
                    shutil.copyfileobj(out, sys.stdout.buffer)
                    sys.stdout.buffer.flush()
                say(f"the guest with {tests[0]} ended with code {code}")
                return code
        finally:
            free.put(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        return next(filter(None, pool.map(run, SELECTION)), 0)


def _emptied(out: BinaryIO) -> BinaryIO:
    out.seek(0)
    out.truncate()
    return out


def main() -> int:
    """Exit codes: the command's; 3 no kernel, 5 no test passed, 124 not in time, 125 the guest crashed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel", epilog="All else is for pytest.", allow_abbrev=False
    )
    parser.add_argument("--within", type=float, default=WITHIN, metavar="SECONDS", help="the guest's life")
    parser.add_argument("--exec", action="store_true", help="run another command than pytest: --exec COMMAND...")
    arguments, rest = parser.parse_known_args()
    if os.geteuid() != 0:
        print("what is root in the guest is root on its files: run it as root", file=sys.stderr)
        return EXIT_NO_KERNEL
    try:
        kernel = uml.build(say)
    except uml.KernelError as error:
        print(f"no kernel for the guest: {error}", file=sys.stderr)
        return EXIT_NO_KERNEL
    os.chdir(REPO)
    plain = {} if sys.stdout.isatty() else {"NO_COLOR": "1"}
    columns = str(shutil.get_terminal_size().columns)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PYTHONPATH": str(REPO), "COLUMNS": columns, "PATH": path, **plain}

    def boot(argv: Sequence[str], core: int, out: BinaryIO) -> int:
        within = arguments.within
        return guest.run(kernel, argv, within=within, say=say, out=out, core=core, environment=environment)

    if not rest:
        return side_by_side(boot)
    argv = rest if arguments.exec else command(rest)
    return boot(argv, max(os.sched_getaffinity(0)), sys.stdout.buffer)


if __name__ == "__main__":
    sys.exit(main())
