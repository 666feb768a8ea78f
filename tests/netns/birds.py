"""Nodes with a real BIRD each, as network namespaces on one switch; the switch is the test's own namespace."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from agent.modes.ipip.bird.daemon import Files
from agent.modes.ipip.bird.supervisor import Supervisor
from agent.modes.ipip.bird.types import BirdConfig, BirdStatus, BirdTimes, Peer, State
from tests.netns.node import CLONE_NEWNET, Pod, command
from tests.netns.route_monitor import route_monitor
from tests.support import seconds_until

needs_bird = pytest.mark.skipif(not shutil.which("bird"), reason="BIRD is not installed (Debian: bird2)")
POOLS = (IPv4Network("10.244.0.0/16"),)
TIMES = BirdTimes()
UNDERLAY = IPv4Network("192.0.2.0/24")


def supervise(supervisor: Supervisor, netns: str) -> None:
    """Run a supervisor in a network namespace: that of its thread, which its children inherit."""
    with Path(netns).open() as file:
        if ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET):
            raise OSError("setns")
    supervisor.run(threading.Event())


class Node:
    """A node of the address 192.0.2.NUMBER and the block 10.244.NUMBER.0/24."""

    def __init__(
        self,
        folder: Path,
        number: int,
        underlay: IPv4Network = UNDERLAY,
        switch: str = "switch",
        times: BirdTimes = TIMES,
    ) -> None:
        self.number = number
        self.name = f"node-{number}.test"
        self.address = underlay[number]
        self.block = IPv4Network(f"10.244.{number}.0/24")
        self.folder = folder / self.name
        self.files = Files(self.folder)
        self.netns = Pod(self.name)
        self._times = times
        self.supervisor = self.new_supervisor()
        self.thread: threading.Thread | None = None
        command(
            "ip", "link", "add", f"n{number}", "type", "veth", "peer", "name", "eth0", "netns", self.netns.path
        )
        command("ip", "link", "set", f"n{number}", "master", switch, "up")
        self.ip("link", "set", "lo", "up")
        self.ip("link", "set", "eth0", "up")
        self.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("address", "add", f"{self.block[2]}/32", "dev", "lo")  # stands for a pod
        self.config = BirdConfig(
            self.name, self.address, blocks=(self.block,), pools=POOLS, direct=(underlay,), source=self.block[2]
        )

    def new_supervisor(self) -> Supervisor:
        """Return the supervisor of an agent that starts."""
        return Supervisor(self.folder, times=self._times)

    def ip(self, *args: str) -> str:
        return self.netns.run("ip", *args)

    @property
    def peer(self) -> Peer:
        return Peer(self.name, self.address, self.config.reflector)

    def want(self, peers: Sequence[Node] = (), **more: Any) -> None:
        """Have it peer with these nodes; the first call starts its supervisor."""
        self.config = replace(self.config, peers=tuple(node.peer for node in peers if node is not self), **more)
        self.supervisor.want(self.config)
        self.run()

    def run(self) -> None:
        if not self.thread:
            self.thread = threading.Thread(target=supervise, args=(self.supervisor, self.netns.path), daemon=True)
            self.thread.start()

    def stop(self) -> None:
        """End the supervisor; BIRD stays."""
        if self.thread:
            self.supervisor.stop()
            self.thread.join(10)
            assert not self.thread.is_alive()
        self.thread = None

    def restart(self) -> None:
        """A new agent takes over."""
        self.stop()
        self.supervisor = self.new_supervisor()
        self.supervisor.want(self.config)
        self.run()

    def pid(self) -> int:
        with self.files.control() as control:
            return control.pid

    def routes(self, *which: str) -> dict[str, str]:
        """Gateways by destination of BIRD's routes, except those of own blocks."""
        listed = json.loads(self.ip("-j", "route", "show", "proto", "bird", *which) or "[]")
        return {r["dst"]: r["gateway"] for r in listed if r.get("type", "unicast") == "unicast"}

    def status(self) -> BirdStatus:
        return self.supervisor.status.get()

    def established(self) -> set[str]:
        return {s.peer for s in self.status().sessions if s.state is State.ESTABLISHED}

    def knows(self, nodes: Sequence[Node]) -> bool:
        """Return whether its routes are just those to the other nodes' blocks."""
        wanted = {str(node.block): str(node.address) for node in nodes if node is not self}
        return self.routes() == wanted

    def close(self) -> None:
        self.stop()
        with suppress(OSError):
            os.kill(self.pid(), signal.SIGKILL)


class Wire:
    """The switch and its nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        command("ip", "link", "add", "switch", "type", "bridge")
        command("ip", "link", "set", "switch", "up")

    def add(self, *numbers: int, times: BirdTimes = TIMES) -> list[Node]:
        made = [Node(self.folder, number, times=times) for number in numbers]
        self.nodes += made
        return made


@contextmanager
def wire(folder: Path) -> Iterator[Wire]:
    """A switch; its nodes' BIRDs end with the block."""
    made = Wire(folder)
    try:
        yield made
    finally:
        for node in made.nodes:
            node.close()


def mesh(nodes: Sequence[Node], **more: Any) -> None:
    for node in nodes:
        node.want(nodes, **more)


def converged(nodes: Sequence[Node]) -> float:
    """Wait until each node has the routes to all others; how many seconds that took."""
    return seconds_until(lambda: all(node.knows(nodes) for node in nodes))


def monitored(node: Node, seconds: float) -> subprocess.Popen[str]:
    """Start the monitor of a node's routes in the next seconds."""
    return route_monitor("nsenter", f"--net={node.netns.path}", seconds=seconds)


def flow(source: Node, target: Node, seconds: float) -> subprocess.Popen[str]:
    """A thousand packets a second from pod to pod."""
    argv = ("nsenter", f"--net={source.netns.path}", "ping", "-q", "-i", "0.001", "-c", str(int(seconds * 1000)))
    return subprocess.Popen(
        [*argv, "-I", str(source.block[2]), str(target.block[2])], stdout=subprocess.PIPE, text=True
    )


def lost(process: subprocess.Popen[str]) -> int:
    words = process.communicate(timeout=60)[0]
    sent, received = (int(part.split()[0]) for part in words.splitlines()[-2].split(",")[:2] if part)
    return sent - received


def start_agent(node: Node) -> subprocess.Popen[bytes]:
    """A process of its own that supervises, so that it can be killed."""
    argv = [sys.executable, "-m", "tests.netns.birds", str(node.folder), node.netns.path]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(pickle.dumps(node.config))
    process.stdin.close()
    return process


def main() -> None:
    supervisor = Supervisor(Path(sys.argv[1]))
    supervisor.want(pickle.load(sys.stdin.buffer))  # noqa: S301 - from our own test
    supervise(supervisor, sys.argv[2])


if __name__ == "__main__":
    main()
