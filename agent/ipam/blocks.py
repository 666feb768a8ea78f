"""Which blocks a node has for a network, and which it might claim: pure functions of the snapshot."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator

from agent.cluster.objects import DEFAULT_BLOCK_SIZE
from agent.ipam import allocator
from agent.ipam.allocator import Range
from agent.model import Address, IPBlock, IPPool, Network, Snapshot, Subnet, Uplink

IMPLICIT_POOL = "netconf"


def within(block: Subnet, subnet: Subnet | None) -> bool:
    """Whether a block lies in a network's subnet; without one, every block does."""
    if subnet is None:
        return True
    return block.version == subnet.version and bool(block.subnet_of(subnet))  # type: ignore[arg-type]


def single(address: Address) -> Subnet:
    """An address as a network of its own."""
    return ipaddress.ip_network(address)


def is_single(block: Subnet) -> bool:
    """Whether it is one address: that of a pod that is not at home here, and no block of the node's."""
    return block.prefixlen == block.max_prefixlen


def overlaps(one: Subnet, other: Subnet) -> bool:
    """Whether two networks share an address."""
    return one.version == other.version and one.overlaps(other)


def node_blocks(snapshot: Snapshot, network: Network, node: str) -> tuple[Subnet, ...]:
    """The node's blocks for a network: those of its Node object, else the IPBlocks that it has claimed.

    Where netconfs divide a subnet by hand, the subnet counts as the node's block, and the range is its part.
    """
    if network.hand_made and network.subnet:
        return (network.subnet,)
    if network.pool:
        return _claimed(snapshot, network, node)
    me = snapshot.nodes.get(node)
    assigned = tuple(block for block in (me.blocks if me else ()) if within(block, network.subnet))
    return assigned or _claimed(snapshot, network, node)


def _claimed(snapshot: Snapshot, network: Network, node: str) -> tuple[Subnet, ...]:
    mine = (
        block.cidr
        for block in snapshot.blocks.values()
        if block.node == node and network.pool in ("", block.pool) and within(block.cidr, network.subnet)
    )
    return tuple(sorted(mine, key=lambda cidr: (cidr.version, int(cidr.network_address), cidr.prefixlen)))


def ranges(network: Network, own: tuple[Subnet, ...], uplink: Uplink | None) -> list[Range]:
    """Where in the node's blocks pods' addresses may be; a range may be empty."""
    start, end = network.range_start, network.range_end
    if network.link_mode:
        reserved = uplink.reserved if uplink else frozenset()
        return [allocator.shared(block, start, end, reserved) for block in own]
    return [allocator.usable(block, start, end) for block in own]


def pools(snapshot: Snapshot, network: Network) -> tuple[IPPool, ...]:
    """The pools that a network may claim from; a netconf's subnet is a pool where no IPPool covers it."""
    fitting = tuple(
        pool
        for pool in sorted(snapshot.pools.values(), key=lambda p: p.name)
        if network.pool in ("", pool.name) and (network.subnet is None or overlaps(pool.cidr, network.subnet))
    )
    # others live on a shared subnet: nothing is guessed
    if fitting or network.pool or network.subnet is None or network.shared:
        return fitting
    size = max(DEFAULT_BLOCK_SIZE[network.subnet.version], network.subnet.prefixlen)
    return (IPPool(IMPLICIT_POOL, network.subnet, size),)


def candidates(snapshot: Snapshot, network: Network, node: str) -> Iterator[IPBlock]:
    """Blocks that nobody has as far as we know, in an order of the node's own, so that claims seldom meet."""
    taken = [block.cidr for block in snapshot.blocks.values()]
    taken += [cidr for other in snapshot.nodes.values() for cidr in other.blocks]
    exact = set(taken)
    odd = [cidr for cidr in taken if not _is_regular(cidr, snapshot, network)]
    for pool in pools(snapshot, network):
        step = 1 << (pool.cidr.max_prefixlen - pool.block_size)
        count = 1 << (pool.block_size - pool.cidr.prefixlen)
        start = int.from_bytes(hashlib.sha256(f"{pool.name}/{node}".encode()).digest()[:8]) % count
        base = int(pool.cidr.network_address)
        for number in range(count):
            cidr = type(pool.cidr)((base + (start + number) % count * step, pool.block_size))
            if cidr in exact or not within(cidr, network.subnet) or any(overlaps(cidr, o) for o in odd):
                continue
            yield IPBlock(cidr, node, pool.name)


def _is_regular(cidr: Subnet, snapshot: Snapshot, network: Network) -> bool:
    """Whether it is of its pool's block size: then it overlaps a candidate only by being the same."""
    return any(cidr.prefixlen == pool.block_size and within(cidr, pool.cidr) for pool in pools(snapshot, network))
