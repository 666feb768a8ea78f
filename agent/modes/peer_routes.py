"""Routes to the pods of peers, and the ends of tunnels to them: pure functions of a view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from agent.ip import Address, Subnet
from agent.ipam import blocks
from agent.ipam.reservations import rules as reservation_rules
from agent.model import special_addresses
from agent.model.cluster import Node
from agent.model.problem import Problem
from agent.modes import mode_choice, routable_blocks, underlay
from agent.modes.base import PLAIN, ModeContext
from agent.modes.node_endpoints import NodeEndpoints
from agent.modes.routable_blocks import Fences
from agent.objects.state import Route


def roaming(view: ModeContext) -> Iterator[tuple[Node, Subnet]]:
    """Yield addresses of peers' pods that are in no block of the pod's node, each as a subnet, and that node."""
    return (found for found in _roaming(view) if not isinstance(found, Problem))


def _roaming(view: ModeContext) -> Iterator[tuple[Node, Subnet] | Problem]:
    """Yield these addresses, or the reason why one gets no route: anybody may write a reservation."""
    fences: Fences | None = None
    for held in reservation_rules.roaming(view.snapshot, view.network, view.node):
        alone = blocks.single(held.address)
        if alone in view.reserved_addresses:
            continue
        fences = fences or Fences(view)
        kept, end = special_addresses.against(alone), fences.address(alone, held.node)
        if kept or end:
            what = f"{alone} overlaps {kept}" if kept else f"{held.address} is a node's address or gateway"
            remedy = f"delete pod {held.pod} on node {held.node}, and let it ask for another address"
            yield Problem(f"IPReservation {held.name}", what, remedy)
        else:
            yield view.snapshot.nodes[held.node], alone


def peer_subnets(view: ModeContext) -> Iterator[tuple[Node, Subnet] | Problem]:
    """Yield all that is behind each peer: its blocks, and its pods' addresses that are in none of them."""
    yield from routable_blocks.peer_blocks(view)
    yield from _roaming(view)


@dataclass(frozen=True, slots=True)
class BlockEndpoints:
    """The IPv4 blocks of a cluster whose nodes are the ends of tunnels, by the addresses of those nodes."""

    own_endpoint: IPv4Address | None
    """This node's end of tunnels; None: it can't have a tunnel, as it has no address or no blocks."""
    own: tuple[IPv4Network, ...] = ()
    blocks: Mapping[IPv4Network, IPv4Address] = field(default_factory=dict)
    """This node's blocks are among them, and addresses of roaming pods."""
    mode_by_block: Mapping[IPv4Network, str] = field(default_factory=dict)
    """The mode in which packets go to each peer's block."""
    plain: frozenset[Route] = frozenset()
    """The routes to the blocks of peers that do without a tunnel just now."""
    problems: frozenset[Problem] = frozenset()

    @property
    def here(self) -> dict[IPv4Network, IPv4Address]:
        """Return this node's blocks, and its off-block pods."""
        return {block: node for block, node in self.blocks.items() if block not in self.mode_by_block}

    def by(self, mode: str) -> dict[IPv4Network, IPv4Address]:
        """Peers' blocks that packets go to in this mode."""
        return {block: self.blocks[block] for block, used in self.mode_by_block.items() if used == mode}


def block_endpoints(view: ModeContext) -> BlockEndpoints:
    """Return the node that each IPv4 block is on; the modes that ask carry nothing else."""
    problems = {_no_ipv6(view, f"block {block}") for block in view.blocks if block.version == 6}
    own = tuple(block for block in view.blocks if isinstance(block, IPv4Network))
    known = underlay.chosen(view)
    node, _local = underlay.own(view, known)
    if not own or not isinstance(node, IPv4Address):
        missing = {underlay.no_address(view.node)} if own else set()
        return BlockEndpoints(None, problems=frozenset(problems | missing))
    off_block = (alone for alone in view.off_block_pods if isinstance(alone, IPv4Network))
    found, modes = dict.fromkeys((*own, *off_block), node), {}
    plain: set[Route] = set()
    to = PeerPaths(view, known)
    for each in peer_subnets(view):
        if isinstance(each, Problem):
            problems.add(each)
            continue
        peer, block = each
        address = to.end(peer)
        if not isinstance(block, IPv4Network):
            problems.add(_no_ipv6(view, f"block {block} of node {peer.name}"))
        elif isinstance(address, Problem):
            problems.add(address)
        else:
            found[block], modes[block] = address, mode_choice.mode_to_peer(view, peer)
            if modes[block] == PLAIN:
                route = to.route(peer, block)
                if isinstance(route, Route):
                    plain.add(route)
                else:
                    problems.add(route)
    return BlockEndpoints(node, own, found, modes, frozenset(plain), frozenset(problems))


def _no_ipv6(view: ModeContext, where: str) -> Problem:
    what = f"is IPv6, which {view.network.mode} does not carry"
    return Problem(where, what, f"use {' or '.join(view.routed.ipv6)} for IPv6")


class PeerPaths:
    """The ways of this node to others: the ends of tunnels, and routes by which they are next hops."""

    def __init__(self, view: ModeContext, known: NodeEndpoints | None = None) -> None:
        self._view = view
        self._ends = known or underlay.chosen(view)
        self._near = underlay.Near(view, self._ends)

    def end(self, peer: Node) -> IPv4Address | Problem:
        """The peer's end of tunnels, or why it has none."""
        address = self._ends.of(peer.name, 4)
        if not isinstance(address, IPv4Address):
            return underlay.no_address(peer.name)
        return _this_nodes(peer, address) if address in self._near.addresses else address

    def route(self, peer: Node, block: Subnet) -> Route | Problem:
        """The route to a peer's block by its InternalIP, or why there is none: it must be on-link."""
        refused: Problem | None = None
        for address in self._ends.candidates(peer, block.version):
            if address in self._near.addresses:
                refused = refused or _this_nodes(peer, address)
            elif local := self._near.local(address):
                return Route(block, address, local.device)
            else:
                refused = refused or self._off_link(peer, address, block)
        return refused or underlay.no_address(peer.name, block.version)

    def _off_link(self, peer: Node, address: Address, block: Subnet) -> Problem:
        return Problem(
            f"node {peer.name}",
            f"{address} is not on-link, so {self._view.network.mode} can't reach {block}",
            f"put the nodes on one subnet, or use the mode {' or '.join(self._view.routed.tunnels)}",
        )


def plain_routes(view: ModeContext) -> tuple[frozenset[Route], frozenset[Problem]]:
    """Return the routes to blocks of peers that packets go to as they are, and what prevents others."""
    to = PeerPaths(view)
    routes: set[Route] = set()
    problems: set[Problem] = set()
    for found in peer_subnets(view):
        if isinstance(found, Problem):
            problems.add(found)
            continue
        peer, block = found
        if block.version == 6 and not view.ipv6:
            continue  # one problem says so
        if block.version == 4 and mode_choice.mode_to_peer(view, peer) != PLAIN:
            continue  # the network of another mode has a route to it
        route = to.route(peer, block)
        if isinstance(route, Route):
            routes.add(route)
        else:
            problems.add(route)
    return frozenset(routes), frozenset(problems)


def _this_nodes(peer: Node, address: Address) -> Problem:
    return Problem(f"node {peer.name}", f"has this node's own address {address}", "give it one of its own")
