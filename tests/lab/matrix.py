"""A table of which pods, nodes and the outside reach each other, with round-trip times."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.lab import Lab, Pod
from tests.lab.ping import round_trips
from tests.lab.segment import OUTSIDE

GREEN, RED, DIM, BOLD, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class End:
    """One end of a path: its address, and its network namespace (None: only a target)."""

    name: str
    address: str
    netns: Path | None = None


@dataclass(frozen=True)
class Reach:
    """The round-trip time from one end to another in ms, the best of some; None: no answer."""

    source: str
    target: str
    ms: float | None


def ends(lab: Lab) -> tuple[list[End], list[End]]:
    """Sources and targets of a lab's matrix: all pods and nodes; the outside is a target only."""
    pods = [_pod(pod) for node in lab.nodes for pod in node.pods.values()]
    nodes = [End(node.name, node.address, node.space.netns) for node in lab.nodes]
    return [*pods, *nodes], [*pods, *nodes, End("outside", OUTSIDE)]


def measure(sources: Sequence[End], targets: Sequence[End]) -> list[Reach]:
    """Ping every pair, itself included."""
    times = round_trips(
        {source.name: source.netns for source in sources if source.netns},
        {target.name: ipaddress.ip_address(target.address) for target in targets},
    )
    return [Reach(source, target, ms) for (source, target), ms in times.items()]


def _pod(pod: Pod) -> End:
    return End(f"{pod.name} ({pod.node.name})", pod.address, pod.node.path(pod.netns))


def render(reaches: Sequence[Reach], *, colour: bool) -> Iterator[str]:
    """A table: a row for each source, a column for each target, milliseconds or a cross."""
    sources = list(dict.fromkeys(reach.source for reach in reaches))
    targets = list(dict.fromkeys(reach.target for reach in reaches))
    times = {(reach.source, reach.target): reach.ms for reach in reaches}
    first = max(map(len, sources)) + 2
    widths = [max(len(target), 6) + 2 for target in targets]

    def paint(text: str, code: str) -> str:
        return f"{code}{text}{PLAIN}" if colour else text

    heads = "".join(target.rjust(width) for target, width in zip(targets, widths, strict=True))
    yield paint("from \\ to".ljust(first) + heads, BOLD)
    for source in sources:
        cells = []
        for target, width in zip(targets, widths, strict=True):
            ms = times[(source, target)]
            text = ("×" if ms is None else f"{ms:.3f}").rjust(width)
            cells.append(paint(text, RED if ms is None else DIM if source == target else GREEN))
        yield source.ljust(first) + "".join(cells)
