"""End the agent: at a signal, which may come while any lock is held, or when a part of it asks for it."""

from __future__ import annotations

import contextlib
import os
import signal


class Shutdown:
    """Wakes the main thread without any lock: a signal handler that takes one may wait for its own thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write, False)

    def on(self, *numbers: int) -> None:
        """End at these signals; for the main thread.

        The interpreter writes to the pipe from whichever thread the kernel gave the signal to (signal(7)).
        """
        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def now(self) -> None:
        """End: `wait` returns, also when it begins later."""
        with contextlib.suppress(BlockingIOError):  # it is full: it has been said often enough
            os.write(self._write, b"\0")

    def wait(self) -> None:
        """Wait for the end."""
        os.read(self._read, 1)
