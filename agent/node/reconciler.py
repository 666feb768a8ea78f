"""Makes the node's state in the kernel what the modes desire, whenever either of the two may have changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.ip import Address, Subnet
from agent.ipam import blocks, exhaustion, missing_block, pool_faults
from agent.ipam.attachment_store import AttachmentStore
from agent.ipam.block_controller import BlockController
from agent.ipam.idle_blocks import BLOCK_IDLE, IdleBlockReleaser
from agent.ipam.reservations import rules as reservation_rules
from agent.kernel import netlink
from agent.model.cluster import AcceptedModes, Snapshot
from agent.model.marks import ROUTE_PROTOCOL
from agent.model.network import Network
from agent.model.node_status import NO_TIMINGS, Demand, NodeStatus, Timings
from agent.model.problem import Problem
from agent.model.problem_board import ProblemBoard
from agent.modes.base import View
from agent.modes.ipip.bird.options import BgpOptions, OptionsFile
from agent.modes.ipip.options import IPIP
from agent.modes.registry import BUILT_IN, Modes
from agent.modes.underlay import announcement
from agent.node import kernel_state, mode_admission, mode_migration, ready_state_file
from agent.node.apply import ApplyResult, NodeProgrammer
from agent.node.cni_conf_dir import Confs
from agent.node.kernel_state import host_networks_of
from agent.node.last_known_nodes import Known, Recall, identity
from agent.node.pod_port_repair import PodPorts
from agent.node.route_protocol import RouteMarks
from agent.objects import bridges
from agent.objects.base import Context, KernelState, NodeObject
from agent.objects.routes import Routes
from agent.objects.state import LocalAddress, NodeState, Underlay, union
from agent.runtime.controller import Controller, Schedule
from agent.runtime.counter import LabelledCounter
from agent.runtime.observable import Observable

NETLINK = "netlink"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the node path is told, and by whom."""

    snapshot: Observable[Snapshot]
    confs: Observable[Confs]
    demand: Observable[Demand]
    attachments: AttachmentStore
    board: ProblemBoard
    """The problems of all other parts."""
    sysctls: Path = Path("/proc/sys/net")
    """Where the kernel's switches are; elsewhere in a container."""
    prepared: Path | None = None
    """The file of what is prepared for pods; None: it is forgotten at a restart."""
    resume: bool = True
    """Whether pods may get addresses by that file before the datastore has been read."""
    bgp: OptionsFile = field(default_factory=lambda: OptionsFile(None))
    objects: tuple[NodeObject, ...] = ()
    """What is programmed on the node, pods' ports aside; none: what the modes bring."""
    nodes: Path | None = None
    """The file of what Nodes said last; None: it is forgotten at a restart."""
    block_idle: float = BLOCK_IDLE
    """Seconds without use after which a claimed block goes back to its pool."""
    servers: frozenset[Address] = frozenset()
    """The addresses by which the agent reaches the API server."""
    modes: Modes = BUILT_IN
    marks: RouteMarks = field(default_factory=lambda: RouteMarks(None, ROUTE_PROTOCOL))
    """By which protocol number the node's routes are known."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What all networks of a round have in common."""

    snapshot: Snapshot
    local: tuple[LocalAddress, ...]
    options: BgpOptions | None
    """None: they can't be read, and no BGP session may begin."""
    underlay: Underlay
    accepted_modes: AcceptedModes
    known: Known
    routers: frozenset[Address]
    ipv6: bool
    """Whether the kernel has IPv6."""


