"""The view of a mode's packets that `testcnictl monitor` shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

Event = Mapping[str, Any]
"""Something that happened to a packet or a flow, as JSON."""


class PacketMonitor(ABC):
    """A view of what the programs of a mode do to packets, from the moment when it is made."""

    @abstractmethod
    def wait(self) -> list[Event]:
        """Return the events of the next second. Raises OSError."""

    @abstractmethod
    def line(self, event: Event) -> str:
        """Return an event as a line of text."""

    @abstractmethod
    def screen(self, events: Iterable[Event]) -> str:
        """Return a screen of all events so far, these included. Raises OSError."""
