"""The number of blocks of addresses that a network needs on this node, and why it may get no more."""

from __future__ import annotations

from collections.abc import Mapping

from agent.ip import Subnet
from agent.ipam import blocks
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.block_claims.block_controller import BlockController
from agent.model.cluster import Snapshot
from agent.model.network import Network
from agent.model.node_status import Demand


def in_use(attachments: AttachmentStore, network: Network) -> frozenset[Subnet]:
    """Return the blocks that pods have addresses of: they stay on the node, even if another node owns them now."""
    return frozenset(
        lease.block
        for attachment in attachments.in_force()
        if attachment.network == network
        for lease in attachment.leases
        if not blocks.is_single(lease.block)
    )


def wanted(demand: Demand, attachments: AttachmentStore, network: Network) -> Mapping[int, int]:
    """Return how many blocks of each IP version the network needs."""
    want, used = demand.get(network), in_use(attachments, network)
    asked = want.blocks if want else {}
    needed = {version: sum(block.version == version for block in used) for version in network.versions}
    return {version: max(1, asked.get(version, 0), needed[version]) for version in network.versions}


def limit(snapshot: Snapshot, node: str, block_controller: BlockController, network: Network, version: int) -> str:
    """Return why a network can have no more blocks of an IP version; empty where nothing is known against it."""
    if network.has_manual_range:
        return "its range is all that the netconf gives this node"
    if blocks.assigned(snapshot, network, node):
        return "the node's podCIDRs are all that it has"
    return block_controller.why_full(network, version)
