"""The runner against libcni's rules, with plugins that write down what they were told."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.lab.runner import Attachment, Cache, Conf, Runner, RunnerError, load

RECORDER = """#!/bin/sh
# Writes environment and stdin to a numbered file, then does what `behave` says.
cd "$(dirname "$0")/.." || exit 99
n=$(($(ls calls | wc -l) / 2))
env > "calls/$n.env"
cat > "calls/$n.json"
. "./behave"
"""


def result(of: str) -> dict[str, Any]:
    """What the plugin of that name answers to an ADD."""
    return {"cniVersion": "1.1.0", "interfaces": [{"name": of}]}


class Calls:
    """A folder of plugins and what was asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "calls").mkdir()
        self.behave(
            f"[ $CNI_COMMAND = ADD ] && echo '{json.dumps(result('NAME'))}' | sed s/NAME/$(basename $0)/; exit 0"
        )
        for name in ("first", "second"):
            (folder / "bin" / name).write_text(RECORDER)
            (folder / "bin" / name).chmod(0o755)

    @property
    def paths(self) -> str:
        return str(self.folder / "bin")

    def behave(self, script: str) -> None:
        (self.folder / "behave").write_text(script)

    def taken(self) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """The calls since the last look: environment and stdin of each."""
        found = []
        for number in range(len(list((self.folder / "calls").glob("*.env")))):
            told, stdin = (self.folder / "calls" / f"{number}.{end}" for end in ("env", "json"))
            variables = dict(line.split("=", 1) for line in told.read_text().splitlines() if "=" in line)
            found.append((variables, json.loads(stdin.read_text())))
            told.unlink()
            stdin.unlink()
        return found

    def types(self) -> list[tuple[str, str]]:
        """The calls since the last look: verb and plugin of each."""
        return [(told["CNI_COMMAND"], doc["type"]) for told, doc in self.taken()]


def execute(path: str, environment: Mapping[str, str], stdin: str) -> tuple[int, str, str]:
    env = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run([path], env=env, input=stdin, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path / "plugins")


@pytest.fixture
def runner(calls: Calls) -> Runner:
    return Runner(execute, calls.paths)


def conf(version: str = "1.1.0", **more: Any) -> Conf:
    plugins = (
        {"type": "first", "capabilities": {"portMappings": True, "bandwidth": False}},
        {"type": "second", "name": "not this", "cniVersion": "9.9.9"},
    )
    return Conf("net", version, plugins, Path("x"), **more)


def write(folder: Path, **files: object) -> Path:
    for name, doc in files.items():
        (folder / name.replace("_", ".")).write_text(json.dumps(doc))
    return folder


def test_the_first_conf_by_name_of_file_is_taken(tmp_path: Path) -> None:
    write(
        tmp_path,
        b_conflist={"name": "b", "cniVersion": "1.0.0", "plugins": [{"type": "x"}, {"type": "y"}]},
        a_txt={"name": "no conf"},
        c_conf={"name": "c", "type": "z"},
    )
    assert load(tmp_path).name == "b"
    assert [plugin["type"] for plugin in load(tmp_path).plugins] == ["x", "y"]
    assert (load(tmp_path, "c").version, load(tmp_path, "c").plugins[0]["type"]) == ("0.1.0", "z")
    with pytest.raises(LookupError, match="no conf named d"):
        load(tmp_path, "d")


def test_a_list_without_plugins_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, a_conflist={"name": "empty", "plugins": []}, b_json={"name": "b", "type": "x"})
    assert load(tmp_path).name == "b"


def test_a_conf_can_switch_check_and_gc_off(calls: Calls, runner: Runner, tmp_path: Path) -> None:
    doc = {"name": "n", "cniVersion": "1.1.0", "plugins": [{"type": "first"}]}
    write(tmp_path, a_conflist={**doc, "disableCheck": True, "disableGC": True})
    runner.check(load(tmp_path), "c", "/ns")
    runner.collect(load(tmp_path), [])
    assert calls.taken() == []
    write(tmp_path, a_conflist=doc)
    runner.check(load(tmp_path), "c", "/ns")
    runner.collect(load(tmp_path), [])
    assert calls.types() == [("CHECK", "first"), ("GC", "first")]


