"""The networks that a node serves: named by confs, used by pods, asked for just now, or on the way to peers."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from agent.host.cni_conf_dir import Confs
from agent.model.cluster import AcceptedModes, Node, Snapshot
from agent.model.network import Network
from agent.node import mode_admission, mode_migration
from agent.node.reconciler_inputs import Inputs


class NetworksInForce:
    """The networks of the last look, and the modes in which this node accepts packets of them."""

    def __init__(self, node: str, inputs: Inputs, earlier: Collection[Network]) -> None:
        """`earlier`: the networks that were ready when an earlier agent ended."""
        self._node = node
        self._modes = inputs.modes
        self._attachments = inputs.attachments
        self._demand = inputs.demand
        self._ports = mode_migration.TunnelPorts(inputs.modes, 2 * inputs.mode_grace)
        self._leaving = mode_migration.DrainingNetworks(earlier, inputs.mode_grace)
        self._ready = frozenset(earlier)
        self.admitted = mode_admission.Admitted()

    @property
    def ends(self) -> list[float]:
        """The times when a network or port is no longer in force, if nothing else happens (time.monotonic)."""
        demanded = (want.until for want in self._demand.get().values())
        return [*demanded, *self._leaving.ends, *self._ports.ends]

    def look(self, confs: Confs, snapshot: Snapshot) -> list[Network]:
        """Return the networks that are in force now."""
        now = time.monotonic()
        demand = self._demand.get()
        if any(want.until <= now for want in demand.values()):
            self._demand.update(lambda d: {n: want for n, want in d.items() if want.until > now})
        asked = {network for network, want in demand.items() if want.until > now}
        used, peers, leaving = self._attachments.networks(), self._peers(snapshot), self._leaving
        self.admitted = mode_admission.admit(confs, asked, used, leaving.in_force, peers, self._modes)
        chosen, needed = self.admitted.chosen, self.admitted.networks | used
        needed |= mode_migration.transition_networks(chosen, peers, needed, leaving.in_force, self._modes)
        return sorted(needed | leaving.keep(needed, chosen, snapshot.nodes.get(self._node), now), key=str)

    def tunnel_ports(self, networks: Iterable[Network], snapshot: Snapshot) -> tuple[int, ...]:
        """Return the UDP ports of tunnels in the cluster, those of this node first."""
        return self._ports.look(networks, self.admitted.chosen, self._peers(snapshot), time.monotonic())

    def note_ready(self, ready: Collection[Network], networks: Iterable[Network]) -> None:
        """Take in which networks are ready; where none of a name is for a moment, the former ones stay."""
        names = {network.name for network in ready}
        kept = (network for network in self._ready.intersection(networks) if network.name not in names)
        self._ready = frozenset((*ready, *kept))

    def accepted_modes(self, addresses: AcceptedModes) -> AcceptedModes:
        """Return what this node announces: `addresses`, and the modes in which it accepts packets."""
        chosen, silent = self.admitted.chosen, self.admitted.silent(self._attachments.networks())
        modes = mode_migration.accepted_modes(chosen, self._ready, self._leaving.networks, self._modes)
        return tuple(sorted((*(entry for entry in modes if entry[0] not in silent), *addresses)))

    def _peers(self, snapshot: Snapshot) -> list[Node]:
        return [node for node in snapshot.nodes.values() if node.name != self._node]
