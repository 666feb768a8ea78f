"""The masquerade of packets from our pods to destinations that are no pods: a pure function of a view."""

from __future__ import annotations

import ipaddress

from agent.ip import Subnet
from agent.ipam import blocks
from agent.model import special_addresses
from agent.modes import peer_routes, routable_blocks
from agent.modes.base import ModeContext
from agent.modes.routable_blocks import Fences
from agent.objects.state import Masquerade


def desired(view: ModeContext, *, nodes: bool) -> Masquerade:
    """Return the masquerade from our pods to whatever is no pod, and where `nodes` is set no node either."""
    if not view.network.masquerade:
        return Masquerade()
    snapshot = view.snapshot
    exempt: set[Subnet] = {pool.cidr for pool in snapshot.pools.values() if not blocks.is_shared(pool, snapshot)}
    elsewhere = {block.cidr for block in snapshot.blocks.values() if block.shared}
    exempt.update(routable_blocks.claims(view).owners.keys() - elsewhere, view.blocks, view.off_block_pods)
    exempt.update(alone for _node, alone in peer_routes.roaming(view))
    if nodes:
        exempt.update(ipaddress.ip_network(a) for node in snapshot.nodes.values() for a in node.addresses)
    if view.network.subnet:
        exempt.add(view.network.subnet)
    # a pod on the nodes' own subnet answers there, and not by its node: it must see a node's address
    near = Fences(view)
    exempt = {
        subnet
        for subnet in exempt
        if blocks.is_single(subnet) or not (near.network(subnet) or special_addresses.against(subnet))
    }
    return Masquerade(frozenset(view.blocks) | view.off_block_pods, frozenset(exempt))
