"""Claims of blocks: creating an IPBlock is the claim, and a conflict means that another node was first.

A block goes back by being deleted. What is withdrawn is not this node's any more for who looks, but nobody
else's either, until the datastore shows that it is gone: a delete whose answer is lost may still be done.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import tenacity

from agent.cluster.store import ConflictError, Datastore, NotFoundError, StoreError
from agent.ip import Address, Subnet
from agent.ipam import blocks, missing_block
from agent.ipam.blocks import BlockCount
from agent.ipam.exhaustion import Refusals
from agent.model.cluster import HostNetworks, IPBlock, IPReservation, Resource, Snapshot
from agent.model.network import Network
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable

SEEN_WITHIN = 30.0  # seconds after which a claimed block that no list shows counts as taken away
TRIES = 4  # of one StoreError, 0.2 s to 2 s apart, before it is told and tried again later
SCHEDULE = Schedule(resync=5.0, backoff=(5.0, 5.0))
NODE_GONE = 900.0  # seconds
RESERVED = "reservations in new blocks"
TOLD_FOR = 600.0  # seconds that a block which can't be given back is a problem

log = logging.getLogger(__name__)
Create = Callable[[IPBlock], Resource]


class Stage(enum.Enum):
    """How far a block is on its way back to the pool."""

    WITHDRAWN = 1
    """Nobody may see it as this node's any more, but who saw it before may still be at work."""
    LEAVING = 2
    """It is to be deleted, or perhaps has been."""
    DELETED = 3
    """It is, but the datastore has not shown it yet."""


@dataclass(frozen=True, slots=True)
class PendingClaim:
    """A block that was claimed, when (time.monotonic), and what the datastore showed in its place until then."""

    block: IPBlock
    since: float
    before: IPBlock | None


def _key(network: Network, version: int) -> str:
    """Of a network's problem about blocks."""
    return f"{network.name} {network.pool} IPv{version}"


class NoBlockError(Exception):
    """No block is left, or none may be claimed; says why."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def claim(create: Create, snapshot: Snapshot, network: Network, node: str, version: int | None = None) -> IPBlock:
    """A block that is this node's from now on, of any IP version where none is named. Raises NoBlockError."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda e: isinstance(e, StoreError) and not isinstance(e, ConflictError)
        ),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
        stop=tenacity.stop_after_attempt(TRIES),
        reraise=True,
    )
    for candidate in blocks.candidates(snapshot, network, node, version):
        try:
            created = retrying(create, candidate)
        except ConflictError:
            continue
        log.info("claimed block %s of pool %s for network %s", candidate.cidr, candidate.pool, network.name)
        return created if isinstance(created, IPBlock) else candidate
    raise NoBlockError(*missing_block.why(snapshot, network, node, version))


@dataclass(frozen=True, slots=True)
class ReclaimRules:
    """When blocks of others may be taken."""

    node_gone: float = NODE_GONE
    """Seconds without its Node object after which a node counts as gone for good."""
    whole: Callable[[], bool] = lambda: True
    """Whether the snapshot is all that there is: no object is left out, and no watch hangs."""


