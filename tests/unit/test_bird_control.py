"""The control socket's protocol against a server that says what BIRD says, and worse; log lines; health."""

from __future__ import annotations

import collections
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from agent.modes.ipip.bird import control, daemon, logs, restart_guard, session_checks
from agent.modes.ipip.bird.control import Control, ControlError
from agent.modes.ipip.bird.daemon import Files
from agent.modes.ipip.bird.restart_guard import Recovery
from agent.modes.ipip.bird.types import BirdConfig, BirdError, BirdStatus, BirdTimes, Peer, Session, State
from tests.support import eventually

GREETING = "0001 BIRD 2.0.12 ready.\n"
PROTOCOLS = """2002-Name       Proto      Table      State  Since         Info
1002-testcni_kernel Kernel     master4    up     21:16:57.908  
1006-  Channel ipv4
     State:          UP
     Routes:         0 imported, 12 exported, 0 preferred
 
1002-node_a_very_long_name_that_goes_over_the_column BGP        ---        up     2026-11-24    Established   
1006-  Description:    node a
   BGP state:          Established
     Neighbor address: 192.0.2.2
   Channel ipv4
     Routes:         3 imported, 1 filtered, 2 exported, 3 preferred
 
1002-node_b BGP        ---        start  21:16:57      Active        Socket: Connection refused
1006-  BGP state:          Active
     Last error:       Socket: Connection refused
 
1002-node_c BGP        ---        down   21:16:57      
1006-  BGP state:          Down
 
0000 
"""  # noqa: W291, W293 - as BIRD writes it


@contextmanager
def server(
    folder: Path, *replies: str, greeting: str = GREETING, said: list[str] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """A socket that greets and answers each command by the next reply; what it heard. `said` gets what it sent."""
    path, heard = folder / "ctl", list[str]()
    said = [] if said is None else said
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("r") as lines:
            connection.sendall(greeting.encode())
            said.append(greeting)
            for reply in replies:
                heard.append(lines.readline().strip())
                connection.sendall(reply.encode())
                said.append(reply)
            lines.readline()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield path, heard
    listener.close()


def test_it_only_looks_unless_it_must_change(tmp_path: Path) -> None:
    with server(tmp_path, "0016 Access restricted\n", "0000 \n") as (path, heard), Control(path) as it:
        assert it.version == "2.0.12"
        assert it.pid == os.getpid()
        assert it.ask("show nothing").code == 0
    assert heard == ["restrict", "show nothing"]


def test_configure(tmp_path: Path) -> None:
    reply = "0002-Reading configuration from /x/bird.conf\n+log line\n0003 Reconfigured\n"
    with server(tmp_path, reply) as (path, heard), Control(path, change=True) as it:
        it.configure()
    assert heard == ["configure"]


def test_a_refused_configuration_is_told(tmp_path: Path) -> None:
    reply = "0002-Reading configuration from /x/bird.conf\n8002 /x/bird.conf:3:1 syntax error\n"
    refused = pytest.raises(BirdError, match="3:1 syntax error")
    with server(tmp_path, reply) as (path, _heard), Control(path, change=True) as it, refused:
        it.configure()


def test_protocols_and_sessions(tmp_path: Path) -> None:
    with server(tmp_path, "0016 Access restricted\n", PROTOCOLS) as (path, _heard), Control(path) as it:
        found = it.protocols()
    assert [p.name for p in found if not p.bgp] == ["testcni_kernel"]
    assert found[0].exported == 12
    names = {"node_a_very_long_name_that_goes_over_the_column": "a", "node_b": "b"}
    assert control.sessions(found, names) == (
        Session("a", State.ESTABLISHED, 3, 2),
        Session("b", State.ACTIVE, error="Socket: Connection refused"),
        Session("node_c", State.DOWN),
    )
    status = BirdStatus(sessions=control.sessions(found, names))
    assert {state: n for state, n in status.by_state().items() if n} == {
        State.ESTABLISHED: 1,
        State.ACTIVE: 1,
        State.DOWN: 1,
    }


def test_counts_and_busy(tmp_path: Path) -> None:
    count = "1007-12 of 13 routes for 12 networks in table master4\n"
    count += "0014 Total: 12 of 13 routes for 12 networks in 1 tables\n"
    busy = "1000-BIRD 2.0.12\n1011-Router ID is 192.0.2.1\n0024-Graceful restart recovery in progress\n0013 up\n"
    replies = ("0016 Access restricted\n", count, busy, "0013 Daemon is up and running\n")
    with server(tmp_path, *replies) as (path, _heard), Control(path) as it:
        assert it.route_count() == 12
        assert it.is_busy()
        assert not it.is_busy()


@pytest.mark.parametrize(
    "greeting", ["", "hello\n", "0001 FRR 9 ready.\n", "0001-BIRD 2.0.12", " odd\n", "\x00" * 99]
)
def test_who_is_no_bird_is_told(tmp_path: Path, greeting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tmp_path, greeting=greeting) as (path, _heard), pytest.raises(ControlError):
        Control(path, timeout=0.2)


def test_who_answers_nothing_or_without_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tmp_path, "") as (path, _heard), pytest.raises(ControlError, match=r"not answered within 0\.2 s"):
        Control(path, timeout=0.2)
    (tmp_path / "ctl").unlink()
    monkeypatch.setattr(control, "LONGEST", 1000)
    with server(tmp_path, "x" * 9000) as (path, _heard), pytest.raises(ControlError, match="no end"):
        Control(path, timeout=0.2)
    with pytest.raises(ControlError, match="No such file"):
        Control(tmp_path / "none")


