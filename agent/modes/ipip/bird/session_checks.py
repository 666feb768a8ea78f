"""Find missing BGP sessions, with reasons and remedies for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.model.problem import Problem
from agent.modes.ipip.bird.types import BirdConfig, BirdTimes, Session, State

REMEDIES = (  # of BIRD's proto/bgp/bgp.c and packets.c
    ("Bad peer AS", "give both sides the other's AS number"),
    ("Invalid next hop", "give the peer an address that this node can reach"),
    ("Connection refused", "see whether BIRD (the agent) runs there, and what else has TCP port 179"),
    ("No route to host", "see whether the node is up, and `ip route get` to its address"),
    ("Not listening", "something else on this node has TCP port 179: end it"),
    ("Collision", "two nodes have one router id: give each an InternalIP of its own"),
)
SILENT = "see whether the address is right, a firewall drops TCP port 179, and both sides have the same password"


class Health:
    """Remembers since when each session is missing."""

    def __init__(self, patience: float = BirdTimes().session) -> None:
        """`patience`: seconds without a session before it is a problem."""
        self._patience = patience
        self._since: dict[str, float] = {}

    @property
    def waiting(self) -> bool:
        """Whether any session is missing."""
        return bool(self._since)

    def problems(self, config: BirdConfig, sessions: Iterable[Session], now: float) -> tuple[Problem, ...]:
        """Return the sessions that are missing for too long as problems; `now` is of time.monotonic."""
        missing = [session for session in sessions if session.state is not State.ESTABLISHED]
        self._since = {session.peer: self._since.get(session.peer, now) for session in missing}
        addresses = {
            **{peer.name: f"node {peer.name} ({peer.address})" for peer in config.peers},
            **{external.name: f"external peer {external.address}" for external in config.externals},
        }
        return tuple(_problems(addresses, (s for s in missing if now - self._since[s.peer] >= self._patience)))


def _problems(names: dict[str, str], missing: Iterable[Session]) -> Iterator[Problem]:
    for session in missing:
        remedy = next((remedy for words, remedy in REMEDIES if words in session.error), SILENT)
        why = f": {session.error}" if session.error else ""
        yield Problem(f"BGP session with {names.get(session.peer, session.peer)}", f"is missing{why}", remedy)
