"""Values that one thread publishes and others wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from agent.runtime.deadline import Deadline

T = TypeVar("T")


class Observable(Generic[T]):
    """Holds the newest value of something, and wakes threads that wait for the next one."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._condition = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def get(self) -> T:
        """Return the value now."""
        return self._value

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each publication, in the publisher's thread."""
        self._listeners.append(listener)

    def publish(self, value: T) -> None:
        """Replace the value."""
        self.update(lambda _old: value)

    def update(self, change: Callable[[T], T]) -> None:
        """Replace the value by the result of `change`; waiting threads are not woken if it is equal."""
        with self._condition:
            new = change(self._value)
            if new == self._value:
                return
            self._value = new
            self._condition.notify_all()
        for listener in self._listeners:
            listener()

    def wait(self, wanted: Callable[[T], bool], deadline: Deadline) -> bool:
        """Wait until `wanted` is true for the value, at most until `deadline`; return whether it is."""
        with self._condition:
            return self._condition.wait_for(lambda: wanted(self._value), timeout=deadline.left)
