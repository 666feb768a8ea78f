"""The blocks of this node that the datastore does not show as they are: just claimed, or on their way back.

A block that is withdrawn is not this node's any more for those who look, but nobody else's either, until the
datastore shows that it is gone: a delete whose answer is lost may still be done.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.ip import Subnet
from agent.model.cluster import IPBlock, Snapshot

SEEN_WITHIN = 30.0  # seconds after which a claimed block that no list shows counts as taken away


class Stage(enum.Enum):
    """How far a block is on its way back to the pool."""

    WITHDRAWN = 1
    """No new reader sees it as this node's, but earlier readers may still be at work."""
    LEAVING = 2
    """It is to be deleted, or perhaps has been."""
    DELETED = 3
    """It is deleted, but the datastore has not shown that yet."""


@dataclass(frozen=True, slots=True)
class PendingClaim:
    """A block that was claimed, when (time.monotonic), and what the datastore showed in its place until then."""

    block: IPBlock
    since: float
    before: IPBlock | None

    def is_pending(self, snapshot: Snapshot) -> bool:
        """Return whether the snapshot does not show the claim yet, and still may."""
        unchanged = snapshot.blocks.get(self.block.name) == self.before
        return unchanged and self.since >= time.monotonic() - SEEN_WITHIN


class BlockLedger:
    """Keeps these blocks. For several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[Subnet, PendingClaim] = {}
        self._withdrawn: dict[IPBlock, Stage] = {}

    def pending(self) -> tuple[IPBlock, ...]:
        """Return the blocks that were claimed but are in no list yet."""
        with self._lock:
            return tuple(claim.block for claim in self._claims.values())

    def note_claim(self, block: IPBlock, before: IPBlock | None) -> None:
        """Note that this node has claimed a block; the snapshot shows `before` in its place."""
        with self._lock:
            self._claims[block.cidr] = PendingClaim(block, time.monotonic(), before)

    def drop_claim(self, cidr: Subnet) -> None:
        """Forget a claim that was taken back."""
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
        """Have a withdrawn block back that is not deleted."""
        with self._lock:
            self._withdrawn.pop(block, None)

    def observe(self, snapshot: Snapshot) -> None:
        """Forget what the datastore shows by now: claims that it has, and withdrawn blocks that it has not."""
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
