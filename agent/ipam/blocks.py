"""Which blocks a node has for a network, and which it might claim: pure functions of the snapshot."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping

from agent.cluster.pool_object import DEFAULT_BLOCK_SIZE
from agent.ip import Address, Subnet
from agent.ipam import allocator
from agent.ipam.allocator import Range
from agent.model import special_addresses
from agent.model.cluster import IPBlock, IPPool, Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus

IMPLICIT_POOL = "netconf"
NOBODY: frozenset[Address] = frozenset()


BlockCount = int | Mapping[int, int]
"""How many blocks: of each IP version, or by IP version."""


def count(wanted: BlockCount, version: int) -> int:
    """Return how many blocks of an IP version are wanted."""
    return wanted if isinstance(wanted, int) else wanted.get(version, 0)


def within(block: Subnet, subnet: Subnet | None) -> bool:
    """Return whether a block lies in a network's subnet; without a subnet, every block does."""
    if subnet is None:
        return True
    return block.version == subnet.version and bool(block.subnet_of(subnet))  # type: ignore[arg-type]


def fits(block: Subnet, network: Network) -> bool:
    """Return whether pods of a network can have addresses of a block: subnet and mode allow it."""
    return block.version in network.versions and within(block, network.subnet)


def families(snapshot: Snapshot, network: Network, node: str) -> frozenset[int]:
    """Return the IP versions of which each pod of the network gets an address.

    Those of the blocks that the cluster has given the node; else those of the pools that the node may claim from.
    """
    if network.hand_made and network.subnet:
        return frozenset({network.subnet.version})
    given = assigned(snapshot, network, node)
    return frozenset(b.version for b in given) or frozenset(pool.cidr.version for pool in pools(snapshot, network))


def not_for_pods(block: Subnet, network: Network) -> frozenset[Address]:
    """Return what no pod may have of a block, whichever node has it: its network, gateway and broadcast address.

    Where pods share the subnet of their parent, a block has none of them.
    """
    if network.needs_parent:
        return frozenset()
    last = [block.broadcast_address] if block.version == 4 else []
    return frozenset({block.network_address, allocator.gateway(block), *last})


def possible(snapshot: Snapshot, network: Network, address: Address) -> Iterator[Subnet]:
    """Yield the blocks that nodes may claim at an address, one for each pool that has it."""
    for pool in pools(snapshot, network):
        if contains(pool.cidr, address):
            yield ipaddress.ip_network((address, pool.block_size), strict=False)


def single(address: Address) -> Subnet:
    """Return an address as a network of its own."""
    return ipaddress.ip_network(address)


def is_single(block: Subnet) -> bool:
    """Return whether it is one address: that of an off-block pod, and no block of the node's."""
    return block.prefixlen == block.max_prefixlen


def contains(subnet: Subnet | None, address: Address | None) -> bool:
    """Return whether subnet and address are there, and the one contains the other."""
    return bool(address and subnet and address.version == subnet.version and address in subnet)


def overlaps(one: Subnet, other: Subnet) -> bool:
    """Return whether two networks share an address."""
    return one.version == other.version and one.overlaps(other)


def is_alike(one: Snapshot, other: Snapshot) -> bool:
    """Return whether two snapshots have the same Nodes, pools and blocks, and the same ground."""
    return (one.pools, one.blocks, one.nodes, one.host_networks) == (
        other.pools,
        other.blocks,
        other.nodes,
        other.host_networks,
    )


def belongs(block: IPBlock, network: Network, snapshot: Snapshot) -> bool:
    """Return whether pods of a network may have addresses of a claimed block, whichever node has claimed it.

    Networks whose pods share their parent's subnet and routed ones have no block in common. Versions that wrote no
    `shared` are known by the place: a block in a network of this node's is not routed.
    """
    return network.shared or not (block.shared or overlapping_host_network(block.cidr, snapshot))


def overlapping_host_network(cidr: Subnet, snapshot: Snapshot) -> str:
    """Return the network of this node's that a CIDR overlaps, for people; empty where it overlaps none."""
    return next((text for network, text in snapshot.host_networks.interfaces if overlaps(cidr, network)), "")


def is_shared(pool: IPPool, snapshot: Snapshot) -> bool:
    """Return whether only networks whose pods share their parent's subnet may have addresses of a pool.

    This is so where the pool lies in a network of this node's, and where they have claimed a block of it.
    """
    if any(within(pool.cidr, network) for network, _text in snapshot.host_networks.interfaces):
        return True
    return any(block.shared and block.pool == pool.name for block in snapshot.blocks.values())