def test_an_answer_counts_though_nobody_could_look_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with server(tmp_path, "0013 up\n", said=said) as (path, _heard):
        monkeypatch.setattr(control, "time", Late(said))
        with Control(path, change=True, timeout=0.2) as it:
            assert it.ask("show status").text == "up"


class Late:
    """Stands for the module `time`: the second look for a reply is 0.1 s late, and the reply is there."""

    def __init__(self, said: list[str]) -> None:
        self._said = said
        self._asked = 0

    def monotonic(self) -> float:
        reply = self._asked // 2
        self._asked += 1
        eventually(lambda: len(self._said) > reply)
        return self._asked * 0.3


def test_a_command_is_one_line(tmp_path: Path) -> None:
    with server(tmp_path) as (path, _heard), Control(path, change=True) as it, pytest.raises(ControlError):
        it.ask("show status\ndown")


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("2026-11-24 21:04:49.507 <INFO> Started", logging.INFO, "Started"),
        ("bird: 2026-11-24 21:04:49.507 <RMT> n: Received: x", logging.WARNING, "n: Received: x"),
        ("21:04:49 <ERR> filters, line 57: ~ applied", logging.ERROR, "filters, line 57: ~ applied"),
        ("2026-11-24 21:04:49.507 <AUTH> n: Invalid password", logging.ERROR, "n: Invalid password"),
        ("2026-11-24 21:04:49.507 <FATAL> Shutdown completed", logging.INFO, "Shutdown completed"),
        ("2026-11-24 21:04:49.507 <BUG> x", logging.CRITICAL, "x"),
        ("Segmentation fault", logging.WARNING, "Segmentation fault"),
        ("", logging.WARNING, ""),
    ],
)
def test_log_lines(line: str, level: int, text: str) -> None:
    assert logs.parse(line) == (level, text)


def test_logs_come_through_a_pipe_that_outlives_its_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "log"
    path.write_text("no pipe")
    first, second = logs.open_pipe(path), logs.open_pipe(path)
    os.write(first, b"2026-11-24 21:04:49.507 <INFO> while nobody read\n")
    os.close(first)
    stop = threading.Event()
    reader = threading.Thread(target=logs.follow, args=(second, stop))
    reader.start()
    os.write(second, b"<WARN> half")
    os.write(second, b" a line\n")
    eventually(lambda: len(caplog.records) == 2)
    stop.set()
    reader.join()
    os.close(second)
    assert [r.getMessage() for r in caplog.records] == ["bird: while nobody read", "bird: half a line"]


def test_a_full_pipe_holds_nobody_up(tmp_path: Path) -> None:
    fd = logs.open_pipe(tmp_path / "log")
    with pytest.raises(BlockingIOError):
        collections.deque(iter(lambda: os.write(fd, b"x" * 4096), 0), maxlen=0)
    os.close(fd)


