"""What the plugin makes of bad input and odd surroundings, and what its fuzzer finds."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.cni.journal import Journal
from agent.cni.protocol import Call
from agent.errors import CniError, Code
from tests.networks import parse_conf
from tests.unit.plugin import (
    RESULT,
    VERSIONS,
    Agent,
    Builds,
    Plugin,
)

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
    assert "at line 3, column 4" in plugin.fails("ADD", b'{\n "a": [\n  1x]}').msg


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


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_the_agent_prepares_no_network_whose_pods_the_plugin_refuses(name: str, value: object) -> None:
    with pytest.raises(CniError) as caught:
        parse_conf({"cniVersion": "1.0.0", "name": "net", name: value})
    assert caught.value.msg.startswith(f"{name}: ")


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
    assert done.stderr.startswith(b"testcni ")


def test_fuzzer_finds_nothing(builds: Builds) -> None:
    done = subprocess.run([builds.fuzzer, "1", "20240229"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert int(done.stdout.split(b"\n")[1].split()[0]) > 1000


def test_fuzzer_would_find_a_fault(builds: Builds) -> None:
    """Its own check: a scanner that reads one byte too far is caught."""
    done = subprocess.run([builds.faulty_fuzzer, "1", "1"], capture_output=True, check=False)
    assert b"heap-buffer-overflow" in done.stderr


BROKEN = [
    b", 1",
    b', "x": ' + b"[" * 5000,
    b', "x": "\xff\x01"}',
    b', "x": tru}',
    b"} x",
    b"\0",
    b', "agentWait": "x"}',
]
BROKEN += [b', "cniVersion": 7}', b" " * (2 << 20)]


@pytest.mark.parametrize("rest", BROKEN)
def test_a_pod_can_go_whatever_the_netconf_is(plugin: Plugin, agent: Agent, rest: bytes) -> None:
    agent.answers = [b"{}", b""]  # an agent that dies before it answers
    done = plugin.run("DEL", plugin.conf()[:-1] + rest)
    assert (done.returncode, done.stdout) == (0, b"")
    assert agent.requests[0]["containerID"] == "c1"
    assert plugin.run("DEL", plugin.conf()[:-1] + rest).returncode == 0
    assert len(list(plugin.deletes.iterdir())) == 1
    calls: list[Call] = []
    assert Journal(plugin.deletes.parent, calls.append).replay() == 1
    assert (calls[0].container_id, calls[0].ifname) == ("c1", "eth0")


@pytest.mark.parametrize("name", ["socket", "stateDir"])
def test_a_wrong_path_leaves_the_default_at_del(plugin: Plugin, agent: Agent, name: str) -> None:
    wrong = f'"{name}": "relative", '.encode()
    assert plugin.run("DEL", b"{" + plugin.conf()[1:-1] + b", " + wrong[:-2] + b"}").returncode == 0
    assert agent.requests, "what was right before is kept"
