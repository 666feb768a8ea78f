"""Decide which node owns each block where blocks of several nodes overlap: the first owner keeps it. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agent.ip import Subnet
from agent.model.cluster import Snapshot

LATE = "~"  # sorts after every time, for an object without a time of creation


@dataclass(frozen=True, slots=True)
class BlockClaim:
    """A node's claim to a block: an IPBlock or a podCIDR of its Node object."""

    block: Subnet
    node: str
    created: str = ""


@dataclass(frozen=True, slots=True)
class BlockOwnership:
    """The owners of all blocks of a cluster."""

    owners: Mapping[Subnet, str] = field(default_factory=dict)
    """Each block that is in force, and its node."""
    refused: Mapping[tuple[str, Subnet], BlockClaim] = field(default_factory=dict)
    """The refused claims by node and block, each with the claim of another node that prevails."""
    by_node: Mapping[str, tuple[Subnet, ...]] = field(default_factory=dict)
    """All claims of each node: its podCIDRs, then what it has claimed."""


def span(block: Subnet) -> tuple[int, int]:
    """Return the first and the last address of a block, as numbers."""
    first = int(block.network_address)
    return first, first | ((1 << (block.max_prefixlen - block.prefixlen)) - 1)


def resolve(snapshot: Snapshot, before: Mapping[Subnet, str] | None = None) -> BlockOwnership:
    """Return which node has which block, where blocks of several nodes overlap.

    The owner in `before` keeps a block; else the object that was created first wins, and of two such the node
    whose name sorts first. So all nodes get the same result, except for blocks of which they know different owners
    `before`.
    """
    owners: dict[Subnet, str] = {}
    refused: dict[tuple[str, Subnet], BlockClaim] = {}
    for cluster in _clusters(snapshot):
        if len(cluster) == 1:
            _placed, _after, node, _created, block = cluster[0]
            owners[block] = node
        else:
            claims = [BlockClaim(block, node, created) for _placed, _after, node, created, block in cluster]
            _settle(claims, before or {}, owners, refused)
    by_node = {name: node.blocks for name, node in snapshot.nodes.items()}
    for claimed in snapshot.blocks.values():
        known = by_node.get(claimed.node, ())
        if claimed.cidr not in known:  # it may be a podCIDR of its Node, too
            by_node[claimed.node] = (*known, claimed.cidr)
    return BlockOwnership(owners, refused, by_node)


_Entry = tuple[tuple[int, int], int, str, str, Subnet]
"""IP version and first address, the negative of the last one, node, time of creation, block."""


def _clusters(snapshot: Snapshot) -> Iterator[list[_Entry]]:
    """Yield overlapping claims together: CIDRs lie in each other or apart, so one sorted pass finds them."""
    entries = [_entry(block, node.name, node.created) for node in snapshot.nodes.values() for block in node.blocks]
    entries += [_entry(claimed.cidr, claimed.node, claimed.created) for claimed in snapshot.blocks.values()]
    entries.sort(key=lambda entry: entry[:2])
    together: list[_Entry] = []
    end = (-1, -1)
    for entry in entries:
        if entry[0] > end:
            if together:
                yield together
            together, end = [], (entry[0][0], -entry[1])
        together.append(entry)
    if together:
        yield together


def _entry(block: Subnet, node: str, created: str) -> _Entry:
    first, last = span(block)
    return (block.version, first), -last, node, created, block


def _settle(
    cluster: list[BlockClaim],
    before: Mapping[Subnet, str],
    owners: dict[Subnet, str],
    refused: dict[tuple[str, Subnet], BlockClaim],
) -> None:
    """Accept claims by their priority; refuse one that overlaps an accepted claim of another node."""
    order = sorted(cluster, key=lambda c: (before.get(c.block) != c.node, c.created or LATE, c.node, str(c.block)))
    firsts: list[int] = []  # of what is taken: apart from each other, and in their order
    taken: list[tuple[int, BlockClaim]] = []
    for claim in order:
        first, last = span(claim.block)
        low = bisect.bisect_right(firsts, first) - 1
        low += low < 0 or taken[low][0] < first
        high = bisect.bisect_right(firsts, last)
        met = [held for _last, held in taken[low:high]]
        if other := next((held for held in met if held.node != claim.node), None):
            if claim.block not in owners or owners[claim.block] != claim.node:
                refused.setdefault((claim.node, claim.block), other)
            continue
        owners[claim.block] = claim.node
        refused.pop((claim.node, claim.block), None)
        if not met or all(held.block.prefixlen >= claim.block.prefixlen for held in met):
            firsts[low:high], taken[low:high] = [first], [(last, claim)]
