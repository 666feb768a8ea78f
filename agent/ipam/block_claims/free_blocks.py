"""The blocks that a node may claim: those of its network's pools that no node has, as far as is known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from agent.ip import Address, Subnet
from agent.ipam import allocator, blocks
from agent.model.cluster import IPBlock, IPPool, Snapshot
from agent.model.network import Network


def candidates(snapshot: Snapshot, network: Network, node: str, version: int | None = None) -> Iterator[IPBlock]:
    """Yield blocks that no node has as far as is known, of one IP version or of all (None).

    The order differs from node to node, so that two nodes seldom claim the same block.
    """
    taken = [block.cidr for block in snapshot.blocks.values()]
    taken += [cidr for other in snapshot.nodes.values() for cidr in other.blocks]
    taken += blocks.barred(snapshot, network)
    exact, reserved = set(taken), frozenset(r.address for r in snapshot.reservations.values())
    for pool in blocks.pools(snapshot, network):
        if version not in (None, pool.cidr.version):
            continue
        begin = int.from_bytes(hashlib.sha256(f"{pool.name}/{node}".encode()).digest()[:8])
        for cidr in _in_circle(pool, _parts(pool, snapshot, network, node, taken), begin):
            if cidr not in exact and _has_room(cidr, snapshot, network, node, reserved):
                yield IPBlock(cidr, node, pool.name, shared=network.shared)


def _has_room(cidr: Subnet, snapshot: Snapshot, network: Network, node: str, reserved: frozenset[Address]) -> bool:
    """Return whether a pod could get an address of a block: not if what would be its gateway is reserved."""
    if not reserved.isdisjoint(blocks.not_for_pods(cidr, network)):
        return False
    inside = frozenset(address for address in reserved if blocks.contains(cidr, address))
    excluded = blocks.excluded(snapshot, network, node, (cidr,))
    return any(part.size for part in blocks.ranges(network, (cidr,), excluded, inside))


def _parts(
    pool: IPPool, snapshot: Snapshot, network: Network, node: str, taken: Iterable[Subnet]
) -> list[tuple[int, int]]:
    """Return the parts of a pool that may have free blocks: each from one number of a block up to another.

    A pool may have 2^100 blocks, so it is not possible to look at each block that cannot be claimed.
    """
    step, base = 1 << (pool.cidr.max_prefixlen - pool.block_size), int(pool.cidr.network_address)
    first, last = base, int(pool.cidr.broadcast_address)
    for bound in (pool.start, network.range_start):
        first = max(first, int(bound)) if bound and bound.version == pool.cidr.version else first
    for bound in (pool.end, network.range_end):
        last = min(last, int(bound)) if bound and bound.version == pool.cidr.version else last
    number, end = (first - base) // step, (last - base) // step + 1
    if network.subnet and network.subnet.version == pool.cidr.version:  # a block lies in it as a whole
        low, high = int(network.subnet.network_address), int(network.subnet.broadcast_address)
        number, end = max(number, -(-(low - base) // step)), min(end, (high + 1 - base) // step)
    barred = allocator.spans(blocks.excluded(snapshot, network, node, (pool.cidr,)))
    holes = [(-(-(low - base) // step), (high + 1 - base) // step) for low, high in barred]  # blocks inside
    others = allocator.spans(c for c in taken if blocks.overlaps(c, pool.cidr) and not _is_block_of(pool, c))
    holes += [((low - base) // step, (high - base) // step + 1) for low, high in others]  # blocks that they touch
    parts = []
    for hole, after in sorted(holes):
        if hole < after:
            parts.append((number, min(hole, end)))
            number = max(number, after)
    return [(low, high) for low, high in (*parts, (number, end)) if low < high]


def _in_circle(pool: IPPool, parts: list[tuple[int, int]], begin: int) -> Iterator[Subnet]:
    """Yield the blocks of these parts of a pool, in a circle from the one whose number is `begin`."""
    step, base = 1 << (pool.cidr.max_prefixlen - pool.block_size), int(pool.cidr.network_address)
    begin %= sum(high - low for low, high in parts) or 1
    later: list[tuple[int, int]] = []
    sooner: list[tuple[int, int]] = []
    for low, high in parts:
        middle = min(low + begin, high)
        begin -= middle - low
        sooner.append((low, middle))
        later.append((middle, high))
    for low, high in (*later, *sooner):
        for block in range(low, high):
            yield type(pool.cidr)((base + block * step, pool.block_size))


def _is_block_of(pool: IPPool, cidr: Subnet) -> bool:
    """Return whether a CIDR is one of the blocks that nodes may claim of a pool."""
    return cidr.prefixlen == pool.block_size and blocks.within(cidr, pool.cidr)
