"""A flow of 1,000 datagrams a second from one pod to another and back, which counts what is lost."""

from __future__ import annotations

import select
import subprocess
from types import TracebackType
from typing import Any, Self

from tests.e2e.cluster import Cluster
from tests.e2e.images import TESTCNI
from tests.e2e.workload import Doc, container, pod

# SO_RCVBUFFORCE (33): a busy machine may not run a receiver for long, and that is no loss of the network;
# nor does it make up for more than 50 ms at once then, which a device's backlog (1,000) would not hold.
MAY = {"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, 33, 1 << 24); s.bind(('', 7))
while True:
    data, who = s.recvfrom(99); s.sendto(data, who)
"""
RATE = 1000  # datagrams a second, and fewer while the machine is too busy for more
SEND = f"""
import select, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, 33, 1 << 24)
s.connect((sys.argv[1], 7)); s.setblocking(False)
step = 1 / {RATE}; due = time.monotonic(); sent = 0; got = set(); said = False
def take():
    try:
        while True: got.add(s.recv(99))
    except OSError: pass
while sent % 100 or not select.select([0], [], [], 0)[0]:
    if (now := time.monotonic()) >= due:
        try: s.send(b'%d' % sent)
        except OSError: pass
        sent += 1; due = max(due + step, now - 0.05)
    else: time.sleep(due - now)
    take()
    if got and not said: said = True; print('flows', flush=True)
end = time.monotonic() + 10
while len(got) < sent and time.monotonic() < end: time.sleep(0.01); take()
print(sent, len(got))
"""
STARTS_WITHIN = 30.0  # seconds
ENDS_WITHIN = 40.0  # seconds


def ends(sender: str, echo: str) -> list[Doc]:
    """The two pods, on these nodes."""
    return [
        pod("echo", {**container("python3", "-c", ECHO), "image": TESTCNI, **MAY}, nodeName=echo),
        pod("sender", {**container("sleep", "36000"), "image": TESTCNI, **MAY}, nodeName=sender),
    ]


class Flow:
    """Datagrams from when it is entered, and the first has come back, until its `counts` are asked for."""

    def __init__(self, cluster: Cluster, sender: dict[str, Any], address: str) -> None:
        where = ("-n", sender["metadata"]["namespace"], sender["metadata"]["name"])
        argv = cluster.control.kubectl_argv("exec", "-i", *where, "--", "python3", "-c", SEND, address)
        self._process = subprocess.Popen(
            cluster.space.argv(*argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], STARTS_WITHIN)[0]:
            raise AssertionError(f"no datagram came back within {STARTS_WITHIN:.0f} s")
        if self._process.stdout.readline().strip() != "flows":
            raise AssertionError(f"the sender does not run: {self._process.communicate()[1]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def counts(self) -> tuple[int, int]:
        """End it; return how many datagrams were sent and how many came back. Raises TimeoutExpired."""
        said, words = self._process.communicate("", ENDS_WITHIN)
        assert self._process.returncode == 0, words
        sent, got = said.split()
        return int(sent), int(got)
