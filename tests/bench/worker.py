"""Runs inside a node of the lab: times plugin calls, ours and the reference ones by turns, and prints JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TURN = 20  # rounds
SETTLE = 0.1  # seconds


class Calls:
    """Calls of one plugin with one netconf."""

    def __init__(self, path: str, conf: Mapping[str, Any]) -> None:
        self._path = path
        self._stdin = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._stdin.write(json.dumps(conf).encode())
        self._stdin.flush()

    def call(self, verb: str, name: str) -> float:
        """Seconds that a call takes, from spawn to exit; raises RuntimeError when it fails."""
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": os.path.dirname(self._path),  # noqa: PTH120
        }
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, self._stdin.name, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        ]
        began = time.perf_counter()
        pid = os.posix_spawn(self._path, [self._path], environment, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        took = time.perf_counter() - began
        if status:
            raise RuntimeError(f"{self._path} {verb} {name}: exit code {os.waitstatus_to_exitcode(status)}")
        return took


def by_turns(contenders: Mapping[str, Calls], rounds: int, name: str) -> dict[str, dict[str, list[float]]]:
    """ADD and DEL of one namespace again and again, some rounds of each contender after the other."""
    times: dict[str, dict[str, list[float]]] = {who: {"ADD": [], "DEL": []} for who in contenders}
    for _ in range(rounds // TURN):
        for who, calls in contenders.items():
            time.sleep(SETTLE)  # what one leaves the kernel to do must not fall into the other's time
            for _ in range(TURN):
                for verb in ("ADD", "DEL"):
                    times[who][verb].append(calls.call(verb, name))
    return times


def at_once(calls: Calls, names: Sequence[str], width: int) -> float:
    """Seconds for an ADD of every name, `width` at a time; they are deleted again, untimed."""
    with ThreadPoolExecutor(width) as pool:
        began = time.perf_counter()
        list(pool.map(lambda name: calls.call("ADD", name), names))
        took = time.perf_counter() - began
        list(pool.map(lambda name: calls.call("DEL", name), names))
    return took


def main() -> None:
    """Reads the job from stdin, prints the times."""
    job = json.load(sys.stdin)
    contenders = {who: Calls(**one) for who, one in job["contenders"].items()}
    names = job["names"]
    by_turns(contenders, TURN, names[0])  # caches warm up
    pairs = by_turns(contenders, job["rounds"], names[0])
    bursts: dict[str, list[float]] = {who: [] for who in contenders}
    for _ in range(job["bursts"]):
        for who, calls in contenders.items():
            bursts[who].append(at_once(calls, names, job["width"]))
    print(json.dumps({"pairs": pairs, "bursts": bursts}))


if __name__ == "__main__":
    main()
