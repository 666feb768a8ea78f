"""What the two paths hand to each other: frozen values, published one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Observable(Generic[T]):
    """The newest value of something; who waits for it is woken by the next one."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._condition = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def get(self) -> T:
        """The value now."""
        return self._value

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each publication, in the publisher's thread."""
        self._listeners.append(listener)

    def publish(self, value: T) -> None:
        """Make `value` the newest."""
        self.update(lambda _old: value)

    def update(self, change: Callable[[T], T]) -> None:
        """Make the newest what `change` makes of it; nobody is woken when it is the same."""
        with self._condition:
            new = change(self._value)
            if new == self._value:
                return
            self._value = new
            self._condition.notify_all()
        for listener in self._listeners:
            listener()

    def wait(self, wanted: Callable[[T], bool], deadline: float) -> bool:
        """Wait until `wanted` is true of the value, or until `deadline` (time.monotonic); whether it is."""
        with self._condition:
            return self._condition.wait_for(
                lambda: wanted(self._value), timeout=max(0.0, deadline - time.monotonic())
            )
