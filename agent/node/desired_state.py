"""The desired state of the node: what its modes desire for each network, computed again where inputs differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.ip import Subnet
from agent.ipam import blocks
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.model.cluster import AcceptedModes
from agent.model.network import Network
from agent.modes.base import ModeContext
from agent.modes.registry import Modes
from agent.node import block_demand
from agent.node.round_inputs import RoundInputs
from agent.objects.state import NodeState, union


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The state that a round desires."""

    node: NodeState = field(default_factory=NodeState)
    """The state that all networks want together."""
    networks: Mapping[Network, NodeState] = field(default_factory=dict)
    off_block_pods: Mapping[Network, frozenset[Subnet]] = field(default_factory=dict)
    """Single addresses of pods here that are in none of the node's blocks, by network."""

    def is_unfit(self, network: Network) -> bool:
        """Return whether there is no parent that pods could depend on, so that no block would be of use."""
        state = self.networks.get(network)
        return bool(network.needs_parent and state and state.problems and not state.uplinks)


class DesiredStates:
    """Asks the modes, and remembers their answers: they depend on the question only."""

    def __init__(self, node: str, modes: Modes, attachments: AttachmentStore) -> None:
        self._node = node
        self._modes = modes
        self._attachments = attachments
        self._memory: dict[Network, tuple[ModeContext, NodeState]] = {}

    def of(self, inputs: RoundInputs, accepted: AcceptedModes, *, ipv6: bool) -> DesiredState:
        """Return what the round desires; `accepted` is what this node announces to its peers.

        `ipv6`: whether the kernel has IPv6.
        """
        views = [self._view(inputs, accepted, network, ipv6=ipv6) for network in inputs.networks]
        self._memory = {view.network: (view, self._desired(view)) for view in views}
        states = {network: state for network, (_view, state) in self._memory.items()}
        return DesiredState(union(states.values()), states, {view.network: view.off_block_pods for view in views})

    def _desired(self, view: ModeContext) -> NodeState:
        known = self._memory.get(view.network)
        if known and known[0] == view:
            return known[1]
        return self._modes.of(view.network).desired(view)

    def _view(self, inputs: RoundInputs, accepted: AcceptedModes, network: Network, *, ipv6: bool) -> ModeContext:
        own = blocks.node_blocks(inputs.cluster, network, self._node)
        if network.pool:  # a bridge has the gateways of all blocks of its pods, whichever network they are of
            common = blocks.node_blocks(inputs.cluster, replace(network, pool=""), self._node)
            own = tuple(dict.fromkeys((*common, *own)))
        used = block_demand.in_use(self._attachments, network)
        kept = sorted(used - set(own), key=str)
        all_pods = self._attachments.in_force()
        pods = [a for a in all_pods if a.network == network and a.owner]
        off_block = frozenset(alone for pod in pods for alone in pod.off_block)
        if any(block.version in network.versions for block in own) and network.options.host_routes:
            # their pods need no address of the block on the node, and who has it now is reached
            off_block |= self._alone(network, kept)
            kept = []
        reserved = frozenset(blocks.single(address) for pod in pods for address in pod.reserved)
        others = (lease.address for a in all_pods if a.network.mode != network.mode for lease in a.leases)
        other_mode = frozenset(address for address in others if any(address in block for block in (*own, *kept)))
        return ModeContext(
            inputs.cluster,
            self._node,
            inputs.kernel.local,
            network,
            (*own, *kept),
            inputs.underlay,
            off_block,
            reserved,
            other_mode,
            self._modes.routed.known(dict(accepted).get(network.name, ())),
            inputs.known.ends,
            inputs.known.claims,
            used,
            inputs.kernel.routers,
            ipv6,
            routed=self._modes.routed,
        )

    def _alone(self, network: Network, gone: Iterable[Subnet]) -> frozenset[Subnet]:
        """Return the addresses that pods of the network have of these blocks, each by itself."""
        left = set(gone)
        pods = (a for a in self._attachments.in_force() if a.network == network)
        return frozenset(blocks.single(lease.address) for a in pods for lease in a.leases if lease.block in left)
