"""Networks whose mode is being changed: what stays in force beside the conf's mode, and what peers are told.

A node tells in which modes it takes packets. A mode that it takes up is told when it is prepared; one that it
gives up is withdrawn first, and goes when peers have had the time to hear it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from agent.model.cluster import ENDS, AcceptedModes, Node
from agent.model.network import ModeOptions, Network
from agent.modes.base import PLAIN
from agent.modes.registry import Modes


def accepted_modes(
    chosen: Mapping[str, Network], ready: Iterable[Network], leaving: Collection[Network], modes: Modes
) -> AcceptedModes:
    """Return the modes of each network of the confs in which packets are accepted now, that of the conf first."""
    found: dict[str, set[str]] = {}
    for network in ready:
        if network.name in chosen and network not in leaving:
            found.setdefault(network.name, set()).add(network.mode)
    order = (*modes.routed.by_preference, *modes.names)
    return tuple(
        (name, tuple(sorted(accepted, key=lambda mode: (mode != chosen[name].mode, order.index(mode)))))
        for name, accepted in sorted(found.items())
    )


def transition_networks(
    chosen: Mapping[str, Network],
    peers: Iterable[Node],
    needed: Collection[Network],
    known: Collection[Network],
    modes: Modes,
) -> frozenset[Network]:
    """Return networks with tunnels to peers that do not accept the mode of the conf yet, or no longer do.

    Plain packets need no network of their own: every node forwards those.
    """
    path, wanted = modes.routed.path, set()
    for peer in peers:
        for name, announced in peer.accepted_modes:
            conf, theirs = chosen.get(name), modes.routed.known(announced)
            if not (conf and theirs and conf.options.routed):
                continue
            if path(conf.mode) not in (PLAIN, *theirs) and path(theirs[0]) != PLAIN:
                wanted.add((conf, theirs[0]))
    held = {(network.name, network.mode) for network in needed}
    found = set()
    for conf, mode in wanted:
        if (conf.name, mode) not in held:
            earlier = (n for n in sorted(known, key=str) if (n.name, n.mode) == (conf.name, mode))
            found.add(next(earlier, conf.in_mode(modes.options[mode])))
    return frozenset(found)


class TunnelPorts:
    """UDP ports of tunnels in the cluster; that of a tunnel that a network gives up stays until it is gone."""

    def __init__(self, modes: Modes, kept: float) -> None:
        """`kept`: seconds that an unused port stays a tunnel's: its node may hear late that it may remove it."""
        self._modes = modes
        self._kept = kept
        self._used: frozenset[int] = frozenset()
        self._left: dict[int, float] = {}
        """The ports that are in use no more, and since when (time.monotonic)."""

    @property
    def ends(self) -> list[float]:
        """The times when the ports go that are in use no more (time.monotonic)."""
        return [since + self._kept for since in self._left.values()]

    def look(
        self, networks: Iterable[Network], chosen: Mapping[str, Network], peers: Iterable[Node], now: float
    ) -> tuple[int, ...]:
        """Return the ports, those of this node's networks first: a peer's is what the conf of its network says."""
        own = {port for network in networks for port in network.options.tunnel_ports}
        theirs = {
            port
            for peer in peers
            for name, accepted in peer.accepted_modes
            for mode in accepted
            if name != ENDS and mode in self._modes
            for port in _options(chosen.get(name), self._modes.options[mode]).tunnel_ports
        }
        left = dict.fromkeys(self._used, now) | self._left
        self._used = frozenset(own | theirs)
        self._left = {port: t for port, t in left.items() if port not in self._used and t + self._kept > now}
        ports = self._used | self._left.keys()
        return tuple(sorted(ports, key=lambda port: (port not in own, port not in theirs, port)))


class DrainingNetworks:
    """Networks of a mode that their conf has left, until peers had the time to hear of it."""

    def __init__(self, in_force: Collection[Network], grace: float) -> None:
        """`grace`: seconds from the withdrawal of a mode to its removal."""
        self._grace = grace
        self.networks: frozenset[Network] = frozenset()
        self._in_force = frozenset(in_force)
        self._withdrawn: dict[Network, float] = {}

    @property
    def in_force(self) -> frozenset[Network]:
        """The networks in force at the last look, at first those of an earlier run."""
        return self._in_force

    @property
    def ends(self) -> list[float]:
        """The times when the networks go whose withdrawal was seen (time.monotonic)."""
        return [since + self._grace for since in self._withdrawn.values()]

    def keep(
        self, needed: frozenset[Network], chosen: Mapping[str, Network], told: Node | None, now: float
    ) -> frozenset[Network]:
        """Return the networks that stay though nothing needs them; `told` is this node as its peers see it."""
        left = {
            network
            for network in self._in_force - needed
            if network.options.routed and network.name in chosen and network.mode != chosen[network.name].mode
        }
        withdrawn = {n for n in left if n.mode not in (told.announced_modes(n.name) if told else ())}
        self._withdrawn = {n: self._withdrawn.get(n, now) for n in withdrawn}
        self.networks = frozenset(n for n in left if self._withdrawn.get(n, now) > now - self._grace)
        self._withdrawn = {n: since for n, since in self._withdrawn.items() if n in self.networks}
        self._in_force = needed | self.networks
        return self.networks


def _options(conf: Network | None, kind: type[ModeOptions]) -> ModeOptions:
    """Return the options of a peer's network: those that this node's conf has for the peer's mode."""
    return conf.options_for(kind) if conf else kind()