def test_recovery_ends_when_the_old_routes_are_known_again() -> None:
    one, two = IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")
    it = Recovery(frozenset({one, two}), 100.0)
    assert not it.is_over(frozenset({one}), 101.0, settled=False)
    assert it.is_over(frozenset({one, two}), 101.0, settled=False)
    assert not it.is_over(frozenset(), 102.0, settled=True)
    assert not it.is_over(frozenset(), 103.0, settled=False)
    assert not it.is_over(frozenset(), 104.0, settled=True)
    assert not it.is_over(frozenset(), 104.0 + restart_guard.SETTLED, settled=True), "counted from the last unrest"
    assert it.is_over(frozenset(), 104.1 + restart_guard.SETTLED, settled=True)
    assert it.is_over(frozenset(), 100.1 + restart_guard.LONGEST, settled=False)


def test_routes(tmp_path: Path) -> None:
    table = (
        "1007-Table master4:\n"
        " 10.244.1.0/24        unreachable [testcni_blocks 21:16:57.908] * (200)\n"
        " 10.244.2.0/24        unicast [node_two 21:16:58.1] * (100) [i]\n"
        " \tvia 192.0.2.2 on eth0\n"
        "                      unicast [node_three 21:16:58.1] (100) [i]\n"
        "0000 \n"
    )
    with server(tmp_path, "0016 Access restricted\n", table) as (path, _heard), Control(path) as it:
        assert it.routes() == {IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")}


def test_a_line_that_can_not_be_read_costs_only_itself(tmp_path: Path) -> None:
    many = "9" * 5000
    shown = PROTOCOLS.replace("3 imported", f"{many} imported")
    shown = re.sub("1002-node_b .*", "1002-node_b BGP ---", shown)
    table = "1007- 10.244.1.7/24  x\n 999.1.1.1/40  x\n 10.244.2.0/24        unicast\n0000 \n"
    replies = ("0016 Access restricted\n", shown, table, f"1007-{many} of 13 routes for 12\n0014 Total\n")
    with server(tmp_path, *replies) as (path, _heard), Control(path) as it:
        found = [(protocol.name.partition("_very")[0], protocol.imported) for protocol in it.protocols()]
        assert found == [("testcni_kernel", 0), ("node_a", 0), ("node_c", 0)]
        assert it.routes() == {IPv4Network("10.244.2.0/24")}
        with pytest.raises(ControlError, match="no count"):
            it.route_count()


@pytest.mark.parametrize("text", ["9" * 30, "9" * 5000, "-1", "0", "x", "", "\udcff"])
def test_a_pid_file_that_names_no_bird_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "bird.pid").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert daemon.find(Files(tmp_path)) is None


def test_a_pipe_in_place_of_the_pid_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bird.pid")
    assert daemon.find(Files(tmp_path)) is None


def test_a_configuration_that_is_no_text_is_an_error_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "bird.conf.standby").write_bytes(b"\xff")
    with pytest.raises(BirdError, match="standby"):
        daemon.restore(Files(tmp_path))


def test_a_missing_session_is_a_problem_when_it_has_had_its_time() -> None:
    config = BirdConfig("one", IPv4Address("192.0.2.1"), peers=(Peer("b", IPv4Address("192.0.2.2")),))
    missing = (Session("b", State.IDLE, error="BGP Error: Bad peer AS"),)
    it = session_checks.Health()
    assert it.problems(config, missing, 0) == ()
    assert it.waiting
    (told,) = it.problems(config, missing, BirdTimes().session)
    assert str(told) == (
        "BGP session with node b (192.0.2.2): is missing: BGP Error: Bad peer AS; "
        "give both sides the other's AS number"
    )
    assert it.problems(config, (Session("b", State.ESTABLISHED),), 99) == ()
    assert not it.waiting
    assert it.problems(config, missing, 100) == (), "it is given its time again"
    (silent,) = it.problems(config, (Session("b", State.CONNECT),), 200)
    assert "password" in silent.remedy


def test_a_fifo_among_the_files_of_bird_is_not_waited_for(tmp_path: Path) -> None:
    files = daemon.Files(tmp_path)
    os.mkfifo(files.pid)
    os.mkfifo(files.standby)
    assert daemon.find(files) is None
    with pytest.raises(OSError, match="is not a regular file"):
        daemon.restore(files)
    files.standby.unlink()
    files.standby.write_bytes(b"\xff")
    with pytest.raises(BirdError, match=r"bird\.conf\.standby"):
        daemon.restore(files)
