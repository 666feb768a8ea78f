"""Agents as processes of a node: started as an operator does, or forked from a process that has their modules.

Loading takes two thirds of the processor time of an agent's start, and the lab's tests start hundreds of agents.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import agent.cli  # noqa: F401 - loaded once for all
from tests.lab.space import Space

NAMESPACES = ("net", "uts", "mnt")  # the last one hides the others' files
_processes = threading.Lock()


class StartedAgent(subprocess.Popen[bytes]):
    """An agent that is started by its command line."""

    def __init__(
        self, space: Space, program: str, options: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        with log.open("ab") as file:
            super().__init__(
                space.argv(sys.executable, "-m", program, *options),
                env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip


class ForkedAgent:
    """An agent that begins with its modules loaded; it has the methods of a Popen that a node needs."""

    def __init__(
        self, space: Space, program: str, options: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        log.touch()
        arguments = (space.inner, program, tuple(options), dict(environment), str(log))
        self._process = _server().Process(target=_run, args=arguments, daemon=True)
        with _processes:
            self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs; a signal that ended it is negative."""
        with _processes:  # to start one looks at all others, and an exit code can be read once
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code; raises TimeoutExpired."""
        connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("agent", timeout or 0)
        return code


@functools.cache
def _server() -> ForkServerContext:
    """Return the process, one without threads, that agents are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _run(holder: int, program: str, options: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    """Become an agent of a node, as `nsenter … python -m PROGRAM` would, and end with its exit code."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for standard, fd in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(fd, standard)
    os.closerange(3, 256)
    libc = ctypes.CDLL(None, use_errno=True)
    for file in [os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY) for kind in NAMESPACES]:
        if libc.setns(file, 0):
            raise OSError(ctypes.get_errno(), f"the namespaces of process {holder} can't be entered")
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *options]
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out: the log is written by a thread
