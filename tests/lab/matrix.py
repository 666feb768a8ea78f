"""Who reaches whom: pods, nodes and the outside, with round-trip times, as a table."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.lab.lab import OUTSIDE, Lab, Pod

PINGS = 3
AT_ONCE = 16
GREEN, RED, DIM, BOLD, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class End:
    """One end of a path: how to run a command there (empty: only a target), and its address."""

    name: str
    address: str
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reach:
    """The round-trip time from one end to another in ms, the best of some; None: no answer."""

    source: str
    target: str
    ms: float | None


def ends(lab: Lab) -> tuple[list[End], list[End]]:
    """Sources and targets of a lab's matrix: all pods and nodes; the outside is a target only."""
    pods = [_pod(pod) for node in lab.nodes for pod in node.pods.values()]
    nodes = [End(node.name, node.address, tuple(node.space.argv())) for node in lab.nodes]
    return [*pods, *nodes], [*pods, *nodes, End("outside", OUTSIDE)]


def measure(sources: Sequence[End], targets: Sequence[End]) -> list[Reach]:
    """Ping every pair, itself included; the first ping of a path may wait for a neighbour's address."""
    pairs = [(source, target) for source in sources for target in targets]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda pair: _reach(*pair), pairs))


def _pod(pod: Pod) -> End:
    return End(f"{pod.name} ({pod.node.name})", pod.address, tuple(pod.argv()))


def _reach(source: End, target: End) -> Reach:
    ping = ("ping", "-c", str(PINGS), "-i", "0.01", "-W", "1", "-q", target.address)
    done = subprocess.run([*source.argv, *ping], capture_output=True, text=True, check=False)
    best = re.search(r"= ([0-9.]+)/", done.stdout)
    return Reach(source.name, target.name, float(best[1]) if done.returncode == 0 and best else None)


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
