"""The agent's socket: one request, one answer, whatever the client does."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.cni import protocol
from agent.cni.protocol import Call
from agent.cni.server import IDLE_WORKERS, Server
from agent.errors import CniError, Code
from agent.kernel.netns import NetnsLostError
from tests.support import eventually

Answer = Callable[[Call], dict[str, Any]]


def serve(tmp_path: Path, answer: Answer, **times: float) -> Server:
    server = Server(tmp_path / "agent.sock", answer, **times)
    server.start()
    return server


def ask(tmp_path: Path, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
    request = json.dumps({"protocol": 1, "command": "ADD", **fields}).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "agent.sock"))
        socket.send_fds(client, [request[:1]], list(fds))
        client.sendall(request[1:])
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            doc: dict[str, Any] = json.load(answer)
    return doc


def fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_call_comes_whole_and_its_descriptor_with_it(tmp_path: Path) -> None:
    seen: list[Call] = []

    def answer(call: Call) -> dict[str, Any]:
        seen.append(call)
        return {"same": call.netns_fd is not None and os.path.sameopenfile(call.netns_fd, file.fileno())}

    serve(tmp_path, answer)
    with (tmp_path / "x").open("w") as file:
        fields = {"containerID": "c", "ifname": "eth0", "netns": "/n", "args": 'a"\n\x01é', "config": "{}"}
        assert ask(tmp_path, (file.fileno(),), **fields) == {"same": True}
    (call,) = seen
    assert (call.command, call.container_id, call.ifname, call.netns, call.args, call.config) == (
        "ADD", "c", "eth0", "/n", 'a"\n\x01é', "{}",
    )  # fmt: skip


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    serve(tmp_path, lambda _call: {})
    ask(tmp_path)
    before = fds()
    with (tmp_path / "x").open("w") as file:
        for _ in range(20):
            ask(tmp_path, (file.fileno(),) * 3)
    assert fds() <= before + 1


@pytest.mark.parametrize(
    ("config", "version"), [('{"cniVersion": "0.4.0"}', "0.4.0"), ('{"cniVersion": "9"}', "1.1.0"), ("{", "1.1.0")]
)
def test_errors_are_told_in_the_netconfs_version(tmp_path: Path, config: str, version: str) -> None:
    def answer(_call: Call) -> dict[str, Any]:
        raise CniError(Code.INVALID_CONFIG, "what", "how to mend")

    serve(tmp_path, answer)
    assert ask(tmp_path, config=config) == {
        "cniVersion": version, "code": 7, "msg": "what", "details": "how to mend",
    }  # fmt: skip


def test_a_bug_is_an_answer_too(tmp_path: Path) -> None:
    def answer(call: Call) -> dict[str, Any]:
        return {"": 1 // len(call.container_id)}

    serve(tmp_path, answer)
    told = ask(tmp_path)
    assert (told["code"], "ZeroDivisionError" in told["msg"]) == (999, True)
    assert ask(tmp_path, containerID="x") == {"": 1}


def test_a_thread_that_is_lost_in_a_namespace_answers_and_ends(tmp_path: Path) -> None:
    lost: list[threading.Thread] = []

    def answer(call: Call) -> dict[str, Any]:
        if call.command == "ADD":
            lost.append(threading.current_thread())
            raise NetnsLostError("no way back")
        return {}

    serve(tmp_path, answer)
    for _ in range(3):
        assert ask(tmp_path)["code"] == Code.TRY_AGAIN
    assert ask(tmp_path, command="STATUS") == {}
    for thread in lost:
        thread.join(5)
        assert not thread.is_alive()


def test_slow_calls_hold_up_nobody_and_threads_go_when_idle(tmp_path: Path) -> None:
    go = threading.Event()

    def answer(call: Call) -> dict[str, Any]:
        return {"waited": go.wait(60)} if call.command == "ADD" else {}

    others = set(threading.enumerate())  # those of other tests' servers have not ended yet
    serve(tmp_path, answer)
    waiting = [threading.Thread(target=ask, args=(tmp_path,)) for _ in range(60)]
    for thread in waiting:
        thread.start()
    began = time.monotonic()
    assert ask(tmp_path, command="STATUS") == {}
    assert time.monotonic() - began < 30
    go.set()
    for thread in waiting:
        thread.join()
    for _ in range(3):
        ask(tmp_path, command="STATUS")
    workers = [thread for thread in {*threading.enumerate()} - others if thread.name.startswith("call-")]
    assert len(workers) <= 60
    assert IDLE_WORKERS < 60


def test_a_crowd_of_calls_is_served_where_no_more_threads_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the kubelet's podPidsLimit: after a burst nobody took calls any more, and all probes were well."""
    start, go, at_work = threading.Thread.start, threading.Event(), threading.Semaphore(0)

    def answer(_call: Call) -> dict[str, Any]:
        at_work.release()
        go.wait()
        return {}

    def limited(thread: threading.Thread) -> None:
        if thread.name in ("call-4", "call-5"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    serve(tmp_path, answer)
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(ask, tmp_path) for _ in range(8)]
        for _ in range(3):
            assert at_work.acquire(timeout=10)
        go.set()
        assert [call.result(10) for call in asked] == [{}] * 8
    monkeypatch.undo()
    go.clear()
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(ask, tmp_path) for _ in range(8)]
        for _ in range(8 + 8 - 3):
            assert at_work.acquire(timeout=10)
        go.set()
        assert [call.result(10) for call in asked] == [{}] * 8


