"""Networks that have no address left on this node, and claims that found no block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.ipam import blocks
from agent.ipam.allocator import Range
from agent.model.cluster import Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem

REMEDY = "delete pods, or give the node more addresses"
WANTED_FOR = 120.0  # seconds: a runtime retries an ADD sooner


def text(ranges: Iterable[Range], version: int, why: str) -> str:
    """Return how many addresses of an IP version there are, and why there are no more."""
    mine = [r for r in ranges if r.block.version == version]
    where, size = ", ".join(str(r.block) for r in mine), sum(r.size for r in mine)
    what = f"no address is free in {where} ({size} in all)" if mine else f"the node has no IPv{version} block"
    return f"{what}, and {why}"


def problems(
    status: NodeStatus, used: Callable[[Range], int], full: Callable[[Network, int], str]
) -> Iterator[Problem]:
    """Yield a problem for each network and IP version without a free address, if no block can be claimed.

    `used` counts the addresses of a range that pods have. `full` says why the last claim found no block; it is
    empty if there may be one.
    """
    for network, own in status.blocks.items():
        ranges = blocks.prepared(status, network, own)
        for version in sorted(status.families.get(network) or {block.version for block in own}):
            why = status.limits.get((network, version)) or full(network, version)
            if why and all(used(r) >= r.size for r in ranges if r.block.version == version):
                yield Problem(f"network {network.name}", text(ranges, version, why), REMEDY)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A claim for which no block was left."""

    problem: Problem
    snapshot: Snapshot
    """The snapshot at that time."""
    without: bool
    """Whether the node has no block at all for the network."""
    at: float


class Refusals:
    """Remembers claims that found no block, while blocks, pools and Nodes stay the same.

    A pod requests a block at each retry of its runtime. Between the retries the claim is forgotten, but its
    refusal is still a problem.
    """

    def __init__(self) -> None:
        self._last: dict[str, Refusal] = {}

    def note(self, key: str, problem: Problem, snapshot: Snapshot, *, without: bool) -> None:
        """Note a refusal, and drop those from before blocks, pools or Nodes changed.

        So this does not grow: networks come and go, and each refusal keeps a snapshot of all Nodes.
        """
        valid = {
            other: refusal for other, refusal in self._last.items() if blocks.is_alike(refusal.snapshot, snapshot)
        }
        self._last = {**valid, key: Refusal(problem, snapshot, without, time.monotonic())}

    def forget(self, key: str) -> None:
        """Forget the refusal, as a claim has succeeded."""
        self._last = {other: refusal for other, refusal in self._last.items() if other != key}

    def why(self, key: str, snapshot: Snapshot) -> str:
        """Return why no block is left; empty if there may be one."""
        refusal = self._last.get(key)
        return refusal.problem.what if refusal and blocks.is_alike(refusal.snapshot, snapshot) else ""

    def problems(self, snapshot: Snapshot) -> dict[str, Problem]:
        """Return the problems of networks without any block on this node, while pods may still need one.

        A network that has blocks has no problem until pods use every address: see `problems` above.
        """
        since = time.monotonic() - WANTED_FOR
        return {
            key: refusal.problem
            for key, refusal in self._last.items()
            if refusal.without and refusal.at > since and blocks.is_alike(refusal.snapshot, snapshot)
        }