class Reconciler(Controller):
    """The node path's loop: desired minus actual, per kind."""

    def __init__(
        self,
        node: str,
        inputs: Inputs,
        block_controller: BlockController,
        resync: float,
        timings: Timings = NO_TIMINGS,
    ) -> None:
        earlier = ready_state_file.load(inputs.prepared, inputs.modes.options) if inputs.prepared else NodeStatus()
        self.status: Observable[NodeStatus] = Observable(earlier if inputs.resume else NodeStatus())
        self._noted = True
        """Whether the file of what is prepared says nothing else."""
        objects = inputs.objects or inputs.modes.node_objects()
        self._programmer = NodeProgrammer((*objects, PodPorts(inputs.attachments, inputs.modes)))
        self.errors = LabelledCounter((NETLINK,), *((kind,) for kind in self._programmer.kinds))
        """Rounds in which something of a kind failed."""
        self.drift = self._programmer.drift
        self._timings = timings
        self._node = node
        self._inputs = inputs
        self._block_controller = block_controller
        self._releaser = IdleBlockReleaser(node, block_controller, inputs.attachments, inputs.block_idle)
        self._verify = threading.Event()
        """Set when somebody else may have changed something."""
        self._verify.set()
        self._ports = mode_migration.TunnelPorts(inputs.modes)
        self._memory: dict[Network, tuple[View, NodeState]] = {}
        self._told: frozenset[Problem] = frozenset()
        self._recall = Recall(node, inputs.nodes, (block for own in earlier.blocks.values() for block in own))
        self._faults = pool_faults.PoolFaultCache()
        self._said: AcceptedModes = ()
        """What peers have to be told of this node's addresses."""
        self._leaving = mode_migration.Leaving(earlier.blocks)
        self._admitted = mode_admission.Admitted()
        self._ready: frozenset[Network] = frozenset(earlier.blocks)
        pods = inputs.attachments
        told = (
            inputs.snapshot,
            inputs.confs,
            inputs.demand,
            pods,
            pods.conflicts,
            block_controller.unseen,
            inputs.bgp.said,
            inputs.board,
        )
        super().__init__(Schedule(resync, debounce=0.02), told)

    def drifted(self) -> None:
        """Look at everything soon, as somebody else has changed something."""
        self._verify.set()
        self.wake()

    def resync(self) -> None:
        """Look at everything, as no notification is certain to arrive."""
        self._verify.set()

    def once(self) -> bool:
        """One round; False when something failed that may succeed when it is tried again."""
        snapshot = self._block_controller.complete(self._inputs.snapshot.get())
        if not snapshot.synced:  # nothing is made or removed on half a picture
            still = self.status.get()  # of an earlier run
            self._publish(replace(still, synced=False, problems=self._with_reported([])))
            return True
        began = time.monotonic()
        try:
            return self._round(snapshot)
        except Exception as error:  # noqa: BLE001 - it is reported, with its trace
            self._broken(error)
            return False
        finally:
            self._timings.round(time.monotonic() - began)

    def _broken(self, error: Exception) -> None:
        """Report a bug that some input brings out: an agent that ends would meet the same input again."""
        what = f"internal error, the node's state stays as it was: {type(error).__name__}: {error}"
        problem = Problem("reconciler", what, "a bug of testcni; its log has the trace")
        if problem not in self._told:
            log.exception("a round failed unexpectedly")
        self._verify.set()
        self._publish(replace(self.status.get(), problems=self._with_reported([problem])))

    def _round(self, snapshot: Snapshot) -> bool:
        verify = self._verify.is_set()
        if verify:  # before the kernel is read: what changes from here on is for the next round
            self._verify.clear()
        known = self._recall.look(snapshot)
        whole = replace(snapshot, nodes=known.nodes)
        """With what Nodes lack just now: for what is in the kernel, and not for what pods are given."""
        networks = self._networks(whole)
        read = self._read(networks, known)
        if read is None:
            return False
        kernel, underlay = read
        host_networks = host_networks_of(kernel, whole.nodes.get(self._node), self._inputs.servers)
        snapshot, whole = (
            replace(snapshot, host_networks=host_networks),
            replace(whole, host_networks=host_networks),
        )
        claiming = [n for n in networks if not n.hand_made and not self._is_unfit(n)]
        self._block_controller.want({n: self._blocks_wanted(n) for n in claiming}, host_networks)
        self._said = announcement(whole.nodes.get(self._node), kernel.local, known.ends)
        options, wrong = self._inputs.bgp.look()
        ipv6 = (self._inputs.sysctls / "ipv6").exists()
        facts = Facts(whole, kernel.local, options, underlay, self._accepted_modes(), known, kernel.routers, ipv6)
        desired = union(self._desired(self._view(facts, network)) for network in networks)
        known_bridges = bridges.as_told(desired.bridges, self._inputs.attachments.told_macs())
        desired = replace(desired, ports=self._tunnel_ports(networks, whole), bridges=known_bridges)
        done = self._apply(desired, kernel, snapshot, networks, verify=verify)
        problems = [
            *self._admitted.problems,
            *identity(snapshot, self._node, kernel.local),
            *known.problems,
            *known.disputes(),
            *reservation_rules.wrong(snapshot, networks, self._node),
            *reservation_rules.useless(snapshot, networks, self._node),
            *wrong,
            *sorted(desired.problems, key=str),
            *done.problems,
        ]
        self._finish(snapshot, networks, desired, done, problems)
        if self._accepted_modes() != facts.accepted_modes:
            self.wake()  # ways to peers depend on it
        wanted = {network: self._blocks_wanted(network) for network in networks if not network.hand_made}
        if self._releaser.look(snapshot, wanted, noted=self._noted):
            self.wake()
        return done.settled

    def _read(self, networks: list[Network], known: Known) -> tuple[KernelState, Underlay] | None:
        """Read what is in the kernel; None where that fails, which is published."""
        try:
            slaves = any(network.needs_parent for network in networks)
            kernel = kernel_state.read(
                netlink.host(), self._programmer.is_made, gateways=slaves, known=known, node=self._node
            )
            underlay = Underlay()
            if any(network.mode == IPIP for network in networks):
                found = kernel_state.underlay(netlink.host(), kernel, known, self._node)
                underlay = replace(found, by_device=self._programmer.encapsulates())
        except OSError as error:
            self.errors.add(NETLINK)
            self._verify.set()
            problem = Problem(NETLINK, str(error), "it is tried again")
            still = self.status.get()  # what can't be looked at is taken to be as it was
            self._publish(replace(still, synced=True, problems=self._with_reported([problem])))
            return None
        if self._inputs.attachments.unreadable():
            self._inputs.attachments.look_again({link.name for link in kernel.links})
        return kernel, underlay

    def _apply(
        self,
        desired: NodeState,
        kernel: KernelState,
        snapshot: Snapshot,
        networks: list[Network],
        *,
        verify: bool,
    ) -> ApplyResult:
        """Make the kernel's state the desired one, pods' ports included, and count what was not so."""
        me = snapshot.nodes.get(self._node)
        ctx = Context(
            netlink.host(),
            kernel,
            self._inputs.sysctls,
            self._programmer.is_made,
            self._inputs.marks.ownership(blocks.everywhere(snapshot, networks)),
            frozenset(me.addresses if me else ()),
            verify,
        )
        done = self._programmer.program(ctx, desired)
        if Routes.kind not in done.failures:
            self._inputs.marks.settled()
        if not done.settled:
            self._verify.set()
        for what in done.failures:
            self.errors.add(what)
        return done

    def _finish(
        self,
        snapshot: Snapshot,
        networks: list[Network],
        desired: NodeState,
        done: ApplyResult,
        problems: list[Problem],
    ) -> None:
        """Publish which networks are prepared for pods, and what is wrong."""
        works = {n for n in networks if n in self._memory and _works(n, self._memory[n][1], done)}
        ready = {n: own for n in networks if n in works and (own := self._usable(snapshot, n))}
        guests = frozenset(guest for network in ready for guest in self._memory[network][0].guests)
        used = self._inputs.attachments.networks()
        # where nothing is ready for a moment, ways to peers stay as they are
        names = {network.name for network in ready}
        self._ready = frozenset((*ready, *(n for n in self._ready.intersection(networks) if n.name not in names)))
        barred = {n: blocks.excluded(snapshot, n, self._node, own) for n, own in ready.items()}
        status = NodeStatus(
            synced=True,
            blocks=ready,
            excluded={network: subnets for network, subnets in barred.items() if subnets},
            families={n: blocks.families(snapshot, n, self._node) - self._memory[n][1].lacking for n in ready},
            limits={
                (network, version): why
                for network in ready
                for version in network.versions
                if (why := self._limit(snapshot, network, version))
            },
            uplinks={n: u for n in ready for u in self._memory[n][1].uplinks},
            routes=len(desired.routes),
            programmed=done.of(Routes.kind).programmed,
            guests=guests,
            away=frozenset(r.dst for r in desired.routes if blocks.is_single(r.dst)) - guests,
            accepted_modes=self._accepted_modes(),
            host_networks=snapshot.host_networks,
            pool_faults={
                **missing_block.starved(snapshot, networks, self._node),
                **self._faults.look(snapshot, networks),
            },
            refused=self._admitted.refused,
            unserved=frozenset(used - works),
        )
        short = exhaustion.problems(
            status, lambda r: self._inputs.attachments.counts(r)[0], self._block_controller.exhausted
        )
        self._publish(replace(status, problems=self._with_reported([*problems, *short])))

    def _networks(self, snapshot: Snapshot) -> list[Network]:
        """The networks in force: named by confs, used by pods, asked for just now, or on the way to peers."""
        now = time.monotonic()
        demand = self._inputs.demand.get()
        if any(want.until <= now for want in demand.values()):
            self._inputs.demand.update(lambda d: {n: want for n, want in d.items() if want.until > now})
        asked = {network for network, want in demand.items() if want.until > now}
        used, leaving = self._inputs.attachments.networks(), self._leaving
        peers = [node for node in snapshot.nodes.values() if node.name != self._node]
        confs = mode_admission.admit(
            self._inputs.confs.get(), asked, used, leaving.in_force, peers, self._inputs.modes
        )
        self._admitted = confs
        needed = confs.networks | used
        needed |= mode_migration.transition_networks(
            confs.chosen, peers, needed, leaving.in_force, self._inputs.modes
        )
        known = needed | leaving.keep(needed, confs.chosen, snapshot.nodes.get(self._node), now)
        self._memory = {network: entry for network, entry in self._memory.items() if network in known}
        return sorted(known, key=str)

    def _tunnel_ports(self, networks: list[Network], snapshot: Snapshot) -> tuple[int, ...]:
        peers = (node for node in snapshot.nodes.values() if node.name != self._node)
        return self._ports.look(networks, self._admitted.chosen, peers, time.monotonic())

    def _accepted_modes(self) -> AcceptedModes:
        confs, silent = self._admitted, self._admitted.silent(self._inputs.attachments.networks())
        modes = mode_migration.accepted_modes(
            confs.chosen, self._ready, self._leaving.networks, self._inputs.modes
        )
        return tuple(sorted((*(entry for entry in modes if entry[0] not in silent), *self._said)))

    def _is_unfit(self, network: Network) -> bool:
        """Whether the last round found no parent that pods could hang on, so that no block would be of use."""
        known = self._memory.get(network)
        return bool(network.needs_parent and known and known[1].problems and not known[1].uplinks)

    def _blocks_wanted(self, network: Network) -> Mapping[int, int]:
        """How many blocks of each IP version the network needs."""
        want, used = self._inputs.demand.get().get(network), self._used(network)
        asked = want.blocks if want else {}
        in_use = {version: sum(block.version == version for block in used) for version in network.versions}
        return {version: max(1, asked.get(version, 0), in_use[version]) for version in network.versions}

    def _limit(self, snapshot: Snapshot, network: Network, version: int) -> str:
        """Why a network can have no more blocks of an IP version; empty where nothing is known against it."""
        if network.hand_made:
            return "its range is all that the netconf gives this node"
        if blocks.assigned(snapshot, network, self._node):
            return "the node's podCIDRs are all that it has"
        return self._block_controller.full(network, version)

    def _used(self, network: Network) -> frozenset[Subnet]:
        """The blocks that pods have addresses of: they stay on the node, whoever owns them now."""
        return frozenset(
            lease.block
            for a in self._inputs.attachments.in_force()
            if a.network == network
            for lease in a.leases
            if not blocks.is_single(lease.block)
        )

    def _view(self, facts: Facts, network: Network) -> View:
        own = blocks.node_blocks(facts.snapshot, network, self._node)
        if network.pool:  # a bridge has the gateways of all blocks of its pods, whichever network they are of
            common = blocks.node_blocks(facts.snapshot, replace(network, pool=""), self._node)
            own = tuple(dict.fromkeys((*common, *own)))
        kept = sorted(self._used(network) - set(own), key=str)
        all_pods = self._inputs.attachments.in_force()
        pods = [a for a in all_pods if a.network == network and a.owner]
        guests = frozenset(guest for pod in pods for guest in pod.guests)
        if any(block.version in network.versions for block in own) and network.options.host_routes:
            # their pods need no address of the block on the node, and who has it now is reached
            guests |= self._alone(network, kept)
            kept = []
        held = frozenset(blocks.single(address) for pod in pods for address in pod.held)
        others = (lease.address for a in all_pods if a.network.mode != network.mode for lease in a.leases)
        strays = frozenset(address for address in others if any(address in block for block in (*own, *kept)))
        return View(
            facts.snapshot,
            self._node,
            facts.local,
            network,
            (*own, *kept),
            facts.options,
            facts.underlay,
            guests,
            held,
            strays,
            self._inputs.modes.routed.known(dict(facts.accepted_modes).get(network.name, ())),
            facts.known.ends,
            facts.known.claims,
            self._used(network),
            facts.routers,
            facts.ipv6,
            routed=self._inputs.modes.routed,
        )

    def _alone(self, network: Network, gone: list[Subnet]) -> frozenset[Subnet]:
        """The addresses that pods of the network have of these blocks, each by itself."""
        pods = (a for a in self._inputs.attachments.in_force() if a.network == network)
        return frozenset(blocks.single(lease.address) for a in pods for lease in a.leases if lease.block in gone)

    def _usable(self, snapshot: Snapshot, network: Network) -> tuple[Subnet, ...]:
        """The blocks that pods may have addresses of."""
        refused = self._memory[network][1].refused
        return tuple(b for b in blocks.node_blocks(snapshot, network, self._node) if b not in refused)

    def _desired(self, view: View) -> NodeState:
        known = self._memory.get(view.network)
        if known and known[0] == view:
            return known[1]
        state = self._inputs.modes.of(view.network).desired(view)
        self._memory[view.network] = (view, state)
        return state

    def _with_reported(self, problems: list[Problem]) -> tuple[Problem, ...]:
        every = (
            *problems,
            *self._inputs.confs.get().problems,
            *self._inputs.board.all(),
            *self._inputs.attachments.problems(),
        )
        return tuple(dict.fromkeys(every))  # a network that pods have by several pools says the same for each

    def _publish(self, status: NodeStatus) -> None:
        """Hand the status to the pod path, and tell each problem once when it comes and when it goes."""
        now = frozenset(status.problems)
        for problem in status.problems:
            if problem not in self._told:
                log.warning("%s", problem)
        for problem in self._told - now:
            log.info("solved: %s: %s", problem.where, problem.what)
        self._told = now
        self._note(status)
        self.status.publish(status)

    def _note(self, status: NodeStatus) -> None:
        """Keep the file of what is prepared as it is, also where somebody removed it."""
        path = self._inputs.prepared
        if path is None:
            return
        if not (
            self._noted
            and ready_state_file.alike(status, self.status.get())
            and ready_state_file.is_there(path, status)
        ):
            self._noted = ready_state_file.save(path, status)

    def pause(self) -> float:
        """Return the seconds to the next round: the resync, or sooner the end of a demand, network or idleness."""
        ends = [
            *(want.until for want in self._inputs.demand.get().values()),
            self._releaser.next(),
            self._recall.next(),
            *self._leaving.ends,
            *self._ports.ends,
        ]
        return max(0.0, min([super().pause(), *(end - time.monotonic() for end in ends)]))


def _works(network: Network, state: NodeState, done: ApplyResult) -> bool:
    """Whether what the pods of a network hang on is in the kernel."""
    return state.devices.isdisjoint(done.unready) and bool(network.needs_parent) == bool(state.uplinks)
