"""Return claimed blocks that are not used to their pool, so that other nodes can claim them.

An ADD reads the node's blocks, takes an address, writes its attachment, and then checks that the node still has
the block. So a block is withdrawn first, and the next round publishes that. If no attachment has an address of the
block then, no ADD can get one any more, and the block is deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from agent.ipam import blocks
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.block_claims.block_controller import BlockController
from agent.ipam.block_claims.block_ledger import Stage
from agent.ipam.blocks import BlockCount
from agent.model.cluster import IPBlock, Snapshot
from agent.model.network import Network

BLOCK_IDLE = 300.0  # seconds

log = logging.getLogger(__name__)


class IdleBlockReleaser:
    """Gives back blocks that were idle for a while, so that a short-lived pod does not claim and release one."""

    def __init__(
        self, node: str, block_controller: BlockController, attachments: AttachmentStore, idle: float = BLOCK_IDLE
    ) -> None:
        self._node = node
        self._block_controller = block_controller
        self._attachments = attachments
        self._idle = idle
        self._since: dict[IPBlock, float] = {}

    def release_idle(self, published: Snapshot, wanted: Mapping[Network, BlockCount], *, noted: bool) -> bool:
        """Withdraw and delete idle blocks after a round published this snapshot; return whether a round is due.

        `noted`: whether a file has for the next agent what was published; if not, nothing is given back.
        """
        changed, may = False, noted and self._block_controller.is_snapshot_whole()
        for block in self._block_controller.ledger.withdrawn(Stage.WITHDRAWN):
            if may and not self._attachments.busy(block.cidr):
                self._block_controller.give_back(block)
                continue
            log.info("block %s is kept after all", block.cidr)
            self._block_controller.ledger.restore(block)
            changed = True
        if not may:
            self._since = {}
            return changed
        now = time.monotonic()
        mine = [block for block in published.blocks.values() if block.node == self._node]
        busy = {block.cidr for block in mine if self._attachments.busy(block.cidr)}
        surplus = blocks.surplus(published, self._node, wanted, busy) - {*self._block_controller.ledger.pending()}
        self._since = {block: self._since.get(block, now) for block in surplus}
        ripe = [block for block, since in self._since.items() if since + self._idle <= now]
        self._block_controller.ledger.withdraw(ripe)
        return changed or bool(ripe)

    def next(self) -> float:
        """Return when the next block will have been idle for long enough, by time.monotonic."""
        return min(self._since.values(), default=float("inf")) + self._idle
