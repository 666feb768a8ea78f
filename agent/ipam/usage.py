"""Count the addresses in use by block and by pool, for people: pure functions."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from agent.cluster.objects import NAME_LIMIT
from agent.cluster.pool_status_object import LARGEST
from agent.cluster.usage_objects import label
from agent.ip import Address, Subnet
from agent.ipam import allocator, blocks
from agent.ipam.allocator import Range
from agent.model.cluster import IPPool, Snapshot, block_name
from agent.model.node_status import NodeStatus
from agent.model.usage import BlockUsage, PoolCounts

LISTED = 256  # addresses in one object: all of a /24; those of larger blocks would not fit into etcd's 1.5 MiB
OFF_BLOCK = "off-block"

Counts = Callable[[Range], tuple[int, int, int]]
"""Returns the numbers of addresses of a range that are in use or reserved, cooling, and free."""


def of_node(
    node: str, snapshot: Snapshot, status: NodeStatus, pods: Mapping[Address, str], counts: Counts
) -> dict[str, BlockUsage]:
    """Return the usage of a node's blocks, by the name of the object.

    `pods`: the pod that has each address, for people.
    """
    found, left = {}, dict(pods)
    for block, pool, part in _blocks(node, snapshot, status, pods):
        inside = {address: pod for address, pod in pods.items() if blocks.contains(block, address)}
        taken, cooling, free = counts(part)
        reserved = taken - sum(address in part for address in inside)
        name = of_one_node(block_name(block), node) if pool == BlockUsage.BY_HAND else block_name(block)
        found[name] = BlockUsage(
            name, node, pool, block, len(inside), reserved, min(free + cooling, LARGEST), _listed(inside)
        )
        for address in inside:
            left.pop(address, None)
    if left:
        name = of_one_node(OFF_BLOCK, node)
        found[name] = BlockUsage(name, node, "", None, len(left), 0, None, _listed(left))
    return found


def of_one_node(what: str, node: str) -> str:
    """Return the name of a node's own object; a Node's name may be too long to be a part of it."""
    name = f"{what}.{node}"
    return name if len(name) <= NAME_LIMIT else f"{what}.{label(node)}"


def _blocks(
    node: str, snapshot: Snapshot, status: NodeStatus, pods: Iterable[Address]
) -> Iterator[tuple[Subnet, str, Range]]:
    """Yield each block of the node, the name of its pool, and the range for pods.

    These are blocks of prepared networks, claimed blocks, and podCIDRs of which pods still have addresses.
    """
    me = snapshot.nodes.get(node)
    given = me.blocks if me else ()
    claimed = {block.cidr: block for block in snapshot.blocks.values() if block.node == node}
    parts: dict[Subnet, Range] = {}
    by_hand: set[Subnet] = set()
    for network, own in status.blocks.items():
        for block, part in zip(own, blocks.prepared(status, network, own), strict=True):
            if block not in parts or parts[block].size < part.size:
                parts[block] = part
            if network.has_manual_range:
                by_hand.add(block)
    kept = (b for b in given if b not in parts and any(blocks.contains(b, address) for address in pods))
    for block in (*claimed, *kept):
        barred = blocks.excluded(snapshot, None, node, (block,))
        shared = block in claimed and claimed[block].shared
        whole = allocator.shared(block, None, None, barred) if shared else allocator.usable(block, excluded=barred)
        parts.setdefault(block, whole)
    for block, part in parts.items():
        pool = BlockUsage.BY_HAND if block in by_hand else claimed[block].pool if block in claimed else ""
        if not pool and block in given:
            pool = BlockUsage.POD_CIDR
        if pool:  # else it was just claimed, and the snapshot does not have it yet
            yield block, pool, part


def _listed(pods: Mapping[Address, str]) -> tuple[str, ...]:
    """Return `ADDRESS POD` of each, in the order of addresses; the last entry says how many are left out."""
    order = sorted(pods, key=lambda address: (address.version, int(address)))
    entries = [f"{address} {pods[address]}" for address in order[:LISTED]]
    return (*entries, f"and {len(order) - LISTED} more") if len(order) > LISTED else tuple(entries)


def of_pools(snapshot: Snapshot, usages: Iterable[BlockUsage]) -> dict[str, PoolCounts]:
    """Return the counts of each pool by its name; `usages` are those of all nodes."""
    used = dict.fromkeys(snapshot.pools, 0)
    for usage in usages:
        if usage.pool in used:
            used[usage.pool] += usage.used
        elif (
            not usage.pool
        ):  # off-block pods: they kept their address on another node, or their node lost the block
            for address in _addresses(usage):
                for name in (n for n, pool in snapshot.pools.items() if blocks.contains(pool.cidr, address)):
                    used[name] += 1
    found = {}
    for name, pool in snapshot.pools.items():
        kept = sum(not r.in_use and blocks.contains(pool.cidr, r.address) for r in snapshot.reservations.values())
        left = capacity(pool, snapshot) - used[name] - kept
        claimed = sum(block.pool == name for block in snapshot.blocks.values())
        found[name] = PoolCounts(min(used[name], LARGEST), min(max(0, left), LARGEST), claimed)
    return found


def _addresses(usage: BlockUsage) -> Iterator[Address]:
    for entry in usage.addresses:
        with suppress(ValueError):  # "and N more"
            yield ipaddress.ip_address(entry.partition(" ")[0])


def capacity(pool: IPPool, snapshot: Snapshot) -> int:
    """Return how many addresses of a pool pods can have, if nodes claim all of its blocks.

    Addresses that it excludes do not count, nor podCIDRs in it, nor the network, gateway and broadcast address of
    each block, unless pods share the subnet of their parent. It is calculated, as a pool may have 2^100 blocks.
    """
    base, last = int(pool.cidr.network_address), int(pool.cidr.broadcast_address)
    podcidrs = (block for node in snapshot.nodes.values() for block in node.blocks)
    barred = (*blocks.left_out(pool), *podcidrs)
    gaps = allocator.spans(block for block in barred if blocks.overlaps(block, pool.cidr))
    step = 1 << (pool.cidr.max_prefixlen - pool.block_size)
    block = allocator.usable(type(pool.cidr)((base, pool.block_size)))
    edges = (*range(block.first - base), *range(block.last + 1 - base, step))
    taken = () if blocks.is_shared(pool, snapshot) else edges
    total, low = 0, base
    for begin, end in (*gaps, (last + 1, last + 1)):
        high = min(begin - 1, last)
        if low <= high:
            lost = sum(_count(high + 1 - base, step, rest) - _count(low - base, step, rest) for rest in taken)
            total += high - low + 1 - lost
        low = max(low, end + 1)
    return total


def _count(below: int, step: int, rest: int) -> int:
    """Return how many numbers from 0 on, below a limit, leave this rest when they are divided by `step`."""
    return (below - rest + step - 1) // step