def test_add_hands_each_plugin_its_conf_and_the_result_before_it(calls: Calls, runner: Runner) -> None:
    capabilities = {"portMappings": [{"hostPort": 80}], "bandwidth": {"ingressRate": 1}, "dns": {}}
    args = "K8S_POD_NAME=p"
    last = runner.add(conf(), "c1", "/run/netns/c1", "net1", args=args, capabilities=capabilities)
    assert last == result("second")
    (told, first), (_, second) = calls.taken()
    assert {name: told[name] for name in told if name.startswith("CNI_")} == {
        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "net1",
        "CNI_ARGS": "K8S_POD_NAME=p", "CNI_PATH": calls.paths,
    }  # fmt: skip
    assert first == {
        "type": "first", "name": "net", "cniVersion": "1.1.0",
        "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
    }  # fmt: skip
    assert second == {"type": "second", "name": "net", "cniVersion": "1.1.0", "prevResult": result("first")}


@pytest.mark.parametrize(("version", "remembered"), [("0.3.1", False), ("0.4.0", True), ("1.1.0", True)])
def test_del_goes_backwards_with_what_add_was_told(
    calls: Calls, runner: Runner, version: str, remembered: bool
) -> None:
    runner.add(conf(version), "c1", "/ns", args="A=1", capabilities={"portMappings": [1]})
    calls.taken()
    runner.delete(conf(version), "c1", "/ns")
    (_, second), (told, first) = calls.taken()
    assert (second["type"], first["type"]) == ("second", "first")
    assert (told["CNI_ARGS"], first["runtimeConfig"]) == ("A=1", {"portMappings": [1]})
    assert [doc.get("prevResult") for doc in (first, second)] == [result("second") if remembered else None] * 2
    assert runner.cache.all("net") == []


def test_check_goes_forwards_with_the_last_result(calls: Calls, runner: Runner) -> None:
    runner.add(conf(), "c1", "/ns")
    calls.taken()
    runner.check(conf(), "c1", "/ns")
    last = result("second")
    assert [(doc["type"], doc["prevResult"]) for _, doc in calls.taken()] == [("first", last), ("second", last)]


def test_check_wants_0_4_0(calls: Calls, runner: Runner) -> None:
    with pytest.raises(RunnerError, match=r"0\.3\.1 has no CHECK"):
        runner.check(conf("0.3.1"), "c1", "/ns")
    assert calls.taken() == []


def test_versions_are_compared_as_numbers() -> None:
    assert conf("0.10.0").since("0.4.0")
    assert not conf("0.3.1").since("0.4.0")


