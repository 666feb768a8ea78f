"""Find faults of IPPools: pure functions of the snapshot.

The API server refuses some faulty pools when they are created (manifests/base). Agents also see faults that come
later, for example by a new podCIDR, and pools in clusters without these rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from agent.ip import Address, Subnet
from agent.ipam import blocks
from agent.ipam.block_ownership import span
from agent.model import special_addresses
from agent.model.cluster import IPPool, Node, Snapshot
from agent.model.network import Network

T = TypeVar("T")


def faults(snapshot: Snapshot, networks: Iterable[Network] | None = ()) -> Mapping[str, str]:
    """Return the fault of each faulty pool, by the pool's name; of several faults always the same one.

    `networks`: the networks in force on this node, as a pool for macvlan and ipvlan may be in the nodes' own
    subnet. None: return only faults that the agents of all nodes see alike.
    """
    shared = None if networks is None else [n.subnet for n in networks if n.shared and n.subnet]
    found = {name: next(_faults(pool, snapshot, shared), "") for name, pool in sorted(snapshot.pools.items())}
    return {name: fault for name, fault in found.items() if fault}


class PoolFaultCache:
    """Keeps the faults of the last snapshot, so that thousands of nodes are compared only after a change."""

    def __init__(self) -> None:
        self._seen: tuple[Snapshot, tuple[Network, ...] | None] | None = None
        self._found: Mapping[str, str] = {}

    def look(self, snapshot: Snapshot, networks: Iterable[Network] | None) -> Mapping[str, str]:
        """Return the faults; while nothing has changed, it is the same value."""
        shared = None if networks is None else tuple(network for network in networks if network.shared)
        if self._seen is None or not blocks.is_alike(self._seen[0], snapshot) or self._seen[1] != shared:
            self._found = faults(snapshot, shared)
            self._seen = snapshot, shared
        return self._found


def _pod_cidr(cidr: Subnet, nodes: Iterable[Node]) -> tuple[Subnet, str] | None:
    """Return the first podCIDR by address that a CIDR overlaps, and the name of its Node."""
    podcidrs = ((block, node.name) for node in nodes for block in node.blocks if block.version == cidr.version)
    return _first(cidr, ((*span(block), block, name) for block, name in podcidrs))


def _address(cidr: Subnet, nodes: Iterable[Node]) -> tuple[Address, str] | None:
    """Return the first InternalIP in a CIDR, and the name of its Node."""
    addresses = ((a, node.name) for node in nodes for a in node.addresses if a.version == cidr.version)
    return _first(cidr, ((int(a), int(a), a, name) for a, name in addresses))


def _first(cidr: Subnet, known: Iterable[tuple[int, int, T, str]]) -> tuple[T, str] | None:
    """Return the first entry of `known` that a CIDR overlaps, in the order of lowest address and name.

    An entry has its lowest and highest address as numbers, its value, and its name; the result has the last two.
    """
    first, last = span(cidr)
    met = (entry for entry in known if entry[0] <= last and first <= entry[1])
    found = min(met, key=lambda entry: (entry[0], entry[3]), default=None)
    return found[2:] if found else None


def _faults(pool: IPPool, snapshot: Snapshot, shared: Iterable[Subnet] | None) -> Iterator[str]:
    """Yield the faults of a pool, the worst first.

    `shared`: the subnets that pods of this node share with others. None: faults that only this node sees are left
    out.
    """
    cidr = pool.cidr
    if kept := special_addresses.against(cidr):
        yield f"it overlaps {kept}"
    for server in sorted(snapshot.host_networks.api_servers, key=str):
        if blocks.contains(cidr, server) and not blocks.overlapping_host_network(blocks.single(server), snapshot):
            yield f"it contains {server}, an address of the Kubernetes API server"
    for name, other in sorted(snapshot.pools.items()):
        if name != pool.name and blocks.overlaps(other.cidr, cidr):
            yield f"it overlaps {other.cidr} of IPPool {name}"
    if given := _pod_cidr(cidr, snapshot.nodes.values()):
        yield f"it overlaps podCIDR {given[0]} of node {given[1]}"
    if shared is None or blocks.is_shared(pool, snapshot) or any(blocks.overlaps(cidr, s) for s in shared):
        return
    if near := blocks.overlapping_host_network(cidr, snapshot):
        yield f"it overlaps {near}, a network of the nodes"
    if address := _address(cidr, snapshot.nodes.values()):
        yield f"it contains {address[0]}, the InternalIP of node {address[1]}"
