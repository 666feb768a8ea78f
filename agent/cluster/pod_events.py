"""Queue Events about pods, from the pod path to the writer of Events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from agent.model.node_status import PodEvent


class PodEventQueue:
    """A queue from the pod path, which never waits: when it is full, the oldest event is dropped."""

    def __init__(self) -> None:
        self._waiting: deque[PodEvent] = deque(maxlen=256)
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each event, in the thread of `put`."""
        self._listeners.append(listener)

    def put(self, pod_event: PodEvent) -> None:
        """Add an event."""
        self._waiting.append(pod_event)
        for listener in self._listeners:
            listener()

    def take(self) -> PodEvent | None:
        """Take the oldest event, or None."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None
