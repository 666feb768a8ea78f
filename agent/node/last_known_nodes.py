"""The last known fields of Nodes: a Node without addresses or podCIDRs for a moment has not given them up.

kubelet and cloud controllers write them a while after the object is created, and clear them now and then. A
file in the run-dir has them for the next agent, which may start in such a moment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.codec import network_json, strict_json
from agent.ip import Address, Subnet
from agent.ipam import block_ownership
from agent.ipam.block_ownership import BlockOwnership
from agent.model.cluster import MOMENT, IPBlock, Node, Snapshot
from agent.model.problem import Problem
from agent.modes import node_endpoints
from agent.modes.node_endpoints import NodeEndpoints
from agent.objects.state import LocalAddress
from agent.runtime import atomic_file, json_state_file
from agent.runtime.clock import SYSTEM_CLOCK, Clock

FORMAT = 1
AGAIN = 10.0  # seconds after which a file that could not be written is tried again
SAVING = 0.01  # of the time at most: the file may hold thousands of nodes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Said:
    """The addresses and podCIDRs that a Node said last."""

    addresses: tuple[Address, ...] = ()
    blocks: tuple[Subnet, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """The Nodes with what they lack, where they are, and what is wrong with that."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    ends: NodeEndpoints = field(default_factory=NodeEndpoints)
    problems: tuple[Problem, ...] = ()
    claims: BlockOwnership = field(default_factory=BlockOwnership)
    """The owner of each block."""
    gone: Mapping[str, Node] = field(default_factory=dict)
    """Nodes that were deleted a moment ago: their podCIDRs are still theirs."""
    until: float = float("inf")
    """The time when something that was kept is over, by the clock."""

    def disputes(self) -> Iterator[Problem]:
        """Blocks that are kept for a Node that is gone, though another one claims them."""
        for (name, block), other in self.claims.refused.items():
            if other.node in self.gone:
                kept = f"{other.block} is kept for it for {MOMENT:.0f} s, as it may be created again"
                what = f"its Node object is gone; {kept}, and node {name} claims {block}"
                remedy = f"wait where {name} replaces it; else see who wrote {name}"
                yield Problem(f"node {other.node}", what, remedy)


