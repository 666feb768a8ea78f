"""The blocks and pools of a network, and the addresses in them that pods may have: pure functions."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from agent.cluster.pool_object import DEFAULT_BLOCK_SIZE
from agent.ip import Address, Subnet
from agent.ipam import allocator
from agent.ipam.allocator import Range
from agent.ipam.block_ownership import span
from agent.model import special_addresses
from agent.model.cluster import IPBlock, IPPool, Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus

IMPLICIT_POOL = "netconf"
NOBODY: frozenset[Address] = frozenset()


BlockCount = int | Mapping[int, int]
"""A number of blocks: the same for each IP version, or one by IP version."""


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

    These are the versions of the node's podCIDRs, or without any those of the pools from which it may claim.
    """
    if network.has_manual_range and network.subnet:
        return frozenset({network.subnet.version})
    given = assigned(snapshot, network, node)
    return frozenset(b.version for b in given) or frozenset(pool.cidr.version for pool in pools(snapshot, network))


def not_for_pods(block: Subnet, network: Network) -> frozenset[Address]:
    """Return the addresses of a block that no pod may have: its network, gateway and broadcast address.

    There are none where pods share the subnet of their parent.
    """
    if network.needs_parent:
        return frozenset()
    last = [block.broadcast_address] if block.version == 4 else []
    return frozenset({block.network_address, allocator.gateway(block), *last})


def possible(snapshot: Snapshot, network: Network, address: Address) -> Iterator[Subnet]:
    """Yield the blocks with this address that nodes may claim, one for each pool that contains it."""
    for pool in pools(snapshot, network):
        if contains(pool.cidr, address):
            yield ipaddress.ip_network((address, pool.block_size), strict=False)


def single(address: Address) -> Subnet:
    """Return an address as a network of its own."""
    return ipaddress.ip_network(address)


def is_single(block: Subnet) -> bool:
    """Return whether it is a single address: that of an off-block pod, and not a block of a node."""
    return block.prefixlen == block.max_prefixlen


def contains(subnet: Subnet | None, address: Address | None) -> bool:
    """Return whether the subnet contains the address; False if one of them is None."""
    return bool(address and subnet and address.version == subnet.version and address in subnet)


def overlaps(one: Subnet, other: Subnet) -> bool:
    """Return whether two networks share an address."""
    return one.version == other.version and one.overlaps(other)


def is_alike(one: Snapshot, other: Snapshot) -> bool:
    """Return whether two snapshots have the same Nodes, pools, blocks and networks of this node."""
    return (one.pools, one.blocks, one.nodes, one.host_networks) == (
        other.pools,
        other.blocks,
        other.nodes,
        other.host_networks,
    )


def belongs(block: IPBlock, network: Network, snapshot: Snapshot) -> bool:
    """Return whether pods of a network may have addresses of a claimed block, whichever node has claimed it."""
    return network.shared or is_routable(snapshot)(block)


def is_routable(snapshot: Snapshot) -> Callable[[IPBlock], bool]:
    """Return a test whether routed networks may use a claimed block; it is fast, as it is asked of thousands.

    Networks whose pods share their parent's subnet and routed ones have no block in common. Early versions wrote
    no `shared`: there a block that overlaps a network of this node is not routable.
    """
    near = [(network.version, *span(network)) for network, _text in snapshot.host_networks.interfaces]

    def test(block: IPBlock) -> bool:
        if block.shared:
            return False
        (first, last), version = span(block.cidr), block.cidr.version
        return not any(low <= last and first <= high and of == version for of, low, high in near)

    return test


def overlapping_host_network(cidr: Subnet, snapshot: Snapshot) -> str:
    """Return the text of this node's network that a CIDR overlaps; empty if it overlaps none."""
    return next((text for network, text in snapshot.host_networks.interfaces if overlaps(cidr, network)), "")


