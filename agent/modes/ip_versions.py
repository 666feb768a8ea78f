"""The IP versions that pods of a network can have: only IPv4 without IPv6 in the kernel or on a small MTU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.ip import Subnet
from agent.model.problem import Problem
from agent.modes.base import ModeContext
from agent.objects.state import IPV6_MIN_MTU


@dataclass(frozen=True, slots=True)
class Carried:
    """The blocks of this node that the links of its pods can carry, and the reasons against the rest."""

    view: ModeContext
    refused: frozenset[Subnet] = frozenset()
    lacking: frozenset[int] = frozenset()
    """IP versions that pods do without, though the node has blocks of them."""
    problems: frozenset[Problem] = frozenset()


def settle(view: ModeContext, mtu: int) -> Carried:
    """Leave this node's IPv6 blocks out where links with an MTU of so many bytes have no IPv6: pods do without."""
    blocks = [block for block in view.blocks if block.version == 6]
    if not blocks or (view.ipv6 and mtu >= IPV6_MIN_MTU):
        return Carried(view)
    why, remedy = _reason(view, mtu)
    what = f"pods get no IPv6 address, though the node has {', '.join(map(str, blocks))}: {why}"
    rest = replace(view, blocks=tuple(block for block in view.blocks if block.version != 6))
    problem = Problem(f"network {view.network.name}", what, f"{remedy}, or take the IPv6 blocks away")
    return Carried(rest, frozenset(blocks), frozenset({6}), frozenset({problem}))


def _reason(view: ModeContext, mtu: int) -> tuple[str, str]:
    """Say why there is no IPv6, and how to change that."""
    if not view.ipv6:
        return "the kernel has no IPv6", "boot the node without ipv6.disable=1"
    small = f"an MTU of {mtu} bytes is below the {IPV6_MIN_MTU} that IPv6 needs of a link (RFC 8200, section 5)"
    if view.network.mtu:
        return small, f"set `mtu` of the netconf to {IPV6_MIN_MTU} or more"
    return small, f"raise the MTU of the interface that has the node's address to {IPV6_MIN_MTU} or more"
