"""Networks whose mode is being changed: what stays in force beside the conf's mode, and what peers are told.

A node tells in which modes it takes packets. A mode that it takes up is told when it is prepared; one that it
gives up is withdrawn first, and goes when peers have had the time to hear it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from agent.model import HOST_GW, ROUTED, Network, Node, Receives

GRACE = 15.0  # seconds from the withdrawal to the removal


def receives(chosen: Mapping[str, Network], ready: Iterable[Network], leaving: Collection[Network]) -> Receives:
    """The modes of each network of the confs in which packets are taken now, that of the conf first."""
    found: dict[str, set[str]] = {}
    for network in ready:
        if network.mode in ROUTED and network.name in chosen and network not in leaving:
            found.setdefault(network.name, set()).add(network.mode)
    return tuple(
        (name, tuple(sorted(modes, key=lambda mode: (mode != chosen[name].mode, ROUTED.index(mode)))))
        for name, modes in sorted(found.items())
    )


def siblings(
    chosen: Mapping[str, Network], peers: Iterable[Node], needed: Collection[Network], known: Collection[Network]
) -> frozenset[Network]:
    """Tunnels to peers that do not take the mode of the conf yet, or not any more.

    Plain packets need no network of their own: every node forwards those.
    """
    wanted = set()
    for peer in peers:
        for name, modes in peer.receives:
            conf = chosen.get(name)
            if conf and conf.mode in ROUTED and conf.mode not in (HOST_GW, *modes) and modes[0] != HOST_GW:
                wanted.add((conf, modes[0]))
    held = {(network.name, network.mode) for network in needed}
    found = set()
    for conf, mode in wanted:
        if (conf.name, mode) not in held:
            earlier = (n for n in sorted(known, key=str) if (n.name, n.mode) == (conf.name, mode))
            found.add(next(earlier, replace(conf, mode=mode)))
    return frozenset(found)


class Leaving:
    """Networks of a mode that their conf has left, until peers had the time to hear of it."""

    def __init__(self, in_force: Collection[Network]) -> None:
        self.networks: frozenset[Network] = frozenset()
        self._in_force = frozenset(in_force)
        self._withdrawn: dict[Network, float] = {}

    @property
    def in_force(self) -> frozenset[Network]:
        """What was in force at the last look, of an earlier run at first."""
        return self._in_force

    @property
    def ends(self) -> list[float]:
        """When those go whose withdrawal was seen (time.monotonic)."""
        return [since + GRACE for since in self._withdrawn.values()]

    def keep(
        self, needed: frozenset[Network], chosen: Mapping[str, Network], told: Node | None, now: float
    ) -> frozenset[Network]:
        """Those that stay though nothing needs them; `told` is this node as its peers see it."""
        left = {
            network
            for network in self._in_force - needed
            if network.mode in ROUTED and network.name in chosen and network.mode != chosen[network.name].mode
        }
        withdrawn = {n for n in left if n.mode not in (told.modes(n.name) if told else ())}
        self._withdrawn = {n: self._withdrawn.get(n, now) for n in withdrawn}
        self.networks = frozenset(n for n in left if self._withdrawn.get(n, now) > now - GRACE)
        self._withdrawn = {n: since for n, since in self._withdrawn.items() if n in self.networks}
        self._in_force = needed | self.networks
        return self.networks