def is_shared(pool: IPPool, snapshot: Snapshot) -> bool:
    """Return whether a pool is only for networks whose pods share their parent's subnet.

    That is a pool inside a network of this node, or one of which such a network has claimed a block.
    """
    if any(within(pool.cidr, network) for network, _text in snapshot.host_networks.interfaces):
        return True
    return any(block.shared and block.pool == pool.name for block in snapshot.blocks.values())


def barred(snapshot: Snapshot, network: Network) -> Iterator[Subnet]:
    """Yield the subnets that no new block of a network may overlap, besides blocks and podCIDRs.

    Pods that share their parent's subnet are in the same subnet as the nodes: there single addresses are excluded
    later, and no blocks here. If the API server's address is in no network of the node, it is the address of a
    Service; the range of Services is not known, so the whole pool around it is barred.
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
    """Return the node's podCIDRs for a network; if there are any, it claims no blocks.

    Blocks of a pool that is requested by name are always claimed.
    """
    if network.pool:
        return ()
    me = snapshot.nodes.get(node)
    return tuple(block for block in (me.blocks if me else ()) if fits(block, network))


def node_blocks(snapshot: Snapshot, network: Network, node: str) -> tuple[Subnet, ...]:
    """Return the node's blocks for a network: its podCIDRs, or else the IPBlocks that it has claimed.

    Where netconfs divide a subnet by hand, the subnet counts as the node's block, and pods get the netconf's range
    of it.
    """
    if network.has_manual_range and network.subnet:
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
    """Return all subnets of pods in the cluster, except those that they share with other machines."""
    found = {network.subnet for network in networks if network.subnet and not network.shared}
    found.update(pool.cidr for pool in snapshot.pools.values() if not is_shared(pool, snapshot))
    found.update(block.cidr for block in snapshot.blocks.values() if not block.shared)
    found.update(block for node in snapshot.nodes.values() for block in node.blocks)
    return frozenset(found)


def excluded(snapshot: Snapshot, network: Network | None, node: str, own: tuple[Subnet, ...]) -> frozenset[Subnet]:
    """Return the parts of the node's blocks that no pod may have: pools exclude them, or they are their gateways.

    Where netconfs divide a subnet by hand, `start` and `end` of pools do not count, but blocks of other nodes do.
    """
    by_hand = network is not None and network.has_manual_range
    found: set[Subnet] = set()
    for pool in snapshot.pools.values():
        found.update(left_out(pool, ends=not by_hand))
    if by_hand:
        found.update(block.cidr for block in snapshot.blocks.values() if block.node != node)
    return frozenset(subnet for subnet in found if any(overlaps(subnet, block) for block in own))


def left_out(pool: IPPool, *, ends: bool = True) -> Iterator[Subnet]:
    """Yield the parts of a pool that no pod may have; with `ends` also those outside of start and end."""
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
    """Return the range for pods in each block, without barred and reserved parts; it may be empty."""
    part = allocator.shared if network.needs_parent else allocator.usable
    without = [*barred, *map(ipaddress.ip_network, reserved)]
    return tuple(part(block, network.range_start, network.range_end, without) for block in own)


def prepared(status: NodeStatus, network: Network, own: tuple[Subnet, ...]) -> tuple[Range, ...]:
    """Return the ranges for pods in these blocks, by the node's status."""
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
    # on a shared subnet are other machines, so a netconf's subnet is no pool
    if fitting or network.pool or network.subnet is None or network.shared:
        return fitting
    size = max(DEFAULT_BLOCK_SIZE[network.subnet.version], network.subnet.prefixlen)
    return (IPPool(IMPLICIT_POOL, network.subnet, size),)


def surplus(
    snapshot: Snapshot, node: str, wanted: Mapping[Network, BlockCount], busy: Collection[Subnet]
) -> frozenset[IPBlock]:
    """Return claimed blocks that the node does not need: none of `busy`, and no network gets too few.

    A network keeps at least one block of each IP version; the blocks with the lowest addresses stay.
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
