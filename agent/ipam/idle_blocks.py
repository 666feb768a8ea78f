"""Claimed blocks that nobody needs go back to their pool, so that other nodes can claim them.

An ADD looks at the blocks, takes an address, notes it in its attachment, and then looks whether the block is
still there. So a block is first withdrawn, which the next round publishes; if no attachment has an address of it
then, none can get one any more, and it is deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from agent.ipam import blocks
from agent.ipam.attachment_store import AttachmentStore
from agent.ipam.block_controller import BlockController
from agent.ipam.block_ledger import Stage
from agent.ipam.blocks import BlockCount
from agent.model.cluster import IPBlock, Snapshot
from agent.model.network import Network

BLOCK_IDLE = 300.0  # seconds

log = logging.getLogger(__name__)


class IdleBlockReleaser:
    """Give back blocks that were idle for a while: a pod that comes and goes must not make a block do so."""

    def __init__(
        self, node: str, block_controller: BlockController, attachments: AttachmentStore, idle: float = BLOCK_IDLE
    ) -> None:
        self._node = node
        self._block_controller = block_controller
        self._attachments = attachments
        self._idle = idle
        self._since: dict[IPBlock, float] = {}

    def look(self, published: Snapshot, wanted: Mapping[Network, BlockCount], *, noted: bool) -> bool:
        """Look once after a round has published this snapshot; return whether another round is wanted at once.

        Where it is not `noted` for a restart what was published, nothing is given back.
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
