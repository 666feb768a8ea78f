"""The plugin as a runtime sees it: the real binary, and a unix socket that plays the agent."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.cni import protocol
from agent.cni.journal import Journal
from agent.cni.protocol import Call
from agent.errors import CniError, Code

SOURCE = Path(__file__).parents[2] / "cni-bin"
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
PATIENCE_MS = 100  # of the second build, so that a test need not wait for minutes
RESULT = b'{"cniVersion": "1.0.0",\n "ips": [{"address": "10.244.1.2/24"}]}'
TRY_AGAIN, NOT_AVAILABLE = 11, 50


@dataclass(frozen=True)
class Builds:
    plugin: Path
    hasty: Path
    fuzzer: Path


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    root = tmp_path_factory.mktemp("build")

    def make(out: str, *arguments: str) -> Path:
        subprocess.run(["make", "-s", "-C", SOURCE, f"OUT={root / out}", *arguments], check=True)
        return root / out

    with ThreadPoolExecutor() as pool:
        plain = pool.submit(make, "plain")
        hasty = pool.submit(make, "hasty", f"CPPFLAGS=-DPATIENCE_MS={PATIENCE_MS}")
        fuzzer = pool.submit(make, "fuzz", "fuzz")
        return Builds(plain.result() / "testcni", hasty.result() / "testcni", fuzzer.result() / "fuzz_testcni")


@dataclass
class Agent:
    """Answers each connection with the next of `answers`, the last one for ever; None leaves it hanging."""

    path: Path
    answers: list[bytes | None] = field(default_factory=lambda: [RESULT])
    requests: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    inodes: list[int | None] = field(default_factory=list)

    def start(self, after: float = 0) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._hanging: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, args=[after])
        if not after:
            self._bind()
        self._thread.start()

    def stop(self) -> None:
        for connection in self._hanging:
            connection.close()
        self._thread.join(0.01)  # a late agent that is not there yet
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()

    def _bind(self) -> None:
        self._listener.bind(str(self.path))
        self._listener.listen(128)

    def _run(self, after: float) -> None:
        if after:
            time.sleep(after)
            self._bind()
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        data, fds, _flags, _address = socket.recv_fds(connection, 1 << 16, 4)
        while chunk := connection.recv(1 << 16):
            data += chunk
        self.inodes.append(os.fstat(fds[0]).st_ino if fds else None)
        for fd in fds:
            os.close(fd)
        self.raw.append(data)
        self.requests.append(json.loads(data.decode("utf-8", "surrogateescape")))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            self._hanging.append(connection)
            return
        with connection, suppress(BrokenPipeError):  # one that is too long is not read to its end
            connection.sendall(answer)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "agent.sock")
    agent.start()
    yield agent
    agent.stop()


@dataclass
class Plugin:
    binary: Path
    tmp_path: Path

    def conf(self, **members: object) -> bytes:
        base = {"cniVersion": "1.0.0", "name": "net", "type": "testcni", "agentWait": 0.2}
        places = {"socket": str(self.tmp_path / "agent.sock"), "stateDir": str(self.tmp_path / "state")}
        return json.dumps(base | places | members).encode()

    def run(
        self, command: str | None, conf: bytes | None = None, env: Mapping[str, str | bytes] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        variables: dict[str, str | bytes] = {
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        }
        if command is not None:
            variables["CNI_COMMAND"] = command
        given = self.conf() if conf is None else conf
        done = subprocess.run(
            [self.binary],
            input=given,
            env=variables | dict(env or {}),
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert done.stderr == b""
        return done

    def fails(
        self, command: str | None, conf: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> CniError:
        done = self.run(command, conf, env)
        doc = json.loads(done.stdout)
        assert set(doc) == {"cniVersion", "code", "msg", "details"}
        assert done.returncode == doc["code"]
        assert doc["cniVersion"] in VERSIONS
        return CniError(Code(doc["code"]), doc["msg"], doc["details"])

    @property
    def deletes(self) -> Path:
        return self.tmp_path / "state" / "deletes"


@pytest.fixture
def plugin(builds: Builds, tmp_path: Path) -> Plugin:
    return Plugin(builds.plugin, tmp_path)


def test_binary_is_static_and_small(builds: Builds) -> None:
    image = builds.plugin.read_bytes()
    assert image.startswith(b"\x7fELF")
    kinds = {int.from_bytes(image[at : at + 4], "little") for at in _program_headers(image)}
    assert 1 in kinds  # PT_LOAD: these are the headers indeed
    assert not kinds & {2, 3}  # neither PT_DYNAMIC nor PT_INTERP
    assert len(image) < 1 << 20


def _program_headers(image: bytes) -> range:
    start, size, count = (int.from_bytes(image[at : at + n], "little") for at, n in ((32, 8), (54, 2), (56, 2)))
    return range(start, start + size * count, size)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_request_has_the_whole_call(plugin: Plugin, agent: Agent, command: str) -> None:
    conf = plugin.conf(subnet="10.244.0.0/16")
    env = {"CNI_NETNS": "/proc/self/ns/net", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=p"}
    assert plugin.run(command, conf, env).stdout == RESULT
    assert agent.requests == [
        {
            "protocol": protocol.PROTOCOL,
            "command": command,
            "containerID": "c1",
            "netns": "/proc/self/ns/net",
            "netnsError": "",
            "ifname": "eth0",
            "args": "IgnoreUnknown=1;K8S_POD_NAME=p",
            "path": "/opt/cni/bin",
            "config": conf.decode(),
        }
    ]
    assert protocol.decode(agent.raw[0], None).command == command
    assert agent.inodes == [Path("/proc/self/ns/net").stat().st_ino]


def test_no_netns_is_no_error(plugin: Plugin, agent: Agent) -> None:
    plugin.run("GC")
    assert (agent.requests[0]["netns"], agent.requests[0]["netnsError"], agent.inodes[0]) == ("", "", None)


def test_netns_that_is_gone_is_told(plugin: Plugin, agent: Agent) -> None:
    plugin.run("DEL", env={"CNI_NETNS": "/var/run/netns/gone"})
    assert agent.requests[0]["netns"] == "/var/run/netns/gone"
    assert agent.requests[0]["netnsError"] == "No such file or directory"
    assert agent.inodes == [None]


def test_netns_that_is_a_fifo_does_not_hang(plugin: Plugin, agent: Agent) -> None:
    fifo = plugin.tmp_path / "fifo"
    os.mkfifo(fifo)
    assert plugin.run("ADD", env={"CNI_NETNS": str(fifo)}).stdout == RESULT
    assert agent.inodes == [fifo.stat().st_ino]


ODD = 'a"b\\c\nd\te\x01\x1f\x7fü€😀\u2028;é='


def test_odd_characters_arrive_intact(plugin: Plugin, agent: Agent) -> None:
    plugin.run("ADD", env={"CNI_ARGS": ODD, "CNI_CONTAINERID": ODD, "CNI_IFNAME": ODD, "CNI_NETNS": ODD})
    request = agent.requests[0]
    assert [request[key] for key in ("args", "containerID", "ifname", "netns")] == [ODD] * 4


def test_bytes_that_are_not_utf8_arrive_as_they_are(plugin: Plugin, agent: Agent) -> None:
    plugin.run("ADD", env={"CNI_ARGS": b"\xff\xfe"})
    assert b'"args":"\xff\xfe"' in agent.raw[0]


def test_netconf_of_a_mebibyte_arrives(plugin: Plugin, agent: Agent) -> None:
    conf = plugin.conf()
    conf += b"\n" * ((1 << 20) - len(conf))
    assert plugin.run("ADD", conf).returncode == 0
    assert agent.requests[0]["config"].encode() == conf


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b'{"cniVersion": "1.0.0", "code": 7, "msg": "m"}', 7),
        (b'{"code": 255}', 255),
        (b'{"code": 999, "msg": "a bug"}', 1),
        (b'{"code": 256}', 1),
        (b'{"code": 0}', 1),
        (b'{"code": 7.5}', 1),
        (b'{"code": "7"}', 0),
        (b'{"ips": [{"code": 7}]}', 0),
        (b'{"ips": 1}\n', 0),
    ],
)
def test_answer_is_printed_verbatim(plugin: Plugin, agent: Agent, answer: bytes, status: int) -> None:
    agent.answers = [answer]
    done = plugin.run("ADD")
    assert (done.returncode, done.stdout) == (status, answer)


@pytest.mark.parametrize("answer", [b"{}", b" { } \n"])
def test_empty_answer_prints_nothing(plugin: Plugin, agent: Agent, answer: bytes) -> None:
    agent.answers = [answer]
    done = plugin.run("CHECK")
    assert (done.returncode, done.stdout) == (0, b"")


def test_long_answer_is_whole(plugin: Plugin, agent: Agent) -> None:
    agent.answers = [json.dumps({"x": "y" * (4 << 20)}).encode()]
    assert plugin.run("ADD").stdout == agent.answers[0]


def test_add_waits_for_an_agent_that_comes_late(plugin: Plugin) -> None:
    late = Agent(plugin.tmp_path / "agent.sock")
    late.start(after=0.3)
    began = time.monotonic()
    done = plugin.run("ADD", plugin.conf(agentWait=5))
    took = time.monotonic() - began
    late.stop()
    assert done.stdout == RESULT
    assert 0.25 < took < 1


@pytest.mark.parametrize("listening", [False, True])
def test_add_gives_up_after_agent_wait(plugin: Plugin, listening: bool) -> None:
    path = plugin.tmp_path / "agent.sock"
    if listening:  # what a killed agent leaves
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    began = time.monotonic()
    error = plugin.fails("ADD")
    assert 0.2 <= time.monotonic() - began < 0.6
    assert error.code == TRY_AGAIN
    assert str(path) in error.msg
    assert ("Connection refused" if listening else "No such file or directory") in error.msg
    assert "DaemonSet" in error.details


@pytest.mark.parametrize("cut", [b"", b'{"cniVersion": "1.0.0", "ips": [', b"{} {}", b"[]"])
def test_add_is_repeated_when_the_agent_dies_in_the_middle(plugin: Plugin, agent: Agent, cut: bytes) -> None:
    agent.answers = [cut, cut, RESULT]
    assert plugin.run("ADD", plugin.conf(agentWait=5)).stdout == RESULT
    assert len(agent.requests) == 3


def test_add_fails_when_the_agent_dies_again_and_again(plugin: Plugin, agent: Agent) -> None:
    agent.answers = [b'{"x":']
    assert plugin.fails("ADD").code == TRY_AGAIN
    assert len(agent.requests) > 2


def test_answer_without_end_is_refused(plugin: Plugin, agent: Agent) -> None:
    agent.answers = [b" " * (17 << 20)]
    assert plugin.fails("CHECK").code == Code.IO_FAILURE


@pytest.mark.parametrize(("command", "code"), [("ADD", TRY_AGAIN), ("STATUS", NOT_AVAILABLE)])
def test_agent_that_hangs_is_left(builds: Builds, tmp_path: Path, agent: Agent, command: str, code: int) -> None:
    agent.answers = [None]
    began = time.monotonic()
    error = Plugin(builds.hasty, tmp_path).fails(command)
    assert time.monotonic() - began < 1
    assert error.code == code
    assert f"within {PATIENCE_MS * (2 if command == 'ADD' else 1) / 1000:g} s" in error.msg


def test_del_of_an_agent_that_hangs_is_journaled(builds: Builds, tmp_path: Path, agent: Agent) -> None:
    agent.answers = [None]
    hasty = Plugin(builds.hasty, tmp_path)
    assert hasty.run("DEL").returncode == 0
    assert len(list(hasty.deletes.iterdir())) == 1


def test_full_backlog_is_waited_for(plugin: Plugin) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as other:
        busy.bind(str(plugin.tmp_path / "agent.sock"))
        busy.listen(0)
        other.connect(busy.getsockname())
        error = plugin.fails("ADD")
        assert (error.code, "Resource temporarily unavailable" in error.msg) == (TRY_AGAIN, True)
        with ThreadPoolExecutor() as pool:
            added = pool.submit(plugin.run, "ADD", plugin.conf(agentWait=5))
            time.sleep(0.1)
            busy.accept()[0].close()
            connection = busy.accept()[0]
            with connection:
                while connection.recv(1 << 16):
                    pass
                connection.sendall(RESULT)
            assert added.result().stdout == RESULT


def test_del_without_agent_is_journaled(plugin: Plugin) -> None:
    began = time.time_ns()
    env = {"CNI_NETNS": "/proc/self/ns/net", "CNI_ARGS": ODD}
    done = plugin.run("DEL", env=env)
    assert (done.returncode, done.stdout) == (0, b"")
    [entry] = plugin.deletes.iterdir()  # and no temporary one beside it
    stamp, _, pid = entry.stem.partition("-")
    assert (len(stamp), pid.isdigit(), entry.suffix) == (20, True, ".json")
    assert began <= int(stamp) <= time.time_ns()
    assert [p.stat().st_mode & 0o7777 for p in (entry, plugin.deletes, plugin.deletes.parent)] == [
        0o600,
        0o700,
        0o700,
    ]
    doc = json.loads(entry.read_bytes())
    assert (doc["command"], doc["containerID"], doc["netns"], doc["args"]) == (
        "DEL",
        "c1",
        "/proc/self/ns/net",
        ODD,
    )
    assert doc["config"].encode() == plugin.conf()


def test_journaled_del_is_replayed_by_the_agent(plugin: Plugin) -> None:
    for container in ("c1", "c2", "c3"):
        plugin.run("DEL", env={"CNI_CONTAINERID": container})
    calls: list[Call] = []
    assert Journal(plugin.deletes.parent, calls.append).replay() == 3
    assert [call.container_id for call in calls] == ["c1", "c2", "c3"]
    assert not list(plugin.deletes.iterdir())


def test_del_cut_off_is_journaled(plugin: Plugin, agent: Agent) -> None:
    agent.answers = [b""]
    assert plugin.run("DEL").returncode == 0
    [entry] = plugin.deletes.iterdir()
    assert entry.read_bytes() == agent.raw[0]


def test_del_that_the_agent_answers_is_not_journaled(plugin: Plugin, agent: Agent) -> None:
    agent.answers = [b'{"code": 100, "msg": "m"}', b"{}"]
    assert [plugin.run("DEL").returncode for _ in range(2)] == [100, 0]
    assert not plugin.deletes.exists()


def test_del_that_can_not_be_journaled_fails(plugin: Plugin) -> None:
    (plugin.tmp_path / "file").touch()
    error = plugin.fails("DEL", plugin.conf(stateDir=str(plugin.tmp_path / "file" / "state")))
    assert error.code == TRY_AGAIN
    assert "Not a directory" in error.msg


def test_journal_leaves_no_half_file_on_a_full_disk(plugin: Plugin) -> None:
    plugin.deletes.mkdir(parents=True)
    variables = {"CNI_COMMAND": "DEL", "PATH": os.environ["PATH"]}
    limited: list[str | Path] = [
        "sh",
        "-c",
        'trap "" XFSZ; ulimit -f 1; exec "$0"',
        plugin.binary,
    ]  # blocks of 512 or 1024 bytes
    conf = plugin.conf(name="n" * 4000)
    done = subprocess.run(limited, input=conf, env=variables, capture_output=True, check=False)
    assert json.loads(done.stdout)["code"] == TRY_AGAIN
    assert "File too large" in json.loads(done.stdout)["msg"]
    assert not list(plugin.deletes.iterdir())


@pytest.mark.parametrize("command", ["CHECK", "GC", "STATUS"])
def test_other_verbs_without_agent_are_not_available(plugin: Plugin, command: str) -> None:
    error = plugin.fails(command)
    assert error.code == NOT_AVAILABLE
    assert str(plugin.tmp_path / "agent.sock") in error.msg
    assert error.details


def test_socket_out_of_reach_fails_at_once(plugin: Plugin) -> None:
    (plugin.tmp_path / "file").touch()
    began = time.monotonic()
    conf = plugin.conf(socket=str(plugin.tmp_path / "file" / "agent.sock"), agentWait=10)
    for command in ("ADD", "DEL", "STATUS"):
        assert plugin.fails(command, conf).code == Code.IO_FAILURE
    assert time.monotonic() - began < 1
    assert not plugin.deletes.exists()


ASKED = [(b"", "1.1.0"), (b"\xff{", "1.1.0"), (b"[" * 5000, "1.1.0"), (b" " * (2 << 20), "1.1.0")]
ASKED += [(b'{"cniVersion": "9.9.9"}', "1.1.0"), (b'{"cniVersion": 1, "agentWait": "x"}', "1.1.0")]
ASKED += [(json.dumps({"cniVersion": version}).encode(), version) for version in VERSIONS]


@pytest.mark.parametrize(("conf", "version"), ASKED)
def test_version_is_answered_without_agent(plugin: Plugin, conf: bytes, version: str) -> None:
    done = plugin.run("VERSION", conf)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"cniVersion": version, "supportedVersions": VERSIONS}


@pytest.mark.parametrize("command", [None, "", "add", "ADD ", 'A"\n'])
def test_unknown_command_is_error_4(plugin: Plugin, agent: Agent, command: str | None) -> None:
    error = plugin.fails(command)
    assert error.code == Code.INVALID_ENVIRONMENT
    assert "CNI_COMMAND" in error.msg
    assert "ADD, DEL, CHECK, GC, STATUS, VERSION" in error.details
    assert not agent.requests


NO_JSON = ["", "  ", "null", "[]", "{", '{"a":1,}', '{"a":01}', '{"a":"\x01"}', r'{"a":"\x"}', r'{"a":"\u12g4"}']
NO_JSON += ["{} x", "{}\0", "{'a':1}", '{"a" 1}', '{"a":tru}', '{"a":[1}', '{"a":1.}', '{"a":-}', '{"a":1e}']
NO_JSON += ['{"a":' + "[" * 100_000, '{"a":' + "[" * 600 + "]" * 600 + "}"]


@pytest.mark.parametrize("conf", NO_JSON)
def test_netconf_that_is_no_json_is_error_6(plugin: Plugin, agent: Agent, conf: str) -> None:
    error = plugin.fails("ADD", conf.encode())
    assert error.code == Code.DECODING_FAILURE
    assert " at line 1, column " in error.msg
    assert not agent.requests


def test_place_of_the_fault_is_told(plugin: Plugin) -> None:
    assert "at line 3, column 4" in plugin.fails("DEL", b'{\n "a": [\n  1x]}').msg


def test_netconf_of_more_than_a_mebibyte_is_error_6(plugin: Plugin, agent: Agent) -> None:
    conf = plugin.conf()
    error = plugin.fails("ADD", conf + b" " * ((1 << 20) + 1 - len(conf)))
    assert (error.code, error.details) == (Code.DECODING_FAILURE, "at most 1 MiB")
    assert not agent.requests


WRONG: dict[str, list[object]] = {
    "agentWait": ["5", True, -1, 300.5, 1e400, [], {}],
    "socket": [1, "", "agent.sock", "/" + "s" * 107, "/a\0b", ["/a"]],
    "stateDir": [1, "", "state", "/" + "s" * 1023, "/a\0b"],
    "cniVersion": [1, ["1.0.0"], False],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_value_is_error_7(plugin: Plugin, agent: Agent, name: str, value: object) -> None:
    conf = plugin.conf(**{name: value}).replace(b"Infinity", b"1e400")
    error = plugin.fails("ADD", conf)
    assert error.code == Code.INVALID_CONFIG
    shown = json.dumps(value).replace("Infinity", "1e400")
    assert error.msg == f"{name}: {shown[:200]} is not allowed"
    assert error.details
    assert not agent.requests


@pytest.mark.parametrize("value", [0, 300, 0.5, 2e1, None])
def test_right_agent_wait_is_taken(plugin: Plugin, agent: Agent, value: object) -> None:
    assert plugin.run("ADD", plugin.conf(agentWait=value)).returncode == 0


def test_escapes_in_names_and_paths_are_read(plugin: Plugin, tmp_path: Path) -> None:
    odd = Agent(tmp_path / 'ü😀 "x"\t')
    odd.start()
    conf = plugin.conf(socket=str(odd.path)).replace(b'"socket"', b'"s\\u006Fcket"')
    done = plugin.run("ADD", conf)
    odd.stop()
    assert done.stdout == RESULT


def test_error_is_told_in_the_version_of_the_netconf(plugin: Plugin) -> None:
    asked = [*VERSIONS, "9.9.9"]
    told = [json.loads(plugin.run("STATUS", plugin.conf(cniVersion=v)).stdout)["cniVersion"] for v in asked]
    assert told == [*VERSIONS, "1.1.0"]


def test_hundred_calls_at_once(plugin: Plugin, agent: Agent) -> None:
    with ThreadPoolExecutor(100) as pool:
        names = [f"c{number}" for number in range(100)]
        done = list(pool.map(lambda name: plugin.run("ADD", None, {"CNI_CONTAINERID": name}), names))
    assert {result.stdout for result in done} == {RESULT}
    assert sorted(request["containerID"] for request in agent.requests) == sorted(names)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_closed_stdout_fails_only_what_has_to_print(plugin: Plugin, agent: Agent, command: str) -> None:
    agent.answers = [RESULT if command == "ADD" else b"{}"]
    closed: list[str | Path] = ["sh", "-c", 'exec "$0" >&-', plugin.binary]
    variables = {"CNI_COMMAND": command, "PATH": os.environ["PATH"]}
    done = subprocess.run(closed, input=plugin.conf(), env=variables, stderr=subprocess.PIPE, check=False)
    assert done.returncode == (Code.IO_FAILURE if command == "ADD" else 0)
    assert (b"can't be printed" in done.stderr) == (command == "ADD")
    assert json.loads(agent.raw[0])["command"] == command


def test_reader_that_went_away_is_an_error(plugin: Plugin, agent: Agent) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = {"CNI_COMMAND": "ADD"}
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [plugin.binary], input=plugin.conf(), env=env, stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == Code.IO_FAILURE
    assert b"Broken pipe" in done.stderr


def test_person_is_told_what_it_is(plugin: Plugin) -> None:
    done = subprocess.run([plugin.binary, "--version"], env={}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"testcni 0.")


def test_fuzzer_finds_nothing(builds: Builds) -> None:
    done = subprocess.run([builds.fuzzer, "1", "20240229"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert int(done.stdout.split(b"\n")[1].split()[0]) > 1000


def test_fuzzer_would_find_a_fault(tmp_path: Path) -> None:
    """Its own check: a scanner that reads one byte too far is caught."""
    broken = tmp_path / "cni-bin"
    shutil.copytree(SOURCE, broken)
    shutil.copy(SOURCE.parent / "pyproject.toml", tmp_path)
    scanner = (broken / "json.h").read_text()
    assert "in->at < in->end ?" in scanner
    (broken / "json.h").write_text(scanner.replace("in->at < in->end ?", "in->at <= in->end ?"))
    subprocess.run(["make", "-s", "-C", broken, f"OUT={tmp_path}", "fuzz"], check=True)
    done = subprocess.run([tmp_path / "fuzz_testcni", "1", "1"], capture_output=True, check=False)
    assert b"heap-buffer-overflow" in done.stderr
