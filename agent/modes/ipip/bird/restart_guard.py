"""Decide when a restarted BIRD may change the kernel: not before it has learned the routes there again.

BIRD's own graceful restart waits for peers only as long as these are not restarting too, so that nodes that are
upgraded at once would remove each other's routes for a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

LONGEST = 15.0  # seconds: how long a peer that is really gone may delay new routes
SETTLED = 3.0  # seconds after which connected peers have sent all their routes


@dataclass(slots=True)
class Recovery:
    """The routes that an earlier BIRD left in the kernel, and when (time.monotonic) this BIRD started."""

    routes: frozenset[IPv4Network]
    began: float
    settled: float = 0.0

    def is_over(self, known: frozenset[IPv4Network], now: float, *, settled: bool) -> bool:
        """Return whether there is nothing left to wait for; `settled`: all sessions exist, and BIRD is idle."""
        self.settled = (self.settled or now) if settled else 0.0
        return (
            self.routes <= known
            or now - self.began > LONGEST
            or bool(self.settled and now - self.settled > SETTLED)
        )
