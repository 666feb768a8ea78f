"""Blocks of nodes that are permanently gone: an agent that finds no free block deletes one of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from agent.cluster.store import ConflictError, Datastore, NotFoundError
from agent.ipam import blocks
from agent.model.cluster import IPBlock, Snapshot
from agent.model.network import Network

log = logging.getLogger(__name__)


class AbandonedBlocks:
    """Knows since when Node objects are missing. For one thread."""

    def __init__(self, store: Datastore, node_gone: float) -> None:
        """`node_gone`: seconds without its Node object after which a node counts as permanently gone."""
        self._store = store
        self._node_gone = node_gone
        self._missing: dict[str, float] = {}
        """The nodes that own blocks and have no Node object, and since when (time.monotonic)."""

    def observe(self, snapshot: Snapshot, *, whole: bool) -> None:
        """Note which nodes are missing; by a snapshot that is not `whole`, none is."""
        owners = {block.node for block in snapshot.blocks.values()} if whole else set()
        now = time.monotonic()
        self._missing = {name: self._missing.get(name, now) for name in owners - snapshot.nodes.keys()}

    def free(self, snapshot: Snapshot, network: Network, version: int) -> IPBlock | None:
        """Delete one block of an IP version, and return it; None if there is none. Raises StoreError.

        It deletes only the object that was seen: another agent may have deleted it, and a third may have claimed
        it again.
        """
        abandoned = [block for block in self._of(snapshot, network) if block.cidr.version == version]
        if not abandoned:
            return None
        nodes = {node.name for node in self._store.list("Node")}  # the watch may be late
        for block in abandoned:
            if block.node in nodes:
                continue
            try:
                self._store.delete("IPBlock", block.name, block)
                log.warning("block %s is free, as its node %s is permanently gone", block.cidr, block.node)
            except (NotFoundError, ConflictError) as error:
                log.info("block %s of node %s was freed by another: %s", block.cidr, block.node, error)
            return block
        return None

    def _of(self, snapshot: Snapshot, network: Network) -> Iterator[IPBlock]:
        """Yield the blocks that a network may use whose nodes are permanently gone."""
        long_ago = time.monotonic() - self._node_gone
        pools = blocks.pools(snapshot, network)
        for block in snapshot.blocks.values():
            gone = self._missing.get(block.node, long_ago + 1) <= long_ago
            fits = blocks.within(block.cidr, network.subnet) and blocks.belongs(block, network, snapshot)
            if gone and fits and any(blocks.overlaps(block.cidr, pool.cidr) for pool in pools):
                yield block
