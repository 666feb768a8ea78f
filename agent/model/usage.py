"""Define what agents write for people to see with kubectl. Pods do not depend on it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """The numbers of addresses and blocks of a pool that are in use in the cluster, and of free addresses."""

    used: int
    """Addresses that pods have."""
    free: int
    """Addresses that pods can get, with those that cool down."""
    blocks: int
    """The number of blocks that nodes have claimed."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition Ready of a pool's status: whether the pool can be used."""

    TYPE: ClassVar[str] = "Ready"
    ok: bool
    reason: str
    """The reason in CamelCase, for programs."""
    message: str
    since: str = ""
    """The time when `ok` became what it is (RFC 3339)."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The status of an IPPool; None for a part that is missing or unreadable."""

    counts: PoolCounts | None = None
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class BlockUsage:
    """The addresses of a block that pods of its node use. Agents write it, and never decide by it."""

    POD_CIDR: ClassVar[str] = "podCIDR"
    BY_HAND: ClassVar[str] = "netconf"
    name: str
    node: str
    pool: str
    """The block's pool, or POD_CIDR, or BY_HAND where netconfs divide a subnet; empty without a block."""
    cidr: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    """None: the addresses of pods that are in no block of the node."""
    used: int
    """Addresses that pods of the node have."""
    reserved: int
    """Addresses reserved for pods that are not on this node."""
    free: int | None
    """Addresses that other pods can get, with those that cool down; None without a block."""
    addresses: tuple[str, ...]
    """`ADDRESS NAMESPACE/POD` of each address in use; a long list is cut."""
