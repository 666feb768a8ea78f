"""Health and metrics over a real network: pods can't take what kubelet's probes need."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from http import HTTPStatus
from pathlib import Path

from agent.model.problem_board import PartProblems
from agent.observe import health
from agent.observe.http import MOST, Http, Page
from tests.netns.node import Host, Pod, command
from tests.support import eventually

PORT = 9480
GET = b"GET /healthz HTTP/1.1\r\n\r\n"
CROWD = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
crowd = [socket.create_connection(("192.0.2.1", 9480), 10) for _ in range(int(sys.argv[1]))]
print("here", flush=True)
sys.stdin.read()
"""
FLOOD = """
import socket
while True:
    try:
        with socket.create_connection(("192.0.2.1", 9480), 10) as client:
            client.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
    except OSError:
        pass
"""


def probe(client: socket.socket) -> bytes:
    client.sendall(GET)
    return b"".join(iter(lambda: client.recv(4096), b"")).split()[1]


def test_no_crowd_of_a_pod_cuts_kubelets_probes(tmp_path: Path) -> None:
    host, pod = Host(tmp_path), Pod("c1")
    host.add(pod)
    made = threading.Event()

    def large() -> Page:
        made.set()
        return Page(b"x" * 100_000)

    pages = {"/healthz": lambda: Page(b"ok\n"), "/metrics": large}
    server, stop = Http(("192.0.2.1", PORT), pages, PartProblems("http")), threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    eventually(lambda: server.port)
    inside = ["nsenter", f"--net={pod.path}", sys.executable, "-c"]
    try:
        for address in ("192.0.2.1", "127.0.0.1"):  # kubelet asks for the node's address, or for the loopback
            with socket.create_connection((address, PORT), 10) as early:
                crowd = subprocess.Popen(
                    [*inside, CROWD, str(MOST + 10)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                assert crowd.stdout
                assert crowd.stdout.readline() == b"here\n"
                assert probe(early) == b"200", "it was there before the crowd"
                with socket.create_connection((address, PORT), 10) as late:
                    assert probe(late) == b"200"
                crowd.communicate()
        floods = [subprocess.Popen([*inside, FLOOD]) for _ in range(3)]
        assert made.wait(30)
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", PORT), 10) as client:
                assert probe(client) == b"200"
        for flood in floods:
            flood.kill()
            flood.wait()
    finally:
        stop.set()
        thread.join()


def test_an_agent_whose_node_has_another_address_now_is_started_again(tmp_path: Path) -> None:
    """Probes come by loopback, where it answers all the same, while Prometheus asks at the new address."""
    Host(tmp_path).close()  # makes eth0
    assert health.alive([], ("192.0.2.1", PORT)) == Page(b"ok\n")
    command("ip", "address", "del", "192.0.2.1/24", "dev", "eth0")
    page = health.alive([], ("192.0.2.1", PORT))
    assert page.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert page.body == b"the listen address 192.0.2.1 is on no interface of this node\n"
    for anywhere in ("0.0.0.0", "::", "127.0.0.1"):  # noqa: S104 - not listened on
        assert health.alive([], (anywhere, PORT)) == Page(b"ok\n")
