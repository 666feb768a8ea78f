"""The address of each node that packets to it go to, chosen alike on all nodes: pure functions of Node objects.

Nodes must agree about it: a tunnel is accepted from where its node is believed to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agent.ip import Address
from agent.model.cluster import ENDS, Node
from agent.model.problem import Problem

NAMED = 3  # nodes that a problem names


@dataclass(frozen=True, slots=True)
class NodeEndpoints:
    """The address of each node that the others send to, by IP version and name."""

    chosen: Mapping[int, Mapping[str, Address]] = field(default_factory=dict)
    contested: Mapping[Address, tuple[str, ...]] = field(default_factory=dict)
    """Addresses that several nodes have among their InternalIPs, and those nodes."""

    def of(self, node: str, version: int) -> Address | None:
        """Return where packets to a node go; None: it has no InternalIP of this IP version."""
        return self.chosen.get(version, {}).get(node)

    def candidates(self, node: Node, version: int) -> Iterator[Address]:
        """The addresses by which a node may be reached: the one that all choose, then those of its own only."""
        chosen = self.of(node.name, version)
        if chosen:
            yield chosen
        for address in node.addresses:
            if address.version == version and address != chosen and address not in self.contested:
                yield address

    def problems(self) -> Iterator[Problem]:
        """Each address that several nodes list."""
        for address, names in self.contested.items():
            who = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
            alone = [name for name in names if self.of(name, address.version) == address]
            use = f"it is used for {', '.join(alone[:NAMED])}" if alone else "it is used for none of them"
            yield Problem(
                f"InternalIP {address}",
                f"is one of several nodes: {who}; {use}",
                "have kubelet report addresses that only this node has (--node-ip)",
            )


def choose(nodes: Mapping[str, Node]) -> NodeEndpoints:
    """The ends of all nodes, whatever the order in which they are known.

    A node has the InternalIP that it announces; else the first that no other node lists. Then those without: the
    first that nobody announces and no other of them lists. Nodes that are left cannot be distinguished:
    each has its first, as one of them may be long gone.
    """
    chosen, contested = {}, {}
    for version in (4, 6):
        lists = {name: own for name, node in nodes.items() if (own := _addresses(node, version))}
        times = Counter(int(address) for addresses in lists.values() for address in addresses)
        if len(times) < sum(times.values()):
            contested.update(_contested(lists, times))
        told = ((name, _told(nodes[name], addresses)) for name, addresses in lists.items())
        chosen[version] = _match(lists, times, {name: address for name, address in told if address})
    return NodeEndpoints(chosen, contested)


def announced_addresses(node: Node) -> tuple[str, ...]:
    """Return what a node says of its own addresses, as text."""
    return dict(node.accepted_modes).get(ENDS, ())


def _addresses(node: Node, version: int) -> list[Address]:
    return [address for address in node.addresses if address.version == version]


def _told(node: Node, addresses: list[Address]) -> Address | None:
    """The first of a node's addresses that it announces."""
    said = announced_addresses(node)
    return next((address for address in addresses if str(address) in said), None) if said else None


def _match(
    lists: Mapping[str, list[Address]], times: Mapping[int, int], told: Mapping[str, Address]
) -> dict[str, Address]:
    chosen, taken = dict(told), set(told.values())
    left = {name: addresses for name, addresses in lists.items() if name not in chosen}
    while left:
        found = {name: own for name, addresses in left.items() if (own := _own(addresses, times))}
        chosen.update(found)
        left = {name: addresses for name, addresses in left.items() if name not in found}
        free = {name: [a for a in addresses if a not in taken] or addresses for name, addresses in left.items()}
        if not found and left == free:
            return {**chosen, **{name: addresses[0] for name, addresses in left.items()}}
        left = free
        times = Counter(int(address) for addresses in left.values() for address in addresses)
    return chosen


def _own(addresses: list[Address], times: Mapping[int, int]) -> Address | None:
    return next((address for address in addresses if times[int(address)] == 1), None)


def _contested(lists: Mapping[str, list[Address]], times: Mapping[int, int]) -> dict[Address, tuple[str, ...]]:
    found: dict[Address, list[str]] = {}
    for name in sorted(lists):
        for address in lists[name]:
            if times[int(address)] > 1:
                found.setdefault(address, []).append(name)
    return {address: tuple(names) for address, names in sorted(found.items(), key=lambda entry: int(entry[0]))}
