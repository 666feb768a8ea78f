"""What agents write for people to see with kubectl: frozen values, and nothing that pods depend on."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """How much of a pool is in use, in the whole cluster."""

    used: int
    """Addresses that pods have."""
    free: int
    """Addresses that pods can have, those that are cooling included."""
    blocks: int
    """How many blocks nodes have claimed."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether a pool can be used, as its status says."""

    TYPE: ClassVar[str] = "Ready"
    ok: bool
    reason: str
    """In CamelCase, for machines."""
    message: str
    since: str = ""
    """When `ok` became what it is (RFC 3339)."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What the status of an IPPool says; None: nothing that can be read."""

    counts: PoolCounts | None = None
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class BlockUsage:
    """Which addresses of a block pods of its node have, as people see it; agents go by nothing of it."""

    POD_CIDR: ClassVar[str] = "podCIDR"
    BY_HAND: ClassVar[str] = "netconf"
    name: str
    node: str
    pool: str
    """Whose block it is: a pool's, POD_CIDR, or BY_HAND where netconfs divide a subnet; empty without a block."""
    cidr: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    """None: it is about the pods' addresses that are in no block of the node."""
    used: int
    """Addresses that pods of the node have."""
    reserved: int
    """Addresses that are kept for pods that are not here."""
    free: int | None
    """Addresses that other pods can have, those that are cooling included; None without a block."""
    addresses: tuple[str, ...]
    """`ADDRESS NAMESPACE/POD` of each, as many as are listed."""
