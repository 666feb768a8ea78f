"""Programs that run inside nodes and pods, and the rules that kube-proxy would set: what paths are tested with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from tests.lab.lab import SERVICE_TABLE, LabNode, Pod
from tests.lab.space import PATIENCE, PYTHON, REPO, Space

SERVICE, SERVICE_PORT, NODE_PORT, HOST_PORT, TARGET = "10.96.0.1", 80, 30080, 8080, 9376

# Answers each connection and datagram with the sender's address and what it said.
SERVER = """
import socket, threading
tcp = socket.create_server(("", PORT), backlog=64)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE: a slow machine is no lossy network
udp.bind(("", PORT))
def datagrams():
    while True:
        data, sender = udp.recvfrom(65535)
        udp.sendto(sender[0].encode() + b" " + data, sender)
threading.Thread(target=datagrams, daemon=True).start()
print("ready", flush=True)
while True:
    connection, sender = tcp.accept()
    with connection:
        connection.sendall(sender[0].encode() + b" " + connection.recv(65535))
"""
CLIENT = """
import socket, sys
kind, host, port, source, size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: datagrams may be cut
s.settimeout(3)
s.bind(("", source))
try:
    s.connect((host, port))
    s.send(b"x" * size)
    answer = s.recv(65535)
    print(answer.split()[0].decode() if len(answer.split()[1]) == size else f"cut to {len(answer)}")
except OSError as error:
    print(type(error).__name__)
"""

RATE = 1000 // (10 if PATIENCE > 1 else 1)  # datagrams a second
# So many, back and forth, from the first that came back; at the end of input it says how many went and came back.
FLOW = """
import os, select, socket, sys, threading, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
s.connect((sys.argv[1], int(sys.argv[2])))
s.settimeout(1)
got, over = set(), threading.Event()
def receive():
    while True:
        try:
            got.add(s.recv(100).split()[1])
            if len(got) == 1:
                print("begun", flush=True)
        except TimeoutError:
            if over.is_set() and (len(got) == sent or time.monotonic() > end + 8):
                return
receiver = threading.Thread(target=receive)
receiver.start()
sent, begin, end = 0, time.monotonic(), 0
while not select.select([sys.stdin], [], [], 0)[0]:
    s.send(b"%d" % sent)
    sent += 1
    # what a stall has kept it from is not made up for at once, which a device's backlog (1,000) would not hold
    begin = max(begin, time.monotonic() - sent / int(sys.argv[3]) - 0.05)
    time.sleep(max(0, begin + sent / int(sys.argv[3]) - time.monotonic()))
end = time.monotonic()
over.set()
receiver.join()
print(sent, len(got))
"""


# As many bytes as asked for, and their checksum at both ends.
SINK = """
import hashlib, socket
server = socket.create_server(("", 5001))
print("ready", flush=True)
connection, _ = server.accept()
total = hashlib.sha256()
while data := connection.recv(1 << 20):
    total.update(data)
print(total.hexdigest(), flush=True)
"""
SOURCE = """
import hashlib, os, socket, sys
connection = socket.create_connection((sys.argv[1], 5001))
total = hashlib.sha256()
for _ in range(int(sys.argv[2])):
    data = os.urandom(1 << 20)
    total.update(data)
    connection.sendall(data)
print(total.hexdigest())
"""


class Flow:
    """Datagrams, RATE a second, from a pod to the server of another, and back."""

    def __init__(self, source: Pod, target: str) -> None:
        argv = source.argv(*PYTHON, FLOW, target, str(TARGET), str(RATE))
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "begun\n"

    def end(self) -> tuple[int, int]:
        """Return how many went, and how many of them did not come back."""
        sent, got = map(int, self._process.communicate("\n", timeout=20 * PATIENCE)[0].split())
        return sent, sent - got


class Servers:
    """Servers that run until the end of a block."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, where: Pod | Space, port: int = TARGET) -> None:
        """A server of TCP and UDP in a pod or a node."""
        argv = where.argv(*PYTHON, SERVER.replace("PORT", str(port)))
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self._stack.callback(server.wait)
        self._stack.callback(server.kill)
        assert server.stdout
        assert server.stdout.readline() == "ready\n"


def ask(where: Pod | Space, kind: str, host: str, port: int, *, source: int = 0, size: int = 10) -> str:
    """As whom a server saw us; the name of the error where there was no answer."""
    arguments = (kind, host, str(port), str(source), str(size))
    return where.exec(*PYTHON, CLIENT, *arguments, check=False).stdout.strip()


def arrives_whole(source: Pod, target: Pod, size: int) -> bool:
    """Return whether as many MiB, by one TCP connection, arrive as they were sent."""
    timings = subprocess.Popen(target.argv(*PYTHON, SINK), stdout=subprocess.PIPE, text=True)
    assert timings.stdout
    timings.stdout.readline()
    sent = source.exec(*PYTHON, SOURCE, target.address, str(size)).stdout
    return timings.communicate(timeout=20)[0] == sent


def serve(nodes: Sequence[LabNode], backend: Pod) -> None:
    """Rules as kube-proxy's on each node: a service, a node port, and on the backend's node a host port."""
    for node in nodes:
        host_port = f"tcp dport {HOST_PORT} fib daddr type local dnat to {backend.address}:{TARGET}"
        rules = f"""
            ip saddr {backend.address} ip daddr {SERVICE} meta mark set 0x4000
            ip daddr {SERVICE} tcp dport {SERVICE_PORT} dnat to {backend.address}:{TARGET}
            ip daddr {SERVICE} udp dport {SERVICE_PORT} dnat to {backend.address}:{TARGET}
            tcp dport {NODE_PORT} fib daddr type local meta mark set 0x4000 dnat to {backend.address}:{TARGET}
            {host_port if node is backend.node else ""}
        """
        script = f"""
            table {SERVICE_TABLE} {{
              chain pre {{ type nat hook prerouting priority dstnat; {rules} }}
              chain out {{ type nat hook output priority -100; {rules} }}
              chain post {{ type nat hook postrouting priority srcnat; meta mark 0x4000 masquerade; }}
              chain forwarded {{ type filter hook forward priority filter; ct state invalid counter drop; }}
            }}
        """
        node.space.exec("nft", "-f", "-", stdin=script)


COUNTERS = """
import json
from agent.kernel.bpf import loader
from agent.model.marks import BPF_PINS
from agent.modes.vxlan import maps
pinned = loader.pinned_maps(BPF_PINS, maps.FAMILY)
print(json.dumps({name: count.packets for name, count in maps.counters(pinned).items()}))
"""


def counters(node: LabNode) -> dict[str, int]:
    """The eBPF counters of a node."""
    done = node.space.exec(sys.executable, "-c", COUNTERS, env={"PYTHONPATH": str(REPO)})
    answer: dict[str, int] = json.loads(done.stdout)
    return answer