def barred(snapshot: Snapshot, network: Network) -> Iterator[Subnet]:
    """Yield what no new block of a network may overlap, besides blocks and podCIDRs.

    Pods that share their parent's subnet live among the nodes: there single addresses are left out, not blocks.
    The API server's address outside of the node's networks is a Service's: how far those go is not known.
    """
    yield from (kept.network for kept in special_addresses.CLASSES)
    for server in snapshot.host_networks.api_servers:
        near = overlapping_host_network(single(server), snapshot)
        around = (*(pool.cidr for pool in snapshot.pools.values()), network.subnet)
        yield from (cidr for cidr in around if cidr and contains(cidr, server) and not near)
    if network.shared:
        return
    yield from (near for near, _text in snapshot.host_networks.interfaces)
    yield from map(single, snapshot.host_networks.gateways)
    yield from map(single, snapshot.host_networks.api_servers)
    yield from (single(address) for node in snapshot.nodes.values() for address in node.addresses)


def assigned(snapshot: Snapshot, network: Network, node: str) -> tuple[Subnet, ...]:
    """Return the blocks that the cluster has given the node for a network: then it claims none.

    Blocks of a pool that is asked for by name are always claimed.
    """
    if network.pool:
        return ()
    me = snapshot.nodes.get(node)
    return tuple(block for block in (me.blocks if me else ()) if fits(block, network))


def node_blocks(snapshot: Snapshot, network: Network, node: str) -> tuple[Subnet, ...]:
    """Return the node's blocks for a network: those of its Node object, else the IPBlocks that it has claimed.

    Where netconfs divide a subnet by hand, the subnet counts as the node's block, and the range is its part.
    """
    if network.hand_made and network.subnet:
        return (network.subnet,)
    if given := assigned(snapshot, network, node):
        return given
    mine = (
        block.cidr
        for block in snapshot.blocks.values()
        if block.node == node
        and network.pool in ("", block.pool)
        and fits(block.cidr, network)
        and belongs(block, network, snapshot)
    )
    return tuple(sorted(mine, key=lambda cidr: (cidr.version, int(cidr.network_address), cidr.prefixlen)))


def everywhere(snapshot: Snapshot, networks: Iterable[Network]) -> frozenset[Subnet]:
    """Return where pods' addresses are in the cluster, but for subnets that they share with others."""
    found = {network.subnet for network in networks if network.subnet and not network.shared}
    found.update(pool.cidr for pool in snapshot.pools.values() if not is_shared(pool, snapshot))
    found.update(block.cidr for block in snapshot.blocks.values() if not block.shared)
    found.update(block for node in snapshot.nodes.values() for block in node.blocks)
    return frozenset(found)


def excluded(snapshot: Snapshot, network: Network | None, node: str, own: tuple[Subnet, ...]) -> frozenset[Subnet]:
    """Return what of the node's blocks no pod may have: what the pools leave out there, and their routers.

    Where netconfs divide a subnet by hand they say from where to where, but what others have claimed is theirs.
    """
    by_hand = network is not None and network.hand_made
    found: set[Subnet] = set()
    for pool in snapshot.pools.values():
        found.update(left_out(pool, ends=not by_hand))
    if by_hand:
        found.update(block.cidr for block in snapshot.blocks.values() if block.node != node)
    return frozenset(subnet for subnet in found if any(overlaps(subnet, block) for block in own))


def left_out(pool: IPPool, *, ends: bool = True) -> Iterator[Subnet]:
    """Yield what of a pool no pod may have; with `ends` also what lies before its start or after its end."""
    yield from pool.exclude
    if pool.gateway:
        yield single(pool.gateway)
    if not ends:
        return
    first, last = pool.cidr.network_address, pool.cidr.broadcast_address
    if pool.start and pool.start != first:
        yield from ipaddress.summarize_address_range(first, pool.start - 1)
    if pool.end and pool.end != last:
        yield from ipaddress.summarize_address_range(pool.end + 1, last)


@functools.lru_cache(64)
def ranges(
    network: Network, own: tuple[Subnet, ...], barred: frozenset[Subnet], reserved: frozenset[Address]
) -> tuple[Range, ...]:
    """Return where in the blocks pods' addresses may be, without what is barred or reserved; one may be empty."""
    part = allocator.shared if network.needs_parent else allocator.usable
    without = [*barred, *map(ipaddress.ip_network, reserved)]
    return tuple(part(block, network.range_start, network.range_end, without) for block in own)


def prepared(status: NodeStatus, network: Network, own: tuple[Subnet, ...]) -> tuple[Range, ...]:
    """Return the ranges of these blocks by what the node path found out."""
    uplink = status.uplinks.get(network)
    barred = status.excluded.get(network, frozenset())
    return ranges(network, own, barred, uplink.reserved if uplink else frozenset())


