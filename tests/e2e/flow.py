"""A flow of 1,000 datagrams a second from one pod to another and back, which counts what is lost."""

from __future__ import annotations

import threading
from typing import Any

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
SEND = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, 33, 1 << 24)
s.connect((sys.argv[1], 7)); s.setblocking(False)
count = int(sys.argv[2]); due = time.monotonic(); sent = 0; got = set()
def take():
    try:
        while True: got.add(s.recv(99))
    except OSError: pass
while sent < count:
    if (now := time.monotonic()) >= due:
        try: s.send(b'%d' % sent)
        except OSError: pass
        sent += 1; due = max(due + 0.001, now - 0.05)
    else: time.sleep(due - now)
    take()
end = time.monotonic() + 10
while len(got) < sent and time.monotonic() < end: time.sleep(0.01); take()
print(sent, len(got))
"""


def ends(sender: str, echo: str) -> list[Doc]:
    """The two pods, on these nodes."""
    return [
        pod("echo", {**container("python3", "-c", ECHO), "image": TESTCNI, **MAY}, nodeName=echo),
        pod("sender", {**container("sleep", "36000"), "image": TESTCNI, **MAY}, nodeName=sender),
    ]


class Flow:
    """Sends in the background what takes so many seconds, and longer on a busy machine: never less."""

    def __init__(self, cluster: Cluster, sender: dict[str, Any], address: str, seconds: float) -> None:
        self._said = ""

        def run() -> None:
            argv = ("python3", "-c", SEND, address, str(int(seconds * RATE)))
            self._said = cluster.exec(sender, *argv, within=seconds * 5 + 30)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def counts(self) -> tuple[int, int]:
        """How many were sent and how many came back, at the end."""
        self._thread.join()
        sent, got = self._said.split()
        return int(sent), int(got)
