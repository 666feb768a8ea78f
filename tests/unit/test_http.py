"""Metrics and health over HTTP on real sockets: an answer for who asks well, patience for nobody."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import pytest

from agent.host.cni_conf_dir import Confs
from agent.host.installer import Installer, Places
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.registry import BUILT_IN
from agent.observe import health
from agent.observe.http import LONGEST, MOST, Http, Page, Pages
from agent.runtime.observable import Observable
from tests.networks import network_of
from tests.support import eventually

LOOPBACK = "127.0.0.1"
LARGE = b"x" * 5_000_000
GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
NETWORK = network_of("pods")
BLOCKS = {NETWORK: (ipaddress.ip_network("10.244.1.0/24"),)}
PROBLEM = Problem("route 10.244.2.0/24", "refused", "look at it")


def pages() -> Pages:
    return {
        "/hello": lambda: Page(b"hello\n"),
        "/large": lambda: Page(LARGE),
        "/bug": lambda: Page(b"x" * (1 // 0)),
    }


class Running:
    def __init__(self, host: str = LOOPBACK, port: int = 0, **times: float) -> None:
        self.problems = PartProblems("http")
        self.refusals = 0
        """How often the page /begun is none yet."""
        self.server = Http((host, port), {**pages(), "/begun": self._begun}, self.problems, **times)
        self.host = host
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.server.run, args=(self.stop,), daemon=True)
        self.thread.start()

    def _begun(self) -> Page:
        self.refusals -= 1
        return Page(b"", status=HTTPStatus.SERVICE_UNAVAILABLE if self.refusals >= 0 else HTTPStatus.OK)

    def wait(self) -> None:
        self.until(lambda: self.server.port)

    def until(self, true: Callable[[], object]) -> None:
        eventually(true)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.server.port), 10)

    def ask(self, request: bytes = GET) -> tuple[bytes, bytes]:
        with self.connect() as client:
            client.sendall(request)
            return read(client)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(5)
        assert not self.thread.is_alive()


def read(client: socket.socket) -> tuple[bytes, bytes]:
    """Headers and body up to the server's end of the connection."""
    chunks = []
    while chunk := client.recv(1 << 16):
        chunks.append(chunk)
    head, _, body = b"".join(chunks).partition(b"\r\n\r\n")
    return head, body


def is_ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@contextlib.contextmanager
def serving(**times: float) -> Iterator[Running]:
    """A server of its own, with other times than an agent's."""
    it = Running(**times)  # type: ignore[arg-type]
    it.wait()
    yield it
    it.end()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    it = Running()
    it.wait()
    yield it
    it.end()


def test_get_and_head(running: Running) -> None:
    head, body = running.ask()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 6" in head
    assert body == b"hello\n"
    assert running.ask(GET.replace(b"GET", b"HEAD")) == (head, b"")
    assert running.ask(GET.replace(b"/hello", b"/hello?a=b"))[1] == b"hello\n"
    assert running.ask(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))[1] == b"hello\n"


@pytest.mark.parametrize(
    ("query", "after", "status"),
    [
        (b"?wait=4", 3, b"200"),
        (b"?wait=400", 3, b"200"),
        (b"?wait=0", 1, b"503"),
        (b"?wait=1", 1000, b"503"),
        (b"", 1, b"503"),
        (b"?wait=", 1, b"503"),
        (b"?wait=-1", 1, b"503"),
        (b"?wait=4&x", 1, b"503"),
    ],
)
def test_an_answer_waits_to_be_a_good_one_if_asked(
    running: Running, query: bytes, after: int, status: bytes
) -> None:
    """As each probe of kubelet's that fails is a warning Event, also of an agent that has only begun."""
    running.refusals = after
    assert running.ask(GET.replace(b"/hello", b"/begun" + query))[0].split()[1] == status
    assert running.ask()[1] == b"hello\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET.replace(b"/hello", b"/"), b"404"),
        (GET.replace(b"/hello", b"/../etc/passwd"), b"404"),
        (GET.replace(b"GET", b"POST"), b"405"),
        (GET.replace(b"GET", b"DELETE"), b"405"),
        (GET.replace(b"/hello", b"/bug"), b"500"),
        (GET.replace(b"/hello", b"hello"), b"400"),
        (GET.replace(b"HTTP/1.1", b"HTTP/9"), b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),  # who speaks TLS
        (bytes(range(128, 256)) + b"\r\n\r\n", b"400"),
        (b"x" * (LONGEST + 100), b"400"),
    ],
)
def test_what_is_wrong_is_told_and_the_next_one_served(running: Running, request_: bytes, status: bytes) -> None:
    assert running.ask(request_)[0].split()[1] == status
    assert running.ask()[1] == b"hello\n"


