"""The meaning of a round for pods: the networks that are ready for them, with their blocks, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.ip import Subnet
from agent.ipam import blocks, exhaustion
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.block_claims import missing_block
from agent.ipam.block_claims.block_controller import BlockController
from agent.ipam.pool_faults import PoolFaultCache
from agent.ipam.reservations import problems as reservation_problems
from agent.model.cluster import AcceptedModes
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.node import block_demand
from agent.node.apply import ApplyResult
from agent.node.desired_state import DesiredState
from agent.node.last_known_nodes import identity
from agent.node.mode_admission import Admitted
from agent.node.round_inputs import RoundInputs
from agent.objects.routes import Routes
from agent.objects.state import NodeState


@dataclass(frozen=True, slots=True)
class Outcome:
    """The inputs of a round, the state that it desired, and what it did."""

    inputs: RoundInputs
    desired: DesiredState
    done: ApplyResult

    @property
    def working(self) -> tuple[Network, ...]:
        """The networks of which all that pods depend on is in the kernel."""
        return tuple(n for n, state in self.desired.networks.items() if _works(n, state, self.done))


class RoundStatus:
    """Turns what a round did into the status of the node."""

    def __init__(self, node: str, attachments: AttachmentStore, block_controller: BlockController) -> None:
        self._node = node
        self._attachments = attachments
        self._block_controller = block_controller
        self._faults = PoolFaultCache()

    def ready(self, outcome: Outcome) -> dict[Network, tuple[Subnet, ...]]:
        """Return the networks that are ready for pods, with the blocks that their pods may have addresses of."""
        found = {}
        for network in outcome.working:
            refused = outcome.desired.networks[network].refused
            own = blocks.node_blocks(outcome.inputs.pods, network, self._node)
            if usable := tuple(block for block in own if block not in refused):
                found[network] = usable
        return found

    def of(
        self,
        outcome: Outcome,
        ready: Mapping[Network, tuple[Subnet, ...]],
        admitted: Admitted,
        accepted: AcceptedModes,
    ) -> NodeStatus:
        """Return the status of the node without problems; `accepted` is what it announces to its peers."""
        inputs, desired = outcome.inputs, outcome.desired
        snapshot, node, states = inputs.pods, self._node, desired.networks
        off_block = frozenset(pod for network in ready for pod in desired.off_block_pods[network])
        excluded = {n: blocks.excluded(snapshot, n, node, own) for n, own in ready.items()}
        return NodeStatus(
            synced=True,
            blocks=dict(ready),
            excluded={network: subnets for network, subnets in excluded.items() if subnets},
            families={n: blocks.families(snapshot, n, node) - states[n].lacking for n in ready},
            limits=dict(self._limits(inputs, ready)),
            uplinks={n: uplink for n in ready for uplink in states[n].uplinks},
            routes=len(desired.node.routes),
            programmed=outcome.done.of(Routes.kind).programmed,
            off_block_pods=off_block,
            roaming=frozenset(r.dst for r in desired.node.routes if blocks.is_single(r.dst)) - off_block,
            accepted_modes=accepted,
            host_networks=snapshot.host_networks,
            pool_faults={
                **missing_block.starved(snapshot, inputs.networks, node),
                **self._faults.look(snapshot, inputs.networks),
            },
            refused=admitted.refused,
            unserved=self._attachments.networks() - set(outcome.working),
        )

    def problems(self, outcome: Outcome, admitted: Admitted) -> Iterator[Problem]:
        """Return what is wrong with what a round went by, desired and did."""
        inputs = outcome.inputs
        yield from admitted.problems
        yield from identity(inputs.pods, self._node, inputs.kernel.local)
        yield from inputs.known.problems
        yield from inputs.known.disputes()
        yield from reservation_problems.misplaced(inputs.pods, inputs.networks, self._node)
        yield from reservation_problems.useless(inputs.pods, inputs.networks, self._node)
        yield from sorted(outcome.desired.node.problems, key=str)
        yield from outcome.done.problems

    def shortages(self, status: NodeStatus) -> Iterator[Problem]:
        """Return the networks that have no more addresses for pods."""
        counts = self._attachments.counts
        yield from exhaustion.problems(status, lambda r: counts(r)[0], self._block_controller.why_refused)

    def _limits(
        self, inputs: RoundInputs, ready: Mapping[Network, object]
    ) -> Iterator[tuple[tuple[Network, int], str]]:
        for network in ready:
            for version in network.versions:
                if why := block_demand.limit(inputs.pods, self._node, self._block_controller, network, version):
                    yield (network, version), why


def _works(network: Network, state: NodeState, done: ApplyResult) -> bool:
    return state.devices.isdisjoint(done.unready) and network.needs_parent == bool(state.uplinks)
