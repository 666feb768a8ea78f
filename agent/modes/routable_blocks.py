"""The blocks that this node may program: none of another node's, and none that leads nodes' packets to pods."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace

from agent.cluster.pool_object import LARGEST_BLOCK_SIZE
from agent.ip import Address, Subnet
from agent.ipam import block_ownership, blocks
from agent.ipam.block_ownership import BlockClaim, BlockOwnership, span
from agent.model import special_addresses
from agent.model.cluster import Node
from agent.model.problem import Problem
from agent.modes import underlay
from agent.modes.base import ModeContext
from agent.objects.state import LocalAddress

REMEDY = "give it podCIDRs that no network of the nodes uses"


@dataclass(frozen=True, slots=True)
class Settled:
    """The blocks of this node that are programmed, the blocks that pods get no address of, and the reasons."""

    view: ModeContext
    refused: frozenset[Subnet] = frozenset()
    problems: frozenset[Problem] = frozenset()


class Fences:
    """The addresses that a block must not overlap: networks of this node, its gateways, addresses of nodes."""

    def __init__(self, view: ModeContext) -> None:
        me = view.snapshot.nodes.get(view.node)
        mine = me.addresses if me else ()
        # a single address is reached whatever the block: the kernel looks at local addresses first
        near = [
            local
            for local in view.local
            if local.interface.ip in mine or local.interface.network.num_addresses > 1
        ]
        self._gateways = not view.network.needs_parent
        """Whether each block needs an address for this node."""
        self._networks = [(local.interface.version, *span(local.interface.network), local) for local in near]
        self._servers = [
            (server.version, int(server), server) for server in view.snapshot.host_networks.api_servers
        ]
        self._routers = [(router.version, int(router), router) for router in view.routers]
        self._ages = {name: node.created for name, node in view.snapshot.nodes.items()}
        ends = ((name, a) for found in underlay.chosen(view).chosen.values() for name, a in found.items())
        self._known = {(a.version, int(a)): (a, name) for name, a in ends}
        self._nodes = sorted(self._known)

    def network(self, block: Subnet) -> LocalAddress | None:
        """An address of this node in whose network a part of the block is."""
        (first, last), version = span(block), block.version
        for of, low, high, local in self._networks:
            if low <= last and first <= high and of == version:
                return local
        return None

    def address(self, block: Subnet, owner: str) -> Address | None:
        """A gateway of this node, or the end of a node, that is in a block of `owner`.

        The end of a node that is younger than the owner does not count: a new Node must not cut others' pods off.
        """
        (first, last), version = span(block), block.version
        router = next((r for of, number, r in self._routers if of == version and first <= number <= last), None)
        return router or next(
            (end for end, name in self._inside(block) if not self._is_younger(name, owner)), None
        )

    def _server(self, block: Subnet) -> Address | None:
        (first, last), version = span(block), block.version
        found = (s for of, number, s in self._servers if of == version and first <= number <= last)
        return next(found, None)

    def newcomers(self, block: Subnet, owner: str) -> Iterator[Problem]:
        """Nodes whose ends are in a block of an older node: it keeps the block, so they may not be reached."""
        for end, name in self._inside(block):
            if self._is_younger(name, owner):
                what = f"its InternalIP {end} is in block {block} of node {owner}, which was there before"
                yield Problem(f"node {name}", what, "give it an address outside of all podCIDRs and IPPools")

    def _inside(self, block: Subnet) -> Iterator[tuple[Address, str]]:
        """The ends of nodes in a block, and their names."""
        (first, last), version = span(block), block.version
        place = bisect.bisect_left(self._nodes, (version, first))
        while place < len(self._nodes) and self._nodes[place] <= (version, last):
            yield self._known[self._nodes[place]]
            place += 1

    def _is_younger(self, name: str, owner: str) -> bool:
        age = self._ages.get(owner, "")
        return bool(age) and self._ages.get(name, "") > age

    def against(self, block: Subnet, owner: str) -> str:
        """Return what speaks against a block of a node; empty where nothing does."""
        if kept := special_addresses.against(block):
            return f"overlaps {kept}"
        if self._gateways and block.prefixlen > LARGEST_BLOCK_SIZE[block.version]:
            return f"is too small for a gateway and a pod: /{LARGEST_BLOCK_SIZE[block.version]} is the smallest"
        if local := self.network(block):
            return f"overlaps {local.interface} of this node's {local.device}"
        if server := self._server(block):
            return f"contains {server}, an address of the Kubernetes API server"
        if address := self.address(block, owner):
            return f"contains {address}, which is a node's address or gateway"
        return ""


def claims(view: ModeContext) -> BlockOwnership:
    """Return the owner of each block of the cluster; this node owns what it has where nothing else is known."""
    if view.claims is not None:
        return view.claims
    return block_ownership.resolve(view.snapshot, dict.fromkeys(view.blocks, view.node))


def settle(view: ModeContext) -> Settled:
    """This node without the blocks that it may not program.

    One that pods here have addresses of stays for them, unless the node would lose its own network by it.
    """
    fences, known = Fences(view), claims(view)
    home = underlay.home(view, underlay.chosen(view))
    kept: list[Subnet] = []
    refused: set[Subnet] = set()
    problems: set[Problem] = set()
    for block in view.blocks:
        why = fences.against(block, view.node)
        other = known.refused.get((view.node, block))
        if why or other:
            refused.add(block)
            what = f"block {block} {why or _by_other(block, other, view.node)}"
            problems.add(Problem(f"node {view.node}", what, f"{REMEDY}; its pods get no address of this one"))
        else:
            problems.update(fences.newcomers(block, view.node))
        if block not in refused or (block in view.used and _is_harmless(block, fences, view.node, home)):
            kept.append(block)
    return Settled(replace(view, blocks=tuple(kept)), frozenset(refused), frozenset(problems))


def _is_harmless(block: Subnet, fences: Fences, node: str, home: LocalAddress | None) -> bool:
    """Return whether a refused block takes nothing from the node that it needs itself."""
    near = home and blocks.overlaps(block, home.interface.network)
    return not (near or fences.address(block, node) or special_addresses.against(block, ordinary=False))


def peer_blocks(view: ModeContext) -> Iterator[tuple[Node, Subnet] | Problem]:
    """Each block of each peer, or why it can't be reached; of two owners the established one has it."""
    fences, known = Fences(view), claims(view)
    mine = [(block.version, *span(block), block) for block in view.blocks]
    subnet = view.network.subnet
    within = (subnet.version, *span(subnet)) if subnet else None
    is_routable, claimed = blocks.is_routable(view.snapshot), view.snapshot.blocks.values()
    foreign = set() if view.network.shared else {block.cidr for block in claimed if not is_routable(block)}
    for name, peer in sorted(view.snapshot.nodes.items()):
        for block in known.by_node.get(name, ()) if name != view.node else ():
            first, last = span(block)
            if block in foreign and block not in peer.blocks:
                continue  # a network on the parent's subnet has claimed it
            if within and not (within[0] == block.version and within[1] <= first and last <= within[2]):
                continue
            other = known.refused.get((name, block))
            if other is None:
                found = (b for v, low, high, b in mine if low <= last and first <= high and v == block.version)
                other = next((BlockClaim(own, view.node) for own in found), None)
            if other:
                remedy = "give each node podCIDRs of its own; no route is set for this one"
                if other.node == view.node and other.block not in known.by_node.get(view.node, (other.block,)):
                    remedy = f"pods here have addresses of it: delete them, and a route to {name} is set"
                yield Problem(f"node {name}", f"block {block} {_by_other(block, other, view.node)}", remedy)
            elif why := fences.against(block, name):
                yield Problem(f"node {name}", f"block {block} {why}", REMEDY)
            else:
                yield from fences.newcomers(block, name)
                yield peer, block


def _by_other(block: Subnet, other: BlockClaim | None, me: str) -> str:
    assert other  # noqa: S101 - there is one, or another reason
    if other.block == block:
        return f"is that of node {other.node} too"
    return (
        f"overlaps this node's {other.block}"
        if other.node == me
        else f"overlaps {other.block} of node {other.node}"
    )