def test_a_result_outlives_the_runner(calls: Calls, tmp_path: Path) -> None:
    Runner(execute, calls.paths, Cache(tmp_path / "cache")).add(conf(), "c1", "/ns", args="A=1")
    calls.taken()
    Runner(execute, calls.paths, Cache(tmp_path / "cache")).delete(conf(), "c1", "/ns")
    assert [(told["CNI_ARGS"], doc["prevResult"]) for told, doc in calls.taken()] == [
        ("A=1", result("second"))
    ] * 2
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_two_attachments_share_a_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    names = [("a:b", "c", "d"), ("a", "b:c", "d"), ("a/b", "c", "d"), ("a", "b", "c:d")]
    for network, container, ifname in names:
        cache.put(Attachment(network, container, ifname, "", {}, {"of": container}))
    again = Cache(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 4
    for name in names:
        assert again.get(*name) == cache.get(*name) == Attachment(*name, "", {}, {"of": name[1]})


def test_a_del_that_fails_is_remembered(calls: Calls, runner: Runner) -> None:
    runner.add(conf(), "c1", "/ns")
    calls.behave('echo \'{"code": 11, "msg": "later"}\'; exit 1')
    with pytest.raises(RunnerError, match="second: later"):
        runner.delete(conf(), "c1", "/ns")
    assert len(runner.cache.all("net")) == 1


def test_an_add_that_fails_stops_the_chain_and_is_not_remembered(calls: Calls, runner: Runner) -> None:
    calls.behave('echo \'{"code": 103, "msg": "no", "details": "because"}\'; echo noise >&2; exit 1')
    with pytest.raises(RunnerError) as caught:
        runner.add(conf(), "c1", "/ns")
    error = caught.value
    assert (error.plugin, error.code, error.msg, error.details) == ("first", 103, "no", "because")
    assert calls.types() == [("ADD", "first")]
    assert runner.cache.all("net") == []


def test_an_error_names_the_plugin_of_the_chain(calls: Calls, runner: Runner) -> None:
    calls.behave("[ $(basename $0) = first ] && echo '{}' || { echo '{\"code\": 7}'; exit 1; }")
    with pytest.raises(RunnerError) as caught:
        runner.add(conf(), "c1", "/ns")
    assert (caught.value.plugin, caught.value.code) == ("second", 7)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo hello", "else than one JSON document: 'hello"),
        ("echo '{}'; echo '{}'", "else than one JSON document"),
        ("echo '{} trailing'", "else than one JSON document"),
        ("echo '[]'", "printed no object"),
        ("echo '[]'; exit 1", "printed no object"),
        ("exit 0", "printed no result"),
        ("echo why >&2; exit 3", "ADD failed with exit code 3 .*: why"),
        ("echo panic; exit 2", "else than one JSON document"),
    ],
)
def test_whatever_is_no_answer_is_an_error(calls: Calls, runner: Runner, script: str, words: str) -> None:
    calls.behave(script)
    with pytest.raises(RunnerError, match=words) as caught:
        runner.add(conf(), "c1", "/ns")
    assert caught.value.code == 999


def test_gc_says_what_is_valid_and_forgets_the_rest(calls: Calls, runner: Runner) -> None:
    for container in ("stays", "goes"):
        runner.add(conf(), container, "/ns")
    calls.taken()
    runner.collect(conf(), [("stays", "eth0")])
    for told, doc in calls.taken():
        assert told["CNI_COMMAND"] == "GC"
        assert "CNI_CONTAINERID" not in told
        assert doc["cni.dev/valid-attachments"] == [{"containerID": "stays", "ifname": "eth0"}]
    assert [known.container for known in runner.cache.all("net")] == ["stays"]


def test_gc_and_status_are_of_1_1_0(calls: Calls, runner: Runner) -> None:
    runner.collect(conf("1.0.0"), [])
    runner.status(conf("1.0.0"))
    assert calls.taken() == []
    runner.status(conf())
    assert calls.types() == [("STATUS", "first"), ("STATUS", "second")]


def test_status_tells_why_not(calls: Calls, runner: Runner) -> None:
    calls.behave('echo \'{"code": 50, "msg": "no agent"}\'; exit 1')
    with pytest.raises(RunnerError, match="no agent") as caught:
        runner.status(conf())
    assert caught.value.code == 50


def test_versions(calls: Calls, runner: Runner) -> None:
    calls.behave('echo \'{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}\'')
    assert runner.versions("first") == ["1.0.0", "1.1.0"]


def test_plugins_are_looked_for_on_the_whole_path(calls: Calls, tmp_path: Path) -> None:
    paths = f"{tmp_path}/none:{calls.paths}"
    assert Runner(execute, paths).add(conf(), "c1", "/ns") == result("second")
    assert calls.taken()[0][0]["CNI_PATH"] == paths
    with pytest.raises(RunnerError, match=f"absent: is not in {paths}"):
        Runner(execute, paths).versions("absent")