class LastKnownNodes:
    """Completes snapshots by what earlier ones said. For one thread."""

    def __init__(
        self, node: str, path: Path | None = None, own: Iterable[Subnet] = (), clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """`path`: the file; None: it is forgotten at a restart. `own`: the blocks that pods of this node have."""
        self._node = node
        self._path = path
        self._clock = clock
        self._said, self._owners = _load(path) if path else ({}, {})
        self._owners |= dict.fromkeys(own, node)
        self._me = Node(node, said.addresses, said.blocks) if (said := self._said.get(node)) else None
        self._since: dict[str, float] = {}
        """Nodes without podCIDRs that had some, and deleted ones, since when."""
        self._seen: tuple[Mapping[str, Node], Mapping[str, IPBlock]] | None = None
        self._known = Known()
        self._save_at = 0.0
        self._dirty = False

    def look(self, snapshot: Snapshot) -> Known:
        """The Nodes of a complete snapshot; the same value again while nothing has changed."""
        now, known = self._clock.now(), self._known
        nodes, claimed = self._seen or (None, None)
        if snapshot.nodes is not nodes or now >= known.until:
            known, claimed = self._completed(snapshot.nodes, now), None
        if snapshot.blocks is not claimed:
            claims = block_ownership.resolve(replace(snapshot, nodes={**known.gone, **known.nodes}), self._owners)
            owners = {**claims.owners, **self._established()}
            self._dirty |= owners != self._owners
            self._owners, known = owners, replace(known, claims=claims)
        self._seen, self._known = (snapshot.nodes, snapshot.blocks), known
        if self._dirty and self._path and now >= self._save_at:
            self._dirty = not _save(self._path, self._said, self._owners)
            self._save_at = now + (AGAIN if self._dirty else (self._clock.now() - now) / SAVING)
        return self._known

    def next(self) -> float:
        """Return when there is something to do without any change, by the clock."""
        return min(self._known.until, self._save_at if self._dirty and self._path else float("inf"))

    def _completed(self, nodes: Mapping[str, Node], now: float) -> Known:
        odd = [node for node in nodes.values() if self._lacks(node)]
        absent = self._said.keys() - nodes.keys()
        for name in absent:
            self._since.setdefault(name, now)
        filled: dict[str, Node] = {}
        problems: list[Problem] = []
        heirs = _Heirs(nodes.values() if odd or absent else ())
        for node in odd:
            filled[node.name] = self._filled(node, heirs, now)
            problems += _problems(node, filled[node.name])
        whole = {**nodes, **filled}
        if (me := whole.get(self._node)) is not None:
            self._me = me
        elif self._me:
            whole[self._node] = self._me  # its pods run on
        self._remember(whole, nodes, now)
        gone = {
            name: Node(name, blocks=said.blocks)
            for name, said in self._said.items()
            if name not in whole and not heirs.of(name, said)
        }
        known = node_endpoints.choose(whole)
        until = min((since + MOMENT for since in self._since.values()), default=float("inf"))
        return Known(
            whole if len(whole) > len(nodes) or filled else nodes,
            known,
            (*problems, *known.problems()),
            gone=gone,
            until=until,
        )

    def _lacks(self, node: Node) -> bool:
        """Return whether a Node lacks what it said before; what it says now is not looked at."""
        said = self._said.get(node.name)
        if said is None:
            return False
        if said.blocks and not node.blocks:
            return True
        if said.addresses == node.addresses:
            return False
        return bool({a.version for a in said.addresses} - {a.version for a in node.addresses})

    def _filled(self, node: Node, heirs: _Heirs, now: float) -> Node:
        """Return the Node with its last known fields, unless the same machine claims them under another name."""
        said, versions = self._said[node.name], {address.version for address in node.addresses}
        kept = tuple(a for a in said.addresses if a.version not in versions)
        blocks, lost = node.blocks, bool(said.blocks) and not node.blocks
        if lost and self._since.setdefault(node.name, now) + MOMENT > now:
            blocks = said.blocks
        if node.name != self._node and not node.addresses and heirs.of(node.name, said):
            kept, blocks = (), node.blocks
        return replace(node, addresses=(*node.addresses, *kept), blocks=blocks)

    def _established(self) -> dict[Subnet, str]:
        """The podCIDRs of Nodes that lack them, or are gone, for a moment: who had them is not forgotten yet."""
        kept = ((name, block) for name in self._since for block in self._said[name].blocks)
        return {block: name for name, block in kept if self._owners.get(block) == name}

    def _remember(self, whole: Mapping[str, Node], nodes: Mapping[str, Node], now: float) -> None:
        said = {name: Said(node.addresses, node.blocks) for name, node in whole.items()}
        for name, since in list(self._since.items()):
            before = self._said[name]
            lacking = bool(before.blocks) and not nodes[name].blocks if name in nodes else name != self._node
            if lacking and since + MOMENT > now:
                addresses = said[name].addresses if name in said else ()
                said[name] = Said(addresses or before.addresses, before.blocks)
            else:
                del self._since[name]
        self._dirty |= said != self._said
        self._said = said


class _Heirs:
    """Nodes that are an earlier one under another name: they have its addresses and its podCIDRs."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes: dict[Address, list[Node]] = {}
        for node in nodes:
            for address in node.addresses[:1]:
                self._nodes.setdefault(address, []).append(node)

    def of(self, name: str, said: Said) -> bool:
        """Return whether a Node is no longer, as its machine has another name now."""
        alike = (node for address in said.addresses[:1] for node in self._nodes.get(address, ()))
        return any(
            node.name != name and node.addresses == said.addresses and set(said.blocks) <= set(node.blocks)
            for node in alike
        )


def identity(snapshot: Snapshot, node: str, local: tuple[LocalAddress, ...]) -> Iterator[Problem]:
    """Yield a problem if this node is not the one that it believes to be."""
    me = snapshot.nodes.get(node)
    if me is None:
        yield Problem(
            f"node {node}", "has no Node object", "create it, or give the agent the right name by --node"
        )
        return
    here = {entry.interface.ip for entry in local}
    absent = [address for address in me.addresses if address not in here]
    if absent:
        what = f"its InternalIP {', '.join(map(str, absent))} is on no interface here"
        yield Problem(f"node {node}", what, "correct the Node, or --node of the agent")


def _problems(node: Node, filled: Node) -> Iterator[Problem]:
    kept = [str(address) for address in filled.addresses if address not in node.addresses]
    if kept:
        what = f"its InternalIP is missing just now; the last known {', '.join(kept)} stays in use"
        yield Problem(f"node {node.name}", what, "see its kubelet and cloud controller")
    if blocks := [str(block) for block in filled.blocks if block not in node.blocks]:
        what = (
            f"its podCIDR is missing just now; the last known {', '.join(blocks)} stays in use for {MOMENT:.0f} s"
        )
        yield Problem(f"node {node.name}", what, "see the controller that allocates podCIDRs")


def _save(path: Path, said: Mapping[str, Said], owners: Mapping[Subnet, str]) -> bool:
    nodes = {name: [list(map(str, one.addresses)), list(map(str, one.blocks))] for name, one in said.items()}
    blocks = {str(block): node for block, node in owners.items()}
    return json_state_file.write(path, {"format": FORMAT, "nodes": nodes, "owners": blocks})


def _load(path: Path) -> tuple[dict[str, Said], dict[Subnet, str]]:
    """Return what an earlier agent noted; a file that can't be used is as none."""
    try:
        doc = strict_json.mapping(atomic_file.read(path))
        if doc["format"] != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        said = {
            name: Said(tuple(map(network_json.address, addresses)), network_json.subnets(blocks))
            for name, (addresses, blocks) in doc["nodes"].items()
        }
        return said, {network_json.subnet(block): network_json.text(node) for block, node in doc["owners"].items()}
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s can't be used, so Nodes are known as the datastore has them: %r", path, error)
        return {}, {}
