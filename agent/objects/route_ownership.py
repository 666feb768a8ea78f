"""The routes of the kernel that are testcni's."""

from __future__ import annotations

from dataclasses import dataclass

from agent.ip import Subnet
from agent.model.marks import ROUTE_PROTOCOL


@dataclass(frozen=True, slots=True)
class RouteOwnership:
    """The routes of the main table that are ours: those of our protocol number, and some of earlier numbers."""

    protocol: int = ROUTE_PROTOCOL
    earlier: frozenset[int] = frozenset()
    """Numbers that agents before this one may have used on this node. Others may use them, too."""
    pods: frozenset[Subnet] = frozenset()
    """The subnets of pods' addresses: routes of the earlier numbers to there, by a gateway, are ours."""


OURS = RouteOwnership()
