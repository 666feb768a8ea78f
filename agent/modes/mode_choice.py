"""The choice of the mode in which packets go to each peer, also while modes are being changed: pure functions."""

from __future__ import annotations

from agent.model.cluster import Node
from agent.modes.base import PLAIN, ModeContext


def accepted_modes(view: ModeContext, node: Node) -> tuple[str, ...]:
    """Return the routed modes in which a node accepts packets of the network; none: it does not say."""
    return view.routed.known(node.announced_modes(view.network.name))


def mode_to_peer(view: ModeContext, peer: Node) -> str:
    """Return the mode in which packets go to a peer, or PLAIN: those of the peer come the same way.

    It is a mode that both nodes accept and that one of them has in its conf; every node accepts plain packets.
    """
    path = view.routed.path
    ours = [path(mode) for mode in view.modes]
    theirs = [path(mode) for mode in accepted_modes(view, peer)] or ours[:1]  # a silent peer is like this node
    both = {PLAIN, *(mode for mode in theirs if mode in ours)}
    return min(both & {ours[0], theirs[0]} or both, key=(*view.routed.tunnels, PLAIN).index)


def is_migrating(view: ModeContext) -> bool:
    """Return whether some node, this one included, has another mode beside that of this node's conf."""
    peers = (accepted_modes(view, peer) for peer in view.snapshot.nodes.values() if peer.name != view.node)
    return len(view.modes) > 1 or any(modes and modes != view.modes for modes in peers)


def loose_rp_filter_on(view: ModeContext, *devices: str) -> frozenset[str]:
    """Return these devices and the underlay's interfaces while modes differ: replies may leave by another one."""
    me = view.snapshot.nodes.get(view.node)
    if me is None or not is_migrating(view):
        return frozenset()
    return frozenset(local.device for local in view.local if local.interface.ip in me.addresses).union(devices)
