"""When a BIRD that was started anew may touch the kernel: not before it knows again what is in there.

BIRD's own graceful restart waits for peers only as long as these are not restarting too, so that nodes that are
upgraded at once would remove each other's routes for a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

LONGEST = 15.0  # seconds for which new routes may have to wait for a peer that is really gone
SETTLED = 3.0  # seconds after which peers that are all there have said what they have to say


@dataclass(slots=True)
class Recovery:
    """The routes of an earlier BIRD that the kernel still has, and since when (time.monotonic) this one learns."""

    routes: frozenset[IPv4Network]
    began: float
    settled: float = 0.0

    def is_over(self, known: frozenset[IPv4Network], now: float, *, settled: bool) -> bool:
        """Whether nothing is left to wait for; `settled` means that all sessions are there and BIRD is at rest."""
        self.settled = (self.settled or now) if settled else 0.0
        return (
            self.routes <= known
            or now - self.began > LONGEST
            or bool(self.settled and now - self.settled > SETTLED)
        )
