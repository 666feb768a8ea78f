"""The lab's own runner against small plugins that record how they were called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.lab.runner import Conf, Runner, RunnerError, load

ONE = {"type": "one", "capabilities": {"ips": True, "mac": True}}
TWO = {"type": "two"}
CONF = Conf("net", "1.1.0", (ONE, TWO), Path("x"))


class Plugins:
    """Answers for plugins, and remembers each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.answers: dict[str, tuple[int, str, str]] = {}

    def __call__(self, path: str, environment: Mapping[str, str], stdin: str) -> tuple[int, str, str]:
        name, verb = path.rpartition("/")[2], environment["CNI_COMMAND"]
        self.calls.append((name, verb, json.loads(stdin)))
        answer = json.dumps({"cniVersion": "1.1.0", "by": name}) if verb == "ADD" else ""
        return self.answers.get(f"{name} {verb}", (0, answer, ""))


def test_results_go_down_the_chain_and_back_up() -> None:
    plugins = Plugins()
    runner = Runner(plugins)
    asked = {"ips": ["10.0.0.2"], "bandwidth": {}}
    assert runner.add(CONF, "c", "/n", capabilities=asked) == {"cniVersion": "1.1.0", "by": "two"}
    runner.check(CONF, "c", "/n")
    runner.delete(CONF, "c", "/n")
    assert [(name, verb, doc.get("prevResult", {}).get("by")) for name, verb, doc in plugins.calls] == [
        ("one", "ADD", None), ("two", "ADD", "one"), ("one", "CHECK", "two"), ("two", "CHECK", "two"),
        ("two", "DEL", "two"), ("one", "DEL", "two"),
    ]  # fmt: skip
    first = plugins.calls[0][2]
    assert first["runtimeConfig"] == {"ips": ["10.0.0.2"]}
    assert (first["name"], first["cniVersion"], "capabilities" in first) == ("net", "1.1.0", False)
    assert "runtimeConfig" not in plugins.calls[1][2]


def test_gc_lists_what_is_valid() -> None:
    plugins = Plugins()
    Runner(plugins).collect(CONF, [("c", "eth0")])
    assert [doc["cni.dev/valid-attachments"] for _, _, doc in plugins.calls] == [
        [{"containerID": "c", "ifname": "eth0"}]
    ] * 2


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((7, '{"code": 7, "msg": "bad field", "details": "mend it"}', ""), 7, "bad field"),
        ((1, "", "segmentation fault"), 999, "exit code 1"),
        ((0, "hello {}", ""), 999, "printed no JSON"),
        ((0, "{}{}", ""), 999, "printed no JSON"),
        ((0, "[]", ""), 999, "printed no object"),
        ((0, "", ""), 999, "printed no result"),
    ],
)
def test_what_a_plugin_does_wrong_is_told(answer: tuple[int, str, str], code: int, words: str) -> None:
    plugins = Plugins()
    plugins.answers["two ADD"] = answer
    with pytest.raises(RunnerError, match=words) as caught:
        Runner(plugins).add(CONF, "c", "/n")
    assert (caught.value.plugin, caught.value.code) == ("two", code)


def test_the_conf_that_sorts_first_is_taken(tmp_path: Path) -> None:
    (tmp_path / "20.conf").write_text('{"name": "b", "type": "t"}')
    (tmp_path / "10.conflist").write_text('{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "t"}]}')
    (tmp_path / "00.txt").write_text("not a conf")
    assert (load(tmp_path).name, load(tmp_path, "b").name) == ("a", "b")
    with pytest.raises(LookupError, match="named c"):
        load(tmp_path, "c")
