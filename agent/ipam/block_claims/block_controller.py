"""Claim blocks, and give them back.

A node claims a block by creating its IPBlock; a conflict means that another node was first. It gives the block
back by deleting the object, see block_ledger.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import tenacity

from agent.cluster.store import ConflictError, Datastore, NotFoundError, StoreError
from agent.ip import Address, Subnet
from agent.ipam import blocks
from agent.ipam.block_claims import free_blocks, missing_block
from agent.ipam.block_claims.abandoned_blocks import AbandonedBlocks
from agent.ipam.block_claims.block_ledger import BlockLedger, Stage
from agent.ipam.blocks import BlockCount
from agent.ipam.exhaustion import Refusals
from agent.model.cluster import HostNetworks, IPBlock, IPReservation, Resource, Snapshot
from agent.model.network import Network
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable

TRIES = 4  # of a request, 0.2 s to 2 s apart, before its failure is reported and retried later
SCHEDULE = Schedule(resync=5.0, backoff=(5.0, 5.0))
NODE_GONE = 900.0  # seconds
RESERVED = "reservations in new blocks"
SHOWN_FOR = 600.0  # seconds that a block which can't be given back is a problem

log = logging.getLogger(__name__)
Create = Callable[[IPBlock], Resource]


def _key(network: Network, version: int) -> str:
    """Return the key of a network's problem about blocks."""
    return f"{network.name} {network.pool} IPv{version}"


class NoBlockError(Exception):
    """No block can be claimed; the text says why."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def claim(create: Create, snapshot: Snapshot, network: Network, node: str, version: int | None = None) -> IPBlock:
    """Claim a block for this node, of any IP version if none is named. Raises NoBlockError."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda e: isinstance(e, StoreError) and not isinstance(e, ConflictError)
        ),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
        stop=tenacity.stop_after_attempt(TRIES),
        reraise=True,
    )
    for candidate in free_blocks.candidates(snapshot, network, node, version):
        try:
            created = retrying(create, candidate)
        except ConflictError:
            continue
        log.info("claimed block %s of pool %s for network %s", candidate.cidr, candidate.pool, network.name)
        return created if isinstance(created, IPBlock) else candidate
    raise NoBlockError(*missing_block.why(snapshot, network, node, version))


@dataclass(frozen=True, slots=True)
class ReclaimRules:
    """The rules by which this node may delete blocks of other nodes."""

    node_gone: float = NODE_GONE
    """Seconds without its Node object after which a node counts as permanently gone."""
    whole: Callable[[], bool] = lambda: True
    """Whether the snapshot is complete: no object is missing, and no watch hangs."""


