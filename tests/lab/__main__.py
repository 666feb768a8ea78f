"""`python -m tests.lab demo | list | down`: the lab for people."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from typing import NoReturn

from agent.model.marks import ROUTE_PROTOCOL
from tests.lab import matrix, registry
from tests.lab.lab import Lab, LabError, LabNode, conf_of
from tests.lab.matrix import Reach
from tests.lab.runner import RunnerError
from tests.lab.space import SpaceError

MODES = {"host-gw", "vxlan", "ipip", "ipvlan", "macvlan"}
EXIT_UNREACHED, EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130


def say(text: str) -> None:
    """Progress goes to stderr, results to stdout."""
    resume_interrupt()
    print(f"{time.monotonic() - BEGAN:5.1f} s  {text}", file=sys.stderr, flush=True)


BEGAN = time.monotonic()
_signals: list[int] = []


def demo(options: argparse.Namespace) -> int:
    """Bring a lab up, show who reaches whom, take it down. Exit code 0 when every pair was reached."""
    if options.mode not in MODES:
        print(f"MODE={options.mode}: not built yet; built: {', '.join(sorted(MODES))}", file=sys.stderr)
        return EXIT_USAGE
    with Lab() as lab:
        lab.up(options.nodes, conf=conf_of(options.mode), say=say)
        if options.mode == "ipip":
            say("BGP sessions between the nodes")
            lab.wait_converged()
        say(f"{options.pods} pod(s) on each node, by the CNI plugin")

        def add(node: LabNode) -> None:
            for number in range(options.pods):
                node.add_pod(f"pod{node.number}{chr(ord('a') + number)}")

        lab.each(add)
        sources, targets = matrix.ends(lab)
        say(f"{len(sources) * len(targets)} pairs ping each other")
        reaches = matrix.measure(sources, targets)
        show(reaches, options.output)
        missed = [reach for reach in reaches if reach.ms is None]
        if missed:
            what_is_wrong(lab, missed)
        resume_interrupt()
        if options.keep:
            lab.keep()
            what_next(lab)
    if not missed:
        say("every pair reached" + ("" if options.keep else "; the lab is gone again. Keep it: make demo KEEP=1"))
    return EXIT_UNREACHED if missed else 0


def show(reaches: list[Reach], output: str) -> None:
    """The matrix for a person, or for a program."""
    if output == "json":
        print(json.dumps([vars(reach) for reach in reaches], indent=1))
        return
    print("\nround-trip times in ms, the best of 3\n")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for line in matrix.render(reaches, colour=colour):
        print(line)
    print(flush=True)


def what_is_wrong(lab: Lab, missed: list[Reach]) -> None:
    """The pairs that did not reach each other, and what the agents say of it."""
    for reach in missed:
        print(f"not reached: {reach.source} → {reach.target}", file=sys.stderr)
    for node in lab.nodes:
        for problem in node.problems():
            print(f"{node.name}: {problem}", file=sys.stderr)


def what_next(lab: Lab) -> None:
    """Commands to try in a lab that stays."""
    one, other = lab.nodes[0], lab.nodes[-1]
    enter = " ".join(one.space.argv())
    mine, target = next(iter(one.pods.values())), next(iter(other.pods.values()))
    print("The lab stays. Try:", file=sys.stderr)
    for command, why in (
        (f"{enter} bash", f"a shell on {one.name}"),
        (f"{enter} ip route", f"a route to each peer's block, by protocol {ROUTE_PROTOCOL} or bird"),
        (f"{enter} nft list table inet testcni", "the masquerade"),
        (" ".join(mine.argv("ping", target.address)), f"from a pod to one of {other.name}"),
        (f"tail -f {one.log}", "the agent's log"),
        (f"rm {lab.datastore}/node-{other.name}.yaml", f"{other.name} leaves: watch its route go"),
        (f"{sys.executable} -m tests.lab down {lab.id}", "the end"),
    ):
        print(f"  {command}\n      # {why}", file=sys.stderr)


def down(lab_id: str | None) -> int:
    """End one lab, or all; a lab that is not there is an error."""
    ended = registry.down(lab_id)
    if lab_id and not ended:
        print(f"no lab {lab_id}; there are: {' '.join(lab['id'] for lab in registry.labs())}", file=sys.stderr)
        return EXIT_USAGE
    print("ended:", " ".join(ended) or "none")
    return 0


def main() -> int:
    """Exit codes: 0 every pair reached, 1 not so, 2 wrong options, 3 the lab failed, 130 interrupted."""
    options = _parser().parse_args()
    if options.command == "list":
        for lab in registry.labs():
            # two holders are the switch and the outside
            nodes = max(len(lab["holders"]) - 2, 0)
            print(f"{lab['id']}  {nodes} nodes  {'kept' if lab['keep'] else ''}".rstrip())
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return down(options.id) if options.command == "down" else demo(options)
    except KeyboardInterrupt:
        print(f"interrupted{'; the lab is gone' if options.command == 'demo' else ''}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (LabError, SpaceError, RunnerError) as error:
        print(f"{options.command} failed: {error}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("demo", help="nodes, pods, and who reaches whom")
    one.add_argument("--nodes", type=int, default=3)
    one.add_argument("--pods", type=int, default=1, choices=range(1, 27), metavar="1-26", help="on each node")
    one.add_argument("--mode", default="host-gw")
    one.add_argument("--keep", action="store_true", help="leave the lab running")
    one.add_argument("-o", "--output", choices=("text", "json"), default="text")
    commands.add_parser("list", help="labs that are up")
    end = commands.add_parser("down", help="end labs")
    end.add_argument("id", nargs="?", help="one lab; all without it")
    return parser


def _interrupt(number: int, _frame: object) -> NoReturn:
    _signals.append(number)
    raise KeyboardInterrupt


def resume_interrupt() -> None:
    """Raise it again: Python ignores what is raised while a destructor or a weak reference's callback runs."""
    if _signals:
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
