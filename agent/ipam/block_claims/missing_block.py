"""Explain why a node gets no block, and which faults its IPPools have: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from agent.ipam import blocks, pool_faults
from agent.model.cluster import IPPool, Snapshot
from agent.model.network import Network
from agent.model.problem import Problem

OTHER_POOL = (
    "create an IPPool of a range that nothing else uses, and delete this one when no pod has its addresses"
)
NO_SOURCE = (
    "neither podCIDR nor IPPool gives this node addresses",
    "let the cluster allocate podCIDRs, create an IPPool, or set `subnet` in the netconf",
)


def why(snapshot: Snapshot, network: Network, node: str, version: int | None = None) -> tuple[str, str]:
    """Return why a network gets no block of an IP version (None: of any) on a node, and the remedy."""
    pools = [pool for pool in blocks.pools(snapshot, network) if version in (None, pool.cidr.version)]
    if pools:
        faults = pool_faults.faults(snapshot, [network])
        names = ", ".join(_named(pool, faults.get(pool.name, "")) for pool in pools)
        return f"no block is left in {names}", "add an IPPool, or remove nodes that have blocks"
    if found := [*_unfit(snapshot, network, node, version)]:
        remedy = "create an IPPool for this network, or correct `subnet` in the netconf"
        return f"nothing gives this node addresses of the network: {'; '.join(found)}", remedy
    return NO_SOURCE


def faulty(snapshot: Snapshot, networks: Iterable[Network], node: str) -> Mapping[str, Problem]:
    """Return the problems of faulty pools from which a node claims, by a key each."""
    claiming = [n for n in networks if not (n.has_manual_range or blocks.assigned(snapshot, n, node))]
    used = {pool.name for network in claiming for pool in blocks.pools(snapshot, network)}
    if not used:
        return {}
    found = {name: fault for name, fault in pool_faults.faults(snapshot, networks).items() if name in used}
    outcome = "no block is claimed that overlaps it"
    return {
        f"IPPool {name}": Problem(f"IPPool {name}", f"{snapshot.pools[name].cidr}: {fault}; {outcome}", OTHER_POOL)
        for name, fault in found.items()
    }


def starved(snapshot: Snapshot, networks: Iterable[Network], node: str) -> Mapping[str, str]:
    """Return by name the faults of pools in this node's own networks, if a routed network has no other pool.

    Such a pool is for networks with a parent. So it has no fault if one of these is in force or has blocks of it.
    """
    networks = list(networks)
    routed = [n for n in networks if not (n.shared or n.pool or blocks.assigned(snapshot, n, node))]
    lacking = [network.name for network in routed if not blocks.pools(snapshot, network)]
    if not lacking or any(network.shared for network in networks):
        return {}
    claimed = {block.pool for block in snapshot.blocks.values() if block.shared}
    near = {
        name: blocks.overlapping_host_network(pool.cidr, snapshot) for name, pool in sorted(snapshot.pools.items())
    }
    what = (
        f"where only pods with a subinterface of it have addresses, and network {min(lacking)} has no other pool"
    )
    return {name: f"it lies in {text}, {what}" for name, text in near.items() if text and name not in claimed}


def _named(pool: IPPool, fault: str) -> str:
    return f"{pool.name} ({pool.cidr}{f'; {fault}' if fault else ''})"


def _unfit(snapshot: Snapshot, network: Network, node: str, version: int | None) -> Iterator[str]:
    """Yield for each podCIDR and pool why it is not for this network."""
    if network.shared and network.subnet and not network.options.parent:
        near = snapshot.host_networks.interfaces
        if near and not any(blocks.within(network.subnet, cidr) for cidr, _text in near):
            yield f"subnet {network.subnet} is not in a network of this node ({', '.join(t for _n, t in near)})"
    me = snapshot.nodes.get(node)
    if (given := me.blocks if me else ()) and not network.pool:
        what = f"podCIDR {', '.join(map(str, given))} of node {node} is "
        yield what + _misfit(network, any(block.version in network.versions for block in given))
    for pool in sorted(snapshot.pools.values(), key=lambda pool: pool.name):
        if network.pool not in ("", pool.name) or version not in (None, pool.cidr.version):
            continue
        what = f"IPPool {pool.name} ({pool.cidr})"
        if pool.cidr.version not in network.versions or not _meets(pool, network):
            yield f"{what} is {_misfit(network, pool.cidr.version in network.versions)}"
        elif blocks.is_shared(pool, snapshot):
            parent = blocks.overlapping_host_network(pool.cidr, snapshot)
            place = f"it lies in {parent}" if parent else "they have blocks of it"
            yield f"{what} is for networks with a parent interface only, as {place}"


def _meets(pool: IPPool, network: Network) -> bool:
    return network.subnet is None or blocks.overlaps(pool.cidr, network.subnet)


def _misfit(network: Network, carried: bool) -> str:
    return f"not in subnet {network.subnet}" if carried else f"IPv6, which mode {network.mode} does not carry"
