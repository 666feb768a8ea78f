"""Compute from the cluster what BIRD on this node should do: a pure function, for modes whose blocks go by BGP."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from agent.ipam import blocks
from agent.model.cluster import Node
from agent.model.problem import Problem
from agent.modes import mode_choice, peer_routes, routable_blocks, underlay
from agent.modes.base import ModeContext
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.bird.render import networks
from agent.modes.ipip.bird.types import BirdConfig, Peer, Tunnel
from agent.modes.ipip.options import ALWAYS, CROSS_SUBNET, IPIP, NEVER
from agent.modes.node_endpoints import NodeEndpoints

REFLECTOR = "testcni.io/route-reflector"  # a node with this label, whatever its value, is one


class Encapsulate(StrEnum):
    """The choice of the nodes to which packets go through the tunnel."""

    ALWAYS = ALWAYS
    CROSS_SUBNET = CROSS_SUBNET
    NEVER = NEVER


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan for BIRD, None where it can't do anything, and the problems that hinder it."""

    bird: BirdPlan | None
    problems: frozenset[Problem] = frozenset()


def plan(
    view: ModeContext,
    tunnel: Tunnel,
    encapsulate: Encapsulate = Encapsulate.ALWAYS,
    source: IPv4Address | None = None,
) -> Plan:
    """The BIRD of `view.node`: a session with each node, or with the reflectors where nodes are labelled so."""
    me = view.snapshot.nodes.get(view.node)
    known = underlay.chosen(view)
    address, _local = underlay.own(view, known)
    if me is None or not isinstance(address, IPv4Address):
        what = "has no IPv4 InternalIP" if me else "has no Node object"
        return Plan(None, frozenset({Problem(f"node {view.node}", what, "kubelet's --node-ip sets it")}))
    near = _near(view, address)
    problems: set[Problem] = set()
    peers = []
    taken: dict[IPv4Address, str] = {address: view.node}
    for found in _peers(view, known, taken):
        if isinstance(found, Problem):
            problems.add(found)
            continue
        peers.append(found)
        if encapsulate is Encapsulate.NEVER and not any(found.address in network for network in near):
            problems.add(_unreached(found))
    config = BirdConfig(
        node=view.node,
        address=address,
        blocks=networks((*view.blocks, *sorted(view.off_block_pods, key=str))),
        pools=tuple(_pools(view)),
        peers=tuple(peers),
        reflector=is_reflector(me),
        # where the way leads to the underlay's next hop, a near node is its own, encapsulated or not
        direct=near if tunnel.gateway or encapsulate is not Encapsulate.ALWAYS else (),
        tunnel=None if encapsulate is Encapsulate.NEVER else tunnel,
        source=source,
    )
    return Plan(BirdPlan(config, me.labels), frozenset(problems))


def is_reflector(node: Node) -> bool:
    """Return whether the node reflects routes, so that the others need a session with such nodes only."""
    return any(key == REFLECTOR for key, _value in node.labels)


def _near(view: ModeContext, address: IPv4Address) -> tuple[IPv4Network, ...]:
    """The subnet that this node's address is in."""
    networks = (local.interface.network for local in view.local if local.interface.ip == address)
    return tuple(network for network in networks if isinstance(network, IPv4Network))


def _peers(view: ModeContext, known: NodeEndpoints, taken: dict[IPv4Address, str]) -> Iterator[Peer | Problem]:
    for node in sorted(view.snapshot.nodes.values(), key=lambda n: n.name):
        modes = mode_choice.accepted_modes(view, node) or (IPIP,)
        if node.name == view.node or IPIP not in modes or IPIP not in view.modes:
            continue  # nobody there to speak BGP with, or not for long
        where = f"node {node.name}"
        address = known.of(node.name, 4)
        if not isinstance(address, IPv4Address):
            yield underlay.no_address(node.name)
        elif address in taken:
            what = f"has the address {address} of node {taken[address]}"
            yield Problem(where, what, "give it one of its own; there is no session with the second")
        else:
            taken[address] = node.name
            yield Peer(node.name, address, is_reflector(node))


def _pools(view: ModeContext) -> Iterator[IPv4Network]:
    """Yield where blocks of other nodes may lie: the network's subnet, or else all pools and podCIDRs."""
    if view.network.subnet:
        subnets = {view.network.subnet}
    else:
        snapshot = view.snapshot
        subnets = {pool.cidr for pool in snapshot.pools.values() if not blocks.is_shared(pool, snapshot)}
        known = routable_blocks.claims(view)
        fences = routable_blocks.Fences(view)
        podcidrs = ((node.name, block) for node in view.snapshot.nodes.values() for block in node.blocks)
        owned = ((name, block) for name, block in podcidrs if known.owners.get(block) == name)
        subnets.update(block for name, block in owned if not fences.against(block, name))
        subnets.update(alone for _node, alone in peer_routes.roaming(view))
    yield from ipaddress.collapse_addresses(subnet for subnet in subnets if isinstance(subnet, IPv4Network))


def _unreached(peer: Peer) -> Problem:
    return Problem(
        f"node {peer.name}",
        f"{peer.address} is not in this node's subnet, and nothing may be encapsulated",
        "put the nodes on one subnet, or let packets be encapsulated across subnets",
    )
