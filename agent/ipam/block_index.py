"""Find the block and the node of an address quickly among thousands of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from agent.ip import Address, Subnet
from agent.model.cluster import IPBlock, Node, Snapshot


class BlockIndex:
    """The blocks of all nodes, by address. Immutable."""

    def __init__(self, nodes: Mapping[str, Node], claimed: Mapping[str, IPBlock]) -> None:
        self.owners: dict[Subnet, str] = {block.cidr: block.node for block in claimed.values()}
        """Every block, and its node; a podCIDR counts before an IPBlock."""
        for node in nodes.values():
            self.owners.update(dict.fromkeys(node.blocks, node.name))
        self._at = {(b.version, b.prefixlen, int(b.network_address)): b for b in self.owners}
        sizes = sorted({(b.version, b.prefixlen) for b in self.owners}, reverse=True)
        self._sizes = {version: [size for of, size in sizes if of == version] for version in (4, 6)}

    def find(self, address: Address) -> tuple[Subnet, str] | None:
        """Return the smallest block that contains an address, and its node. None: no block contains it."""
        number, version = int(address), address.version
        for size in self._sizes[version]:
            rest = address.max_prefixlen - size
            block = self._at.get((version, size, number >> rest << rest))
            if block is not None:
                return block, self.owners[block]
        return None


def of(snapshot: Snapshot) -> BlockIndex:
    """Return the index of a snapshot's blocks; it is kept while the snapshot's Nodes and IPBlocks are the same."""
    parts = snapshot.nodes, snapshot.blocks
    return cast(BlockIndex, snapshot.derived.get(parts, lambda: BlockIndex(*parts)))