def test_a_server_that_got_no_thread_at_all_gets_one_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refused)
        server = serve(tmp_path, lambda _call: {})
    server.keep()
    assert ask(tmp_path) == {}


def test_stop_finishes_what_is_at_work_and_takes_no_more(tmp_path: Path) -> None:
    began, answers = threading.Event(), []

    def answer(_call: Call) -> dict[str, Any]:
        began.set()
        time.sleep(0.3)
        return {"done": True}

    server = serve(tmp_path, answer)
    client = threading.Thread(target=lambda: answers.append(ask(tmp_path)))
    client.start()
    began.wait(5)
    assert server.stop(5)
    client.join()
    assert answers == [{"done": True}]
    assert not (tmp_path / "agent.sock").exists()


def test_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    began, end = threading.Event(), threading.Event()

    def answer(_call: Call) -> dict[str, Any]:
        began.set()
        end.wait(10)
        return {}

    server = serve(tmp_path, answer)
    client = threading.Thread(target=ask, args=(tmp_path,))
    client.start()
    began.wait(5)
    assert not server.stop(0.1)
    end.set()
    client.join()


def test_what_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "REQUEST_LIMIT", 1000)
    serve(tmp_path, lambda _call: {})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "agent.sock"))
        client.sendall(b"x" * 2000)
        with client.makefile("rb") as answer:
            assert json.load(answer)["code"] == Code.DECODING_FAILURE


def test_a_stale_socket_is_replaced_and_the_new_one_is_for_root_only(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "agent.sock"))
    stale.close()
    serve(tmp_path, lambda _call: {})
    assert ask(tmp_path) == {}
    assert (tmp_path / "agent.sock").stat().st_mode & 0o777 == 0o600


def connect(tmp_path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(8)
    client.connect(str(tmp_path / "agent.sock"))
    return client


def is_ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("call-")]


def test_a_thousand_idle_clients_hold_up_no_call_and_no_thread(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    others, before = len(workers()), fds()
    serve(tmp_path, lambda _call: {})
    idle = [connect(tmp_path) for _ in range(1000)]
    with connect(tmp_path) as client:
        client.sendall(json.dumps({"protocol": 1, "command": "STATUS"}).encode())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"{}"
    assert len(workers()) - others <= IDLE_WORKERS
    assert is_ended(idle[0]), "the oldest goes first"
    idle[-1].setblocking(False)
    assert not is_ended(idle[-1]), "the newest may still send"
    for client in idle:
        client.close()
    eventually(lambda: fds() <= before + 2)  # the listener and its epoll


def test_who_sends_a_byte_now_and_then_has_one_deadline(tmp_path: Path) -> None:
    serve(tmp_path, lambda _call: {}, request_within=0.3)
    with connect(tmp_path) as client, pytest.raises(OSError, match=r"[Bb]roken|reset"):
        trickle(client, 8)
    assert ask(tmp_path, command="STATUS") == {}


def test_who_takes_no_answer_costs_no_other_call(tmp_path: Path) -> None:
    served = threading.Event()

    def answer(call: Call) -> dict[str, Any]:
        served.set()
        return {"x": "y" * 5_000_000} if call.command == "INFO" else {}

    serve(tmp_path, answer, answer_within=0.2)
    with connect(tmp_path) as client:
        client.sendall(json.dumps({"protocol": 1, "command": "INFO"}).encode())
        client.shutdown(socket.SHUT_WR)
        assert served.wait(5)
        assert ask(tmp_path, command="STATUS") == {}
        taken = b"".join(iter(lambda: _chunk(client), b""))
    assert len(taken) < 5_000_000


def trickle(client: socket.socket, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client.sendall(b" ")
        time.sleep(0.01)


def _chunk(client: socket.socket) -> bytes:
    time.sleep(0.05)  # slower than the deadline allows
    try:
        return client.recv(1 << 16)
    except ConnectionResetError:
        return b""