def pools(snapshot: Snapshot, network: Network) -> tuple[IPPool, ...]:
    """Return the pools that a network may claim from; a netconf's subnet is a pool if no IPPool covers it.

    A routed network claims from no pool of networks that share their parent's subnet.
    """
    fitting = tuple(
        pool
        for pool in sorted(snapshot.pools.values(), key=lambda p: p.name)
        if network.pool in ("", pool.name)
        and pool.cidr.version in network.versions
        and (network.subnet is None or overlaps(pool.cidr, network.subnet))
        and (network.shared or not is_shared(pool, snapshot))
    )
    # others live on a shared subnet: nothing is guessed
    if fitting or network.pool or network.subnet is None or network.shared:
        return fitting
    size = max(DEFAULT_BLOCK_SIZE[network.subnet.version], network.subnet.prefixlen)
    return (IPPool(IMPLICIT_POOL, network.subnet, size),)


def candidates(snapshot: Snapshot, network: Network, node: str, version: int | None = None) -> Iterator[IPBlock]:
    """Yield blocks that no node has as far as is known, in an order of the node's own, so that claims seldom meet.

    Those of one IP version, or of all (None).
    """
    taken = [block.cidr for block in snapshot.blocks.values()]
    taken += [cidr for other in snapshot.nodes.values() for cidr in other.blocks]
    taken += barred(snapshot, network)
    exact, held = set(taken), frozenset(r.address for r in snapshot.reservations.values())
    for pool in pools(snapshot, network):
        if version not in (None, pool.cidr.version):
            continue
        begin = int.from_bytes(hashlib.sha256(f"{pool.name}/{node}".encode()).digest()[:8])
        for cidr in _round_about(pool, _parts(pool, snapshot, network, node, taken), begin):
            if cidr in exact or not held.isdisjoint(not_for_pods(cidr, network)):
                continue  # somebody has it, or a pod has what would be the gateway there
            inside = frozenset(address for address in held if contains(cidr, address))
            if any(r.size for r in ranges(network, (cidr,), excluded(snapshot, network, node, (cidr,)), inside)):
                yield IPBlock(cidr, node, pool.name, shared=network.shared)


def _parts(
    pool: IPPool, snapshot: Snapshot, network: Network, node: str, taken: Iterable[Subnet]
) -> list[tuple[int, int]]:
    """Return the numbers of the first block and of the one after the last, of each part that may have free ones.

    Parts, as a pool may have 2^100 blocks: to look at each that can't be claimed would have no end.
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
    barred = allocator.spans(excluded(snapshot, network, node, (pool.cidr,)))
    holes = [(-(-(low - base) // step), (high + 1 - base) // step) for low, high in barred]  # blocks inside
    odd = allocator.spans(c for c in taken if overlaps(c, pool.cidr) and not _is_regular(c, pool))
    holes += [((low - base) // step, (high - base) // step + 1) for low, high in odd]  # blocks that it touches
    parts = []
    for hole, after in sorted(holes):
        if hole < after:
            parts.append((number, min(hole, end)))
            number = max(number, after)
    return [(low, high) for low, high in (*parts, (number, end)) if low < high]


def _round_about(pool: IPPool, parts: list[tuple[int, int]], begin: int) -> Iterator[Subnet]:
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


def surplus(
    snapshot: Snapshot, node: str, wanted: Mapping[Network, BlockCount], busy: Collection[Subnet]
) -> frozenset[IPBlock]:
    """Return claimed blocks that the node does not need: none of `busy`, and each network keeps what it wants.

    It keeps one of each IP version in any case; of those that are alike the first ones stay.
    """
    left = {network: list(node_blocks(snapshot, network, node)) for network in wanted}
    mine = [block for block in snapshot.blocks.values() if block.node == node and block.cidr not in busy]
    found = []
    for block in sorted(mine, key=lambda b: (b.cidr.version, int(b.cidr.network_address)), reverse=True):
        using = [network for network, own in left.items() if block.cidr in own]
        version = block.cidr.version
        alike = {network: sum(cidr.version == version for cidr in left[network]) for network in using}
        if all(alike[network] > max(1, count(wanted[network], version)) for network in using):
            for network in using:
                left[network].remove(block.cidr)
            found.append(block)
    return frozenset(found)


def _is_regular(cidr: Subnet, pool: IPPool) -> bool:
    """Return whether it is one of the blocks of a pool: then it is the same as another or apart from it."""
    return cidr.prefixlen == pool.block_size and within(cidr, pool.cidr)