class BlockController(Controller):
    """Claims blocks for networks that need more. It has a thread of its own, as a datastore may hang."""

    def __init__(
        self,
        store: Datastore,
        node: str,
        snapshot: Observable[Snapshot],
        rules: ReclaimRules | None = None,
        problems: PartProblems | None = None,
    ) -> None:
        self.problems = problems or PartProblems("blocks")
        super().__init__(SCHEDULE, self.problems.report_error, (snapshot,))
        self.ledger = BlockLedger()
        self._store = store
        self._node = node
        self._snapshot = snapshot
        self._rules = rules or ReclaimRules()
        self._wanted: Mapping[Network, BlockCount] = {}
        self._host_networks = HostNetworks()
        self.unseen: Observable[frozenset[Subnet]] = Observable(frozenset())
        """New blocks, until it is known which of their addresses other nodes have reserved."""
        self._refused: dict[IPBlock, tuple[Problem, float]] = {}
        self._full: Mapping[str, str] = {}
        """The reasons why no block is left, by the key of network and IP version."""
        self._refusals = Refusals()
        self._abandoned = AbandonedBlocks(store, self._rules.node_gone)

    def want(self, wanted: Mapping[Network, BlockCount], host_networks: HostNetworks | None = None) -> None:
        """Note how many blocks each network should have, and this node's own networks; None: as before."""
        host_networks = self._host_networks if host_networks is None else host_networks
        if (wanted, host_networks) != (self._wanted, self._host_networks):
            self._wanted, self._host_networks = wanted, host_networks
            self.wake()

    def why_full(self, network: Network, version: int) -> str:
        """Return why the last round found no block for a network; empty if there may be one."""
        return self._full.get(_key(network, version), "")

    def why_refused(self, network: Network, version: int) -> str:
        """Return why the last claim found no block; empty if blocks or pools have changed since."""
        return self._refusals.why(_key(network, version), self._seen())

    def is_snapshot_whole(self) -> bool:
        """Return whether no object is missing and no watch hangs: then the snapshot soon shows a deletion."""
        return self._rules.whole()

    def give_back(self, block: IPBlock) -> None:
        """Have a withdrawn block deleted, as soon as the datastore can."""
        self.ledger.advance(block, Stage.LEAVING)
        self.wake()

    def once(self) -> bool:
        """Claim the blocks that networks need, and delete those that are given back."""
        snapshot = self._seen()
        if not snapshot.synced:
            return True
        self.ledger.observe(snapshot)
        self._abandoned.observe(snapshot, whole=self._rules.whole())
        for block in self.ledger.withdrawn(Stage.LEAVING):
            self._delete(block)
        now = time.monotonic()
        self._refused = {block: entry for block, entry in self._refused.items() if entry[1] > now}
        problems = {block.name: problem for block, (problem, _until) in self._refused.items()}
        problems.update(missing_block.faulty(snapshot, self._wanted, self._node))
        problems.update(self._claim_wanted())
        problems = {**self._refusals.problems(self._seen()), **problems}
        if reserved := self._admit_new_blocks():
            problems[RESERVED] = reserved
        self.problems.publish(problems)
        return True

    def _claim_wanted(self) -> dict[str, Problem]:
        """Claim the blocks that networks lack, and return the problems of claims for which the datastore fails."""
        problems: dict[str, Problem] = {}
        full: dict[str, str] = {}
        for network, wanted in dict(self._wanted).items():
            for version in network.versions:
                key = _key(network, version)
                try:
                    self._claim_up_to(blocks.count(wanted, version), network, version)
                except NoBlockError as error:
                    full[key] = str(error)
                    self._note_refusal(network, version, error)
                except StoreError as error:
                    what = f"an IPv{version} block can't be claimed: {error}"
                    problems[key] = Problem(f"network {network.name}", what, "see the datastore")
        self._full = full
        return problems

    def _note_refusal(self, network: Network, version: int, error: NoBlockError) -> None:
        """Note that a claim for a network found no block of an IP version."""
        seen = self._seen()
        own = blocks.node_blocks(self.ledger.apply(seen), network, self._node)
        without = not any(block.version == version for block in own)
        problem = Problem(f"network {network.name}", str(error), error.remedy)
        self._refusals.note(_key(network, version), problem, seen, without=without)

    def _seen(self) -> Snapshot:
        """Return the snapshot with this node's own networks."""
        return replace(self._snapshot.get(), host_networks=self._host_networks)

    def complete(self, snapshot: Snapshot) -> Snapshot:
        """Return a snapshot with new claims, and without the blocks that pods may not use."""
        self.ledger.observe(snapshot)
        whole, unseen = self.ledger.apply(snapshot), self.unseen.get()
        if not unseen:
            return whole
        known = {name: b for name, b in whole.blocks.items() if b.node != self._node or b.cidr not in unseen}
        return replace(whole, blocks=known)

    def _admit_new_blocks(self) -> Problem | None:
        """Allow pods to use new blocks, once the snapshot has all addresses that others have reserved there.

        Both nodes write first and then read, so at least one of the two sees the other: claimant.py is the other
        side.
        """
        unseen = self.unseen.get()
        if not unseen:
            return None
        try:
            found = [r for r in self._store.list("IPReservation") if isinstance(r, IPReservation)]
            refused = self._refuse_reserved({held.address for held in found})
        except StoreError as error:
            what = f"reservations in new blocks can't be read: {error}"
            return Problem(RESERVED, what, "no pod gets an address of these blocks until they are read")
        there = {held.name for held in found if any(held.address in block for block in unseen)}
        if there <= self._snapshot.get().reservations.keys():
            self.unseen.update(lambda now: now - (unseen - refused))
        return None

    def _refuse_reserved(self, held: set[Address]) -> frozenset[Subnet]:
        """Delete new blocks whose gateway a pod has reserved before, and return them. Raises StoreError."""
        refused, unseen = set(), self.unseen.get()
        snapshot = self._seen()
        known = {b.cidr: b for b in snapshot.blocks.values() if b.node == self._node}
        for cidr, block in {**known, **{b.cidr: b for b in self.ledger.pending()}}.items():
            mine = (n for n in self._wanted if blocks.fits(cidr, n) and blocks.belongs(block, n, snapshot))
            barred = [a for n in mine for a in blocks.not_for_pods(cidr, n)]
            if cidr in unseen and not held.isdisjoint(barred):
                with contextlib.suppress(NotFoundError, ConflictError):  # it was deleted, and the answer was lost
                    self._store.delete("IPBlock", block.name, block)
                self.ledger.drop_claim(cidr)
                refused.add(cidr)
                log.warning("block %s is given back: its gateway is reserved for a pod", cidr)
        return frozenset(refused)

    def _claim_up_to(self, count: int, network: Network, version: int) -> None:
        for _ in range(count):
            snapshot = self._seen()
            self.ledger.observe(snapshot)
            mine = self.ledger.apply(snapshot)
            if self._node not in mine.nodes or blocks.assigned(mine, network, self._node):
                return
            own = [b for b in blocks.node_blocks(mine, network, self._node) if b.version == version]
            if len(own) >= count:
                return
            known = blocks.families(mine, network, self._node)
            if not own and version not in known and (known or version != network.versions[0]):
                return  # no pool is of this IP version; without any pool, only the first version reports it
            claimed = self._claim(self.ledger.with_claims(snapshot), network, version)
            self.ledger.note_claim(claimed, snapshot.blocks.get(claimed.name))
            key = _key(network, version)
            self._refusals.forget(key)
            self.problems.update(lambda known, key=key: {k: v for k, v in known.items() if k != key})  # type: ignore[misc]

    def _claim(self, snapshot: Snapshot, network: Network, version: int) -> IPBlock:
        """Claim a free block, else one of a node that is permanently gone. Raises NoBlockError, StoreError."""
        while True:
            try:
                return claim(self._create, snapshot, network, self._node, version)
            except NoBlockError:
                freed = self._abandoned.free(snapshot, network, version)
                if freed is None:
                    raise
                left = {name: block for name, block in snapshot.blocks.items() if block != freed}
                snapshot = replace(snapshot, blocks=left)

    def _create(self, block: IPBlock) -> Resource:
        self.unseen.update(lambda now: now | {block.cidr})  # before anybody can see it as this node's
        return self._store.create(block)

    def _delete(self, block: IPBlock) -> None:
        """Delete a block of ours; it stays withdrawn until the datastore shows that it is gone."""
        self._refused.pop(block, None)
        try:
            self._store.delete("IPBlock", block.name, block)
        except (NotFoundError, ConflictError) as error:
            log.info("block %s was given back already: %s", block.cidr, error)
        except StoreError as error:
            remedy = "it is retried; until then pods get no address of it"
            if not error.outcome_unknown:
                self.ledger.restore(block)
                remedy = "the agent's ClusterRole must let it delete ipblocks; the block stays in use"
            problem = Problem(f"IPBlock {block.name}", f"can't be given back: {error}", remedy)
            self._refused[block] = (problem, time.monotonic() + SHOWN_FOR)
            return
        else:
            log.info("gave back block %s of pool %s", block.cidr, block.pool)
        self.ledger.advance(block, Stage.DELETED)
