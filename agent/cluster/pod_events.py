"""Events for pods on their way from the pod path to the API server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from agent.model.node_status import Notice


class Notices:
    """Notices on their way from the pod path, which does not wait: the oldest go where nobody takes them."""

    def __init__(self) -> None:
        self._waiting: deque[Notice] = deque(maxlen=256)
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each notice, in its thread."""
        self._listeners.append(listener)

    def put(self, notice: Notice) -> None:
        """Hand one over."""
        self._waiting.append(notice)
        for listener in self._listeners:
            listener()

    def take(self) -> Notice | None:
        """The oldest one, which is then gone."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None
