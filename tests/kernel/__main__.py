"""`python -m tests.kernel [pytest's arguments]`: tests on a kernel that has what this machine's may lack."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from tests.kernel import guest, uml
from tests.lab.space import REPO

# What `make test-kernel` runs; what is not there (yet) is left out.
SELECTION = (
    "tests/kernel",
    "tests/netns/test_probe.py",
    "tests/lab/test_topology.py",
    "tests/lab/test_ipip.py",
    "tests/lab/test_l2.py",
    "tests/lab/test_lab.py::test_every_pair_reaches_every_other",
    "tests/lab/test_lab.py::test_pods_keep_their_address_among_themselves_and_lose_it_outside",
    "tests/lab/test_lab.py::test_nodes_come_change_and_go_within_a_second",
    "tests/lab/test_lab.py::test_an_agent_that_is_restarted_changes_nothing",
)
# It measures the machine, not the kernel's abilities.
LEFT_OUT = ("--deselect", "tests/lab/test_topology.py::test_hundreds_of_nodes_are_quick")
WITHIN = 1500.0  # seconds
EXIT_NO_KERNEL = 3
BEGAN = time.monotonic()


def say(text: str) -> None:
    """Progress goes to stderr, what the tests say to stdout."""
    print(f"{time.monotonic() - BEGAN:5.1f} s  {text}", file=sys.stderr, flush=True)


def selection() -> list[str]:
    """The default tests that are there."""
    return [one for one in SELECTION if (REPO / one.partition("::")[0]).exists()]


def command(arguments: list[str]) -> list[str]:
    """The command line of pytest in the guest."""
    colour = "yes" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else "no"
    pytest = [sys.executable, "-m", "pytest", "-p", "tests.kernel.plugin", f"--color={colour}"]
    return [*pytest, *(arguments or [*selection(), *LEFT_OUT])]


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
    argv = rest if arguments.exec else command(rest)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PYTHONPATH": str(REPO), "COLUMNS": columns, "PATH": path, **plain}
    return guest.run(kernel, argv, within=arguments.within, say=say, environment=environment)


if __name__ == "__main__":
    sys.exit(main())
