"""A monitor of the kernel's notifications about routes."""

from __future__ import annotations

import itertools
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.space import PATIENCE

MARKER = "198.51.100.1", "table", "4242"  # changed until the monitor reports it
WITHIN = 60.0  # seconds


def route_monitor(*enter: str, seconds: float = 600) -> subprocess.Popen[str]:
    """Start `ip monitor route` for so many seconds; it listens when this returns.

    `enter`: a command that runs its arguments in another network namespace; without it the monitor is in this one.
    """
    argv = (*enter, "timeout", str(seconds), "ip", "-N", "monitor", "route")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    end = time.monotonic() + WITHIN * PATIENCE
    # the kernel does not report a replace that changes nothing
    for kind in itertools.cycle(("blackhole", "prohibit")):
        assert time.monotonic() < end, f"{argv} reports nothing"
        subprocess.run((*enter, "ip", "route", "replace", kind, *MARKER), check=True)
        if select.select([process.stdout], [], [], 0.02)[0]:
            break
    return process


@contextmanager
def told_of_routes() -> Iterator[list[str]]:
    """Yield the kernel's notifications about routes, in their order; it listens once this is entered."""
    monitor = route_monitor()
    heard: list[str] = []

    def read() -> None:
        for line in monitor.stdout or ():
            heard.append(line)  # noqa: PERF402 - one by one, as they come

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield heard
    finally:
        monitor.terminate()  # `timeout` passes that on
        monitor.wait()
        reader.join()
