"""The blocks of this node that the snapshot does not show correctly yet: just claimed, or about to be deleted.

Nobody may use a withdrawn block until the datastore shows that it is deleted: neither this node nor another one. A
delete request whose answer was lost may still be executed.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.ip import Subnet
from agent.model.cluster import IPBlock, Snapshot

SEEN_WITHIN = 30.0  # seconds after which a claimed block that no snapshot shows counts as deleted by others


class Stage(enum.Enum):
    """The stage that the return of a block to its pool has reached."""

    WITHDRAWN = 1
    """New snapshots do not have it, but an ADD may still work with an earlier one."""
    LEAVING = 2
    """It is to be deleted, or was deleted without an answer."""
    DELETED = 3
    """It is deleted, but the snapshot still has it."""


@dataclass(frozen=True, slots=True)
class PendingClaim:
    """A claimed block, the time (time.monotonic), and what the snapshot had in its place then."""

    block: IPBlock
    since: float
    before: IPBlock | None

    def is_pending(self, snapshot: Snapshot) -> bool:
        """Return whether the snapshot does not show the claim yet, and still may."""
        unchanged = snapshot.blocks.get(self.block.name) == self.before
        return unchanged and self.since >= time.monotonic() - SEEN_WITHIN


class BlockLedger:
    """Keeps claimed and withdrawn blocks, and corrects snapshots by them. For several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[Subnet, PendingClaim] = {}
        self._withdrawn: dict[IPBlock, Stage] = {}

    def pending(self) -> tuple[IPBlock, ...]:
        """Return the claimed blocks that no snapshot has shown yet."""
        with self._lock:
            return tuple(claim.block for claim in self._claims.values())

    def note_claim(self, block: IPBlock, before: IPBlock | None) -> None:
        """Note that this node has claimed a block; the snapshot shows `before` in its place."""
        with self._lock:
            self._claims[block.cidr] = PendingClaim(block, time.monotonic(), before)

    def drop_claim(self, cidr: Subnet) -> None:
        """Forget a claim whose block was deleted again."""
        with self._lock:
            self._claims.pop(cidr, None)

    def withdraw(self, blocks: Iterable[IPBlock]) -> None:
        """Leave these blocks out of every complete snapshot from now on."""
        with self._lock:
            self._withdrawn.update(dict.fromkeys(blocks, Stage.WITHDRAWN))

    def withdrawn(self, stage: Stage) -> tuple[IPBlock, ...]:
        """Return the withdrawn blocks of a stage."""
        with self._lock:
            return tuple(block for block, reached in self._withdrawn.items() if reached == stage)

    def advance(self, block: IPBlock, stage: Stage) -> None:
        """Note that a withdrawn block has reached a stage."""
        with self._lock:
            self._withdrawn[block] = stage

    def restore(self, block: IPBlock) -> None:
        """Keep a withdrawn block after all; it was not deleted."""
        with self._lock:
            self._withdrawn.pop(block, None)

    def observe(self, snapshot: Snapshot) -> None:
        """Forget claims that the snapshot has, and withdrawn blocks that it has not."""
        with self._lock:
            self._claims = {cidr: claim for cidr, claim in self._claims.items() if claim.is_pending(snapshot)}
            self._withdrawn = {b: s for b, s in self._withdrawn.items() if snapshot.blocks.get(b.name) == b}

    def with_claims(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with the blocks that were claimed since."""
        with self._lock:
            pending = {c.block.name: c.block for c in self._claims.values() if c.is_pending(snapshot)}
        return replace(snapshot, blocks={**snapshot.blocks, **pending}) if pending else snapshot

    def apply(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with the blocks that were claimed since, and without those that are withdrawn."""
        with self._lock:
            left = {block for block in self._withdrawn if snapshot.blocks.get(block.name) == block}
        whole = self.with_claims(snapshot)
        if not left:
            return whole
        return replace(whole, blocks={name: b for name, b in whole.blocks.items() if b not in left})
