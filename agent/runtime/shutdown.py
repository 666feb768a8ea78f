"""End the agent at a signal, which may come while any lock is held, or when a part of it requests that."""

from __future__ import annotations

import contextlib
import os
import signal


class MustEndError(Exception):
    """The agent can continue only after a restart. The text says why."""


class Shutdown:
    """Wakes the main thread without a lock: a signal handler that takes a lock may wait for its own thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write, False)

    def on(self, *numbers: int) -> None:
        """End the agent at these signals; only the main thread may call it.

        The interpreter writes to the pipe from whichever thread the kernel gave the signal to (signal(7)).
        """
        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def now(self) -> None:
        """End the agent: `wait` returns, also one that is called later."""
        with contextlib.suppress(BlockingIOError):  # it is full, so `wait` returns anyway
            os.write(self._write, b"\0")

    def wait(self) -> None:
        """Wait until the agent is to end."""
        os.read(self._read, 1)
