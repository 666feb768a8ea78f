"""The plugin as a runtime sees it: the real binary, and a unix socket that plays the agent."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.cni import protocol
from agent.cni.journal import Journal
from agent.cni.protocol import Call
from agent.errors import Code
from tests.unit.plugin import (
    NOT_AVAILABLE,
    PATIENCE_MS,
    RESULT,
    SOURCE,
    TRY_AGAIN,
    VERSIONS,
    Agent,
    Builds,
    Plugin,
)


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
    began = time.monotonic()
    late.start(after=0.3)
    done = plugin.run("ADD", plugin.conf(agentWait=5))
    took = time.monotonic() - began
    late.stop()
    assert done.stdout == RESULT
    assert 0.3 <= took < 4


@pytest.mark.parametrize("listening", [False, True])
def test_add_gives_up_after_agent_wait(plugin: Plugin, listening: bool) -> None:
    path = plugin.tmp_path / "agent.sock"
    if listening:  # what a killed agent leaves
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    began = time.monotonic()
    error = plugin.fails("ADD")
    assert 0.2 <= time.monotonic() - began < 5
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
    assert plugin.fails("ADD", plugin.conf(agentWait=1)).code == TRY_AGAIN
    assert len(agent.requests) > 1


def test_answer_without_end_is_refused(plugin: Plugin, agent: Agent) -> None:
    agent.answers = [b" " * (17 << 20)]
    assert plugin.fails("CHECK").code == Code.IO_FAILURE


@pytest.mark.parametrize(("command", "code"), [("ADD", TRY_AGAIN), ("STATUS", NOT_AVAILABLE)])
def test_agent_that_hangs_is_left(builds: Builds, tmp_path: Path, agent: Agent, command: str, code: int) -> None:
    agent.answers = [None]
    began = time.monotonic()
    error = Plugin(builds.hasty, tmp_path).fails(command)
    assert time.monotonic() - began < 5
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
    journaled = json.loads(entry.read_bytes())
    assert journaled.pop("bootID") == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert journaled == json.loads(agent.raw[0])


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
    assert time.monotonic() - began < 5
    assert not plugin.deletes.exists()


def test_the_plugin_has_the_versions_and_codes_of_the_agent() -> None:
    source = (SOURCE / "testcni.c").read_text()
    (newest,) = re.findall(r'#define NEWEST "(.*)"', source)
    (array,) = re.findall(r"versions\[\] = \{(.*), NULL\};", source)
    assert [version.strip('"') for version in array.replace("NEWEST", newest).split(", ")] == VERSIONS
    assert f'allowed = "a string, one of {", ".join(VERSIONS)}"' in source
    (codes,) = re.findall(r"enum code \{ (.*) \};", source)
    known = {code.value for code in Code}
    assert {int(code.partition(" = ")[2]) for code in codes.split(", ")} <= known
