"""Hear from the kernel when somebody else may have changed the node's state."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agent.kernel.netlink_monitor import Monitor


class DriftMonitor:
    """Waits for notifications of a netlink monitor, in a thread of its own."""

    def __init__(self, monitor: Callable[[], Monitor], drifted: Callable[[], None]) -> None:
        """`monitor` opens the monitor in the thread; `drifted` is called after each change."""
        self._monitor = monitor
        self._drifted = drifted

    def run(self, stop: threading.Event) -> None:
        """Report changes until `stop` is set. Raises OSError."""
        monitor = self._monitor()
        while not stop.is_set():
            if monitor.changed():
                self._drifted()