class BlockController(Controller):
    """Claims blocks for the networks that need more than this node has; alone in its thread, as stores hang."""

    def __init__(
        self,
        store: Datastore,
        node: str,
        snapshot: Observable[Snapshot],
        rules: ReclaimRules | None = None,
        problems: PartProblems | None = None,
    ) -> None:
        self.problems = problems or PartProblems("claimer")
        super().__init__(SCHEDULE, (snapshot,), self.problems.report_error)
        self._store = store
        self._node = node
        self._snapshot = snapshot
        self._rules = rules or ReclaimRules()
        self._wanted: Mapping[Network, BlockCount] = {}
        self._host_networks = HostNetworks()
        self._pending: dict[Subnet, PendingClaim] = {}
        self.unseen: Observable[frozenset[Subnet]] = Observable(frozenset())
        """Blocks that this process claims and of which it does not know yet who has addresses reserved there."""
        self._withdrawn: dict[IPBlock, Stage] = {}
        self._refused: dict[IPBlock, tuple[Problem, float]] = {}
        self._full: Mapping[str, str] = {}
        """Why no block is left, by the key of network and IP version."""
        self._refusals = Refusals()
        self._missed: dict[str, float] = {}
        """Nodes that own blocks and have no Node object, since when."""
        self._lock = threading.Lock()

    def want(self, wanted: Mapping[Network, BlockCount], host_networks: HostNetworks | None = None) -> None:
        """Note how many blocks each network should have, and what the node stands on; None: as before."""
        host_networks = self._host_networks if host_networks is None else host_networks
        if (wanted, host_networks) != (self._wanted, self._host_networks):
            self._wanted, self._host_networks = wanted, host_networks
            self.wake()

    def pending(self) -> tuple[IPBlock, ...]:
        """Blocks that were claimed but are in no list yet."""
        return tuple(pending.block for pending in tuple(self._pending.values()))

    def full(self, network: Network, version: int) -> str:
        """Why no block of an IP version is left for a network, as the last look found; empty where one may be."""
        return self._full.get(_key(network, version), "")

    def exhausted(self, network: Network, version: int) -> str:
        """Why no block was left at the last claim; empty where blocks or pools have changed since."""
        return self._refusals.why(_key(network, version), self._seen())

    def well(self) -> bool:
        """Whether the datastore is as it should be, so that what is given back is soon gone."""
        return self._rules.whole()

    def withdraw(self, given: Iterable[IPBlock]) -> None:
        """Leave these out of every complete snapshot from now on."""
        with self._lock:
            self._withdrawn.update(dict.fromkeys(given, Stage.WITHDRAWN))

    def withdrawn(self, stage: Stage) -> tuple[IPBlock, ...]:
        """The withdrawn blocks of a stage."""
        with self._lock:
            return tuple(block for block, reached in self._withdrawn.items() if reached == stage)

    def restore(self, block: IPBlock) -> None:
        """Have a withdrawn block back that is not deleted."""
        with self._lock:
            self._withdrawn.pop(block, None)

    def give_back(self, block: IPBlock) -> None:
        """Delete a withdrawn block, as soon as the datastore can."""
        with self._lock:
            self._withdrawn[block] = Stage.LEAVING
        self.wake()

    def once(self) -> bool:
        """Claim the blocks that are wanted, and delete those that are given back."""
        snapshot = self._seen()
        if not snapshot.synced:
            return True
        self._note_missed(snapshot)
        for block in self.withdrawn(Stage.LEAVING):
            self._delete(block)
        now = time.monotonic()
        self._refused = {block: told for block, told in self._refused.items() if told[1] > now}
        problems = {block.name: problem for block, (problem, _until) in self._refused.items()}
        problems.update(missing_block.faulty(snapshot, self._wanted, self._node))
        full: dict[str, str] = {}
        for network, wanted in dict(self._wanted).items():
            for version in network.versions:
                key = _key(network, version)
                try:
                    self._claim_up_to(blocks.count(wanted, version), network, version)
                except NoBlockError as error:
                    full[key] = str(error)
                    seen = self._seen()
                    own = blocks.node_blocks(self._claimed(seen), network, self._node)
                    problem = Problem(f"network {network.name}", str(error), error.remedy)
                    without = not any(block.version == version for block in own)
                    self._refusals.note(key, problem, seen, without=without)
                except StoreError as error:
                    what = f"an IPv{version} block can't be claimed: {error}"
                    problems[key] = Problem(f"network {network.name}", what, "see the datastore")
        problems = {**self._refusals.problems(self._seen()), **problems}
        if reserved := self._see_reserved():
            problems[RESERVED] = reserved
        self._full = full
        self.problems.publish(problems)
        return True

    def _seen(self) -> Snapshot:
        """The snapshot, with what is known of the node's own networks."""
        return replace(self._snapshot.get(), host_networks=self._host_networks)

    def complete(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the blocks that were claimed since, and without those that pods may not have (yet)."""
        whole, unseen = self._claimed(snapshot), self.unseen.get()
        if not unseen:
            return whole
        known = {name: b for name, b in whole.blocks.items() if b.node != self._node or b.cidr not in unseen}
        return replace(whole, blocks=known)

    def _claimed(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the blocks that were claimed since, and without those that are withdrawn."""
        with self._lock:
            seen = {b: stage for b, stage in self._withdrawn.items() if snapshot.blocks.get(b.name) == b}
            self._withdrawn = seen  # the others are gone, or another's
        whole = self._with_pending(snapshot)
        if not seen:
            return whole
        return replace(whole, blocks={name: b for name, b in whole.blocks.items() if b not in seen})

    def _see_reserved(self) -> Problem | None:
        """Let pods have the blocks just claimed, once the snapshot has what others reserved there before.

        Both write first and then read, so one of the two sees the other: see stays.py for the other way round.
        """
        unseen = self.unseen.get()
        if not unseen:
            return None
        try:
            found = [r for r in self._store.list("IPReservation") if isinstance(r, IPReservation)]
            refused = self._refuse_reserved({held.address for held in found})
        except StoreError as error:
            what = f"who has reserved addresses in new blocks can't be read: {error}"
            return Problem(RESERVED, what, "no pod gets an address of them until it is")
        there = {held.name for held in found if any(held.address in block for block in unseen)}
        if there <= self._snapshot.get().reservations.keys():
            self.unseen.update(lambda now: now - (unseen - refused))
        return None

    def _refuse_reserved(self, held: set[Address]) -> frozenset[Subnet]:
        """Delete new blocks whose gateway a pod has reserved before, and return them. Raises StoreError."""
        refused, unseen = set(), self.unseen.get()
        snapshot = self._seen()
        known = {b.cidr: b for b in snapshot.blocks.values() if b.node == self._node}
        for cidr, block in {**known, **{b.cidr: b for b in self.pending()}}.items():
            mine = (n for n in self._wanted if blocks.fits(cidr, n) and blocks.belongs(block, n, snapshot))
            barred = [a for n in mine for a in blocks.not_for_pods(cidr, n)]
            if cidr in unseen and not held.isdisjoint(barred):
                with contextlib.suppress(NotFoundError, ConflictError):  # it was done, and the answer was lost
                    self._store.delete("IPBlock", block.name, block)
                self._pending.pop(cidr, None)
                refused.add(cidr)
                log.warning("block %s is given back: its gateway is reserved for a pod", cidr)
        return frozenset(refused)

    def _with_pending(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with what was claimed since; what it has is pending no longer."""
        late = time.monotonic() - SEEN_WITHIN
        for cidr, pending in list(self._pending.items()):
            if snapshot.blocks.get(pending.block.name) != pending.before or pending.since < late:
                self._pending.pop(cidr, None)
        if not self._pending:
            return snapshot
        return replace(snapshot, blocks={**snapshot.blocks, **{b.name: b for b in self.pending()}})

    def _claim_up_to(self, count: int, network: Network, version: int) -> None:
        for _ in range(count):
            snapshot = self._seen()
            mine = self._claimed(snapshot)
            if self._node not in mine.nodes or blocks.assigned(mine, network, self._node):
                return
            own = [b for b in blocks.node_blocks(mine, network, self._node) if b.version == version]
            if len(own) >= count:
                return
            known = blocks.families(mine, network, self._node)
            if not own and version not in known and (known or version != network.versions[0]):
                return  # no pool is of this IP version; where there is no pool at all, one of them says so
            claimed = self._claim(self._with_pending(snapshot), network, version)
            before = snapshot.blocks.get(claimed.name)
            self._pending[claimed.cidr] = PendingClaim(claimed, time.monotonic(), before)
            key = _key(network, version)
            self._refusals.forget(key)
            self.problems.update(lambda known, key=key: {k: v for k, v in known.items() if k != key})  # type: ignore[misc]

    def _claim(self, snapshot: Snapshot, network: Network, version: int) -> IPBlock:
        """A block that nobody has, else one of a node that is gone for good. Raises NoBlockError, StoreError."""
        while True:
            try:
                return claim(self._create, snapshot, network, self._node, version)
            except NoBlockError:
                freed = self._free(snapshot, network, version)
                if freed is None:
                    raise
                left = {name: block for name, block in snapshot.blocks.items() if block != freed}
                snapshot = replace(snapshot, blocks=left)

    def _create(self, block: IPBlock) -> Resource:
        self.unseen.update(lambda now: now | {block.cidr})  # before anybody can see it as this node's
        return self._store.create(block)

    def _free(self, snapshot: Snapshot, network: Network, version: int) -> IPBlock | None:
        """Delete a block of a node that is gone for good, if there is one. Raises StoreError.

        Only that very object: another agent may have been quicker, and a third may have claimed it anew.
        """
        abandoned = [b for b in self._abandoned(snapshot, network) if b.cidr.version == version]
        if not abandoned:
            return None
        nodes = {node.name for node in self._store.list("Node")}  # what the watch has told may be old
        for block in abandoned:
            if block.node in nodes:
                continue
            try:
                self._store.delete("IPBlock", block.name, block)
                log.warning("block %s is free, as its node %s is gone for good", block.cidr, block.node)
            except (NotFoundError, ConflictError) as error:
                log.info("block %s of node %s was freed by another: %s", block.cidr, block.node, error)
            return block
        return None

    def _abandoned(self, snapshot: Snapshot, network: Network) -> Iterator[IPBlock]:
        long_ago = time.monotonic() - self._rules.node_gone
        pools = blocks.pools(snapshot, network)
        for block in snapshot.blocks.values():
            gone = self._missed.get(block.node, long_ago + 1) <= long_ago
            fits = blocks.within(block.cidr, network.subnet) and blocks.belongs(block, network, snapshot)
            if gone and fits and any(blocks.overlaps(block.cidr, pool.cidr) for pool in pools):
                yield block

    def _note_missed(self, snapshot: Snapshot) -> None:
        """A node counts as missed only as long as each look finds the snapshot complete, and it not there."""
        owners = {block.node for block in snapshot.blocks.values()} if self._rules.whole() else set()
        now = time.monotonic()
        self._missed = {name: self._missed.get(name, now) for name in owners - snapshot.nodes.keys()}

    def _delete(self, block: IPBlock) -> None:
        """Delete a block of ours; it stays withdrawn until the datastore shows that it is gone."""
        self._refused.pop(block, None)
        try:
            self._store.delete("IPBlock", block.name, block)
        except (NotFoundError, ConflictError) as error:
            log.info("block %s was given back already: %s", block.cidr, error)
        except StoreError as error:
            remedy = "it is tried again; until then pods get no address of it"
            if not error.outcome_unknown:
                self.restore(block)
                remedy = "the agent's ClusterRole must let it delete ipblocks; the block stays in use"
            problem = Problem(f"IPBlock {block.name}", f"can't be given back: {error}", remedy)
            self._refused[block] = (problem, time.monotonic() + TOLD_FOR)
            return
        else:
            log.info("gave back block %s of pool %s", block.cidr, block.pool)
        with self._lock:
            self._withdrawn[block] = Stage.DELETED