def test_who_stops_in_the_middle_gets_an_answer(running: Running) -> None:
    with running.connect() as client:
        client.sendall(GET[:10])
        client.shutdown(socket.SHUT_WR)
        assert read(client)[0].split()[1] == b"400"


def test_an_endless_request_is_not_kept(running: Running) -> None:
    with running.connect() as client, pytest.raises(OSError, match=r"reset|[Bb]roken"):
        client.sendall(b"x" * 100_000_000)
    assert running.ask()[1] == b"hello\n"


def test_slow_clients_hold_up_nobody() -> None:
    with serving(within=60.0) as running:
        slow = [running.connect() for _ in range(MOST // 2)]
        for client in slow:
            client.sendall(GET[:5])
        assert running.ask()[1] == b"hello\n"
        assert not select.select(slow, [], [], 0)[0], "it did not wait for the slow ones to be ended"
        for client in slow:
            client.close()


def test_slow_clients_are_ended() -> None:
    with serving(within=0.3) as running:
        ended, trickling = [running.connect() for _ in range(10)], running.connect()
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                trickling.sendall(b"x")
                time.sleep(0.05)
            pytest.fail("a byte now and then buys time")
        assert all(is_ended(client) for client in ended)
        for client in (*ended, trickling):
            client.close()


def test_more_connections_than_allowed_end_the_oldest(running: Running) -> None:
    idle = [running.connect() for _ in range(MOST)]
    assert running.ask()[1] == b"hello\n"
    assert is_ended(idle[0])
    idle[-1].sendall(GET)
    assert read(idle[-1])[1] == b"hello\n"
    for client in idle:
        client.close()


def test_a_flood_leaves_neither_threads_nor_descriptors(running: Running) -> None:
    def many() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    threads, before = threading.active_count(), many()
    for _ in range(5):
        flood = [running.connect() for _ in range(2 * MOST)]
        assert running.ask()[1] == b"hello\n"
        assert threading.active_count() <= threads
        for client in flood:
            client.close()
    assert running.ask()[1] == b"hello\n"
    eventually(lambda: many() <= before)


def test_who_reads_slowly_gets_all_and_who_does_not_read_is_ended(
    running: Running,
) -> None:
    assert running.ask(GET.replace(b"/hello", b"/large"))[1] == LARGE
    with serving(within=0.3) as other, other.connect() as client:
        client.sendall(GET.replace(b"/hello", b"/large"))
        eventually(lambda: other.server._open[True])
        eventually(lambda: not other.server._open[True])
        with contextlib.suppress(ConnectionResetError):
            assert len(read(client)[1]) < len(LARGE)


def test_a_port_in_use_is_a_problem_and_goes_with_it() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        running = Running(port=port, again=0.05)
        running.until(running.problems.get)
        problem = running.problems.get()["listen"]
        assert problem.where == f"--listen {LOOPBACK}:{port}"
        assert "in use" in problem.what
    running.wait()
    running.until(lambda: not running.problems.get())
    assert running.ask()[1] == b"hello\n"
    running.end()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_an_ipv6_wildcard_serves_ipv4_too() -> None:
    running = Running("::")
    running.wait()
    running.host = LOOPBACK
    assert running.ask()[1] == b"hello\n"
    running.end()


def test_alive() -> None:
    go = threading.Event()
    threads = [threading.Thread(target=go.wait, name=name, args=(10,)) for name in ("a", "b")]
    threads[0].start()
    assert health.alive(threads[:1], None) == Page(b"ok\n")
    told = health.alive(threads, None)
    assert (told.status, told.body) == (503, b"b has ended\n")
    go.set()
    threads[0].join()


def test_ready_or_why_not(tmp_path: Path) -> None:
    confs = Confs(frozenset({NETWORK, network_of("other", bridge="b")}))
    told = health.ready(NodeStatus(problems=(PROBLEM,)), confs, None)
    assert told.status == 503
    assert told.body.decode().splitlines() == [
        "the datastore has not been read completely yet",
        "network other (host-gw) is not prepared",
        "network pods (host-gw) is not prepared",
        str(PROBLEM),
    ]
    status = NodeStatus(synced=True, blocks=BLOCKS, problems=(PROBLEM,))
    assert b"network other" in health.ready(status, confs, None).body
    confs = replace(confs, networks=frozenset({NETWORK}))
    assert health.ready(status, confs, None) == Page(b"ok\n"), "a problem alone does not make a node unready"
    places = Places(tmp_path, tmp_path / "template", tmp_path, tmp_path)
    installer = Installer(places, Observable(status), PartProblems("installer"), modes=BUILT_IN)
    assert health.ready(status, confs, installer).body == f"the conflist is not installed\n{PROBLEM}\n".encode()
    places.conflist.touch()
    assert health.ready(status, confs, installer).status == 200
