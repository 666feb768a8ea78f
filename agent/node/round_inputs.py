"""The inputs of a round of the reconciler, read once: the cluster, the networks and the kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.kernel import netlink
from agent.model.cluster import AcceptedModes, Snapshot
from agent.model.network import Network
from agent.modes.underlay import announcement
from agent.node import kernel_state
from agent.node.apply import NodeProgrammer
from agent.node.last_known_nodes import Known, LastKnownNodes
from agent.node.networks_in_force import NetworksInForce
from agent.node.reconciler_inputs import Inputs
from agent.objects.base import KernelState
from agent.objects.state import Underlay


@dataclass(frozen=True, slots=True)
class RoundInputs:
    """All that a round depends on."""

    pods: Snapshot
    """The cluster, for what pods are given."""
    cluster: Snapshot
    """The same with what Nodes lack just now, for what is in the kernel."""
    networks: tuple[Network, ...]
    kernel: KernelState
    underlay: Underlay
    known: Known
    announced: AcceptedModes
    """The announcement to peers about this node's addresses."""


class KernelUnreadableError(Exception):
    """The kernel does not say how it is: nothing can be compared."""


class RoundReader:
    """Reads what a round goes by."""

    def __init__(
        self,
        node: str,
        inputs: Inputs,
        last_known: LastKnownNodes,
        networks: NetworksInForce,
        programmer: NodeProgrammer,
    ) -> None:
        self._node = node
        self._inputs = inputs
        self._last_known = last_known
        self._networks = networks
        self._programmer = programmer

    def read(self, snapshot: Snapshot) -> RoundInputs:
        """Return what a round goes by. Raises KernelUnreadableError."""
        known = self._last_known.look(snapshot)
        cluster = replace(snapshot, nodes=known.nodes)
        networks = tuple(self._networks.look(self._inputs.confs.get(), cluster))
        try:
            kernel, underlay = self._read_kernel(networks, known)
        except OSError as error:
            raise KernelUnreadableError(str(error)) from error
        if self._inputs.attachments.unreadable():
            self._inputs.attachments.forget_removed({link.name for link in kernel.links})
        me = cluster.nodes.get(self._node)
        host_networks = kernel_state.host_networks_of(kernel, me, self._inputs.servers)
        return RoundInputs(
            replace(snapshot, host_networks=host_networks),
            replace(cluster, host_networks=host_networks),
            networks,
            kernel,
            underlay,
            known,
            announcement(me, kernel.local, known.ends),
        )

    def _read_kernel(self, networks: tuple[Network, ...], known: Known) -> tuple[KernelState, Underlay]:
        """Read the kernel, and look up what is costly only where a network needs it. Raises OSError."""
        nl, gateways = netlink.host(), any(network.needs_parent for network in networks)
        kernel = kernel_state.read(nl, self._programmer.is_made, gateways=gateways, known=known, node=self._node)
        if not any(self._inputs.modes.of(network).needs_underlay for network in networks):
            return kernel, Underlay()
        underlay = kernel_state.underlay(nl, kernel, known, self._node)
        return kernel, replace(underlay, by_device=self._programmer.encapsulates())
