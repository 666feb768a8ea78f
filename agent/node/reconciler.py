"""Makes the node's state in the kernel what the modes desire, whenever either of the two may have changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.ipam import blocks
from agent.ipam.block_claims.block_controller import BlockController
from agent.ipam.block_claims.idle_blocks import IdleBlockReleaser
from agent.kernel import netlink
from agent.model.cluster import AcceptedModes, Snapshot
from agent.model.network import Network
from agent.model.node_status import NO_TIMINGS, NodeStatus, Timings
from agent.model.problem import Problem
from agent.node import block_demand, ready_state_file
from agent.node.apply import ApplyResult, NodeProgrammer
from agent.node.desired_state import DesiredState, DesiredStates
from agent.node.last_known_nodes import LastKnownNodes
from agent.node.networks_in_force import NetworksInForce
from agent.node.pod_port_repair import PodPorts
from agent.node.reconciler_inputs import Inputs
from agent.node.round_inputs import KernelUnreadableError, RoundInputs, RoundReader
from agent.node.round_status import Outcome, RoundStatus
from agent.node.status_publisher import StatusPublisher
from agent.objects import bridges
from agent.objects.base import Context
from agent.objects.routes import Routes
from agent.objects.state import NodeState
from agent.runtime.controller import Controller, Schedule, Source
from agent.runtime.counter import LabelledCounter
from agent.runtime.observable import Observable

NETLINK = "netlink"


class Reconciler(Controller):
    """The node path's loop. A round has four steps: read, desire, apply, publish."""

    def __init__(
        self,
        node: str,
        inputs: Inputs,
        block_controller: BlockController,
        resync: float,
        timings: Timings = NO_TIMINGS,
    ) -> None:
        modes, pods = inputs.modes, inputs.attachments
        earlier = ready_state_file.load(inputs.prepared, modes.options) if inputs.prepared else NodeStatus()
        self.status: Observable[NodeStatus] = Observable(earlier if inputs.resume else NodeStatus())
        self._programmer = NodeProgrammer((*(inputs.objects or modes.node_objects()), PodPorts(pods, modes)))
        self.errors = LabelledCounter((NETLINK,), *((kind,) for kind in self._programmer.kinds))
        """Rounds in which something of a kind failed."""
        self.drift = self._programmer.drift
        self._timings = timings
        self._node = node
        self._inputs = inputs
        self._block_controller = block_controller
        self._releaser = IdleBlockReleaser(node, block_controller, pods, inputs.block_idle)
        self._verify = threading.Event()
        """Set when somebody else may have changed something."""
        self._verify.set()
        self._last_known = LastKnownNodes(
            node, inputs.nodes, (block for own in earlier.blocks.values() for block in own)
        )
        self._networks = NetworksInForce(node, inputs, earlier.blocks)
        self._reader = RoundReader(node, inputs, self._last_known, self._networks, self._programmer)
        self._states = DesiredStates(node, modes, pods)
        self._desired = DesiredState()
        """The desired state of the last round."""
        self._round_status = RoundStatus(node, pods, block_controller)
        self._publisher = StatusPublisher(self.status, inputs.prepared)
        wake_on: tuple[Source, ...] = (
            inputs.snapshot,
            inputs.confs,
            inputs.demand,
            pods,
            pods.conflicts,
            block_controller.unseen,
            inputs.board,
            *inputs.wake_on,
        )
        super().__init__(Schedule(resync, debounce=0.02), self._publish_error, wake_on)

    def drifted(self) -> None:
        """Look at everything soon, as somebody else has changed something."""
        self._verify.set()
        self.wake()

    def resync(self) -> None:
        """Look at everything, as no notification is certain to arrive."""
        self._verify.set()

    def pause(self) -> float:
        """Return the seconds to the next round: the resync, or sooner the end of a demand, network or idleness."""
        ends = [self._releaser.next(), self._last_known.next(), *self._networks.ends]
        return max(0.0, min([super().pause(), *(end - time.monotonic() for end in ends)]))

    def once(self) -> bool:
        """Do one round; return False when something failed that may succeed when it is tried again."""
        snapshot = self._block_controller.complete(self._inputs.snapshot.get())
        if not snapshot.synced:  # nothing is made or removed on half a picture
            self._publish(replace(self.status.get(), synced=False))  # what an earlier run had published
            return True
        began = time.monotonic()
        try:
            return self._round(snapshot)
        except KernelUnreadableError as error:
            self.errors.add(NETLINK)
            self._verify.set()
            problem = Problem(NETLINK, str(error), "it is tried again")
            # what can't be looked at is taken to be as it was
            self._publish(replace(self.status.get(), synced=True), [problem])
            return False
        finally:
            self._timings.round(time.monotonic() - began)

    def _publish_error(self, error: Exception | None) -> None:
        """Publish the unexpected error of a round; the next round that succeeds publishes without it."""
        if error is None:
            return
        what = f"internal error, the node's state stays as it was: {type(error).__name__}: {error}"
        problem = Problem("reconciler", what, "a bug of testcni; its log has the trace")
        self._verify.set()
        self._publish(self.status.get(), [problem])

    def _round(self, snapshot: Snapshot) -> bool:
        """Read, desire, apply, publish. Raises KernelUnreadableError."""
        verify = self._verify.is_set()
        if verify:  # before the kernel is read: what changes from here on is for the next round
            self._verify.clear()
        inputs = self._reader.read(snapshot)
        self._claim_blocks(inputs)
        accepted = self._networks.accepted_modes(inputs.announced)
        desired = self._desire(inputs, accepted)
        done = self._apply(inputs, desired.node, verify=verify)
        self._finish(Outcome(inputs, desired, done))
        if self._networks.accepted_modes(inputs.announced) != accepted:
            self.wake()  # ways to peers depend on it
        if self._releaser.release_idle(inputs.pods, self._wanted(inputs.networks), noted=self._publisher.is_saved):
            self.wake()
        return done.settled

    def _claim_blocks(self, inputs: RoundInputs) -> None:
        """Ask for the blocks that networks need, but for those that no pod could use."""
        usable = (network for network in inputs.networks if not self._desired.is_unfit(network))
        self._block_controller.want(self._wanted(usable), inputs.pods.host_networks)

    def _wanted(self, networks: Iterable[Network]) -> dict[Network, Mapping[int, int]]:
        """Return how many blocks the networks need that get theirs from pools."""
        demand, pods = self._inputs.demand.get(), self._inputs.attachments
        return {n: block_demand.wanted(demand, pods, n) for n in networks if not n.has_manual_range}

    def _desire(self, inputs: RoundInputs, accepted: AcceptedModes) -> DesiredState:
        """Return what the node should be like."""
        ipv6 = (self._inputs.host.sysctls / "ipv6").exists()
        desired = self._states.of(inputs, accepted, ipv6=ipv6)
        known = bridges.as_told(desired.node.bridges, self._inputs.attachments.bridge_macs_in_results())
        ports = self._networks.tunnel_ports(inputs.networks, inputs.cluster)
        self._desired = replace(desired, node=replace(desired.node, ports=ports, bridges=known))
        return self._desired

    def _apply(self, inputs: RoundInputs, desired: NodeState, *, verify: bool) -> ApplyResult:
        """Make the kernel's state the desired one, pods' ports included, and count what failed."""
        me = inputs.pods.nodes.get(self._node)
        ctx = Context(
            netlink.host(),
            inputs.kernel,
            self._inputs.host,
            self._programmer.is_made,
            self._inputs.marks.ownership(blocks.everywhere(inputs.pods, inputs.networks)),
            frozenset(me.addresses if me else ()),
            verify,
        )
        done = self._programmer.program(ctx, desired)
        if Routes.kind not in done.failures:
            self._inputs.marks.settled()
        if not done.settled:
            self._verify.set()
        for kind in done.failures:
            self.errors.add(kind)
        return done

    def _finish(self, outcome: Outcome) -> None:
        """Publish which networks are ready for pods, and what is wrong."""
        inputs, ready = outcome.inputs, self._round_status.ready(outcome)
        self._networks.note_ready(ready, inputs.networks)
        accepted, admitted = self._networks.accepted_modes(inputs.announced), self._networks.admitted
        status = self._round_status.of(outcome, ready, admitted, accepted)
        problems = self._round_status.problems(outcome, admitted)
        self._publish(status, [*problems, *self._round_status.shortages(status)])

    def _publish(self, status: NodeStatus, problems: Iterable[Problem] = ()) -> None:
        """Publish a status with these problems and those of all other parts."""
        every = (
            *problems,
            *self._inputs.confs.get().problems,
            *self._inputs.board.all(),
            *self._inputs.attachments.problems(),
        )
        # a network that pods have by several pools says the same for each
        self._publisher.publish(replace(status, problems=tuple(dict.fromkeys(every))))
