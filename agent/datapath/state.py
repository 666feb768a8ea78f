"""Node state as frozen values: what a mode wants of the kernel, and what the kernel has."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from agent.model import Address, Problem, Subnet

# How testcni's own things are known in the kernel: by mark, never by memory.
ROUTE_PROTOCOL = 84  # 'T': free in iproute2's rt_protos
LINK_PREFIX = "tcni"
ALIAS = "testcni"
BRIDGE_ALIAS = f"{ALIAS} bridge"
NFT_TABLE = "testcni"

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address that the node itself has, on a link that testcni did not make."""

    device: str
    mtu: int
    interface: Interface


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table with our protocol number."""

    dst: Subnet
    gateway: Address | None
    device: str

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{self.dst}{via} dev {self.device}"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge with its fixed MAC (else it follows its ports), MTU in bytes and addresses."""

    name: str
    mac: str
    mtu: int
    addresses: frozenset[Interface]


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Packets from `sources` leave under the node's address unless they go to one of `exempt`."""

    sources: frozenset[Subnet] = frozenset()
    exempt: frozenset[Subnet] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeState:
    """All that testcni wants on a node, pods aside."""

    bridges: frozenset[Bridge] = frozenset()
    routes: frozenset[Route] = frozenset()
    masquerade: Masquerade = Masquerade()
    forwarding: frozenset[int] = frozenset()
    """IP versions that the node must forward."""
    problems: frozenset[Problem] = frozenset()


def union(states: Iterable[NodeState]) -> NodeState:
    """What several networks want together; bridges of one name are one, with all their addresses."""
    total = NodeState()
    for state in states:
        total = NodeState(
            bridges=_merge(total.bridges | state.bridges),
            routes=total.routes | state.routes,
            masquerade=Masquerade(
                total.masquerade.sources | state.masquerade.sources,
                total.masquerade.exempt | state.masquerade.exempt,
            ),
            forwarding=total.forwarding | state.forwarding,
            problems=total.problems | state.problems,
        )
    return total


def _merge(bridges: frozenset[Bridge]) -> frozenset[Bridge]:
    by_name: dict[str, Bridge] = {}
    for bridge in sorted(bridges, key=lambda b: (b.name, b.mac, b.mtu)):
        known = by_name.get(bridge.name, bridge)
        by_name[bridge.name] = Bridge(
            bridge.name, known.mac, min(known.mtu, bridge.mtu), known.addresses | bridge.addresses
        )
    return frozenset(by_name.values())
