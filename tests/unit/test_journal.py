"""The journal of DELs: done in order, kept while they fail, renamed if they can never be done."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from agent.cni.journal import Journal
from agent.cni.protocol import Call
from agent.errors import CniError, Code


class Deletes:
    """Notes DELs, and fails those of containers that it is told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing: dict[str, Code] = {}

    def __call__(self, call: Call) -> None:
        if code := self.failing.get(call.container_id):
            raise CniError(code, "no")
        self.done.append(call.container_id)


@pytest.fixture
def deletes() -> Deletes:
    return Deletes()


@pytest.fixture
def journal(tmp_path: Path, deletes: Deletes) -> Journal:
    made = Journal(tmp_path, deletes)
    made.prepare()
    return made


def write(tmp_path: Path, name: str, container: str = "", **more: object) -> None:
    doc = {"protocol": 1, "command": "DEL", "containerID": container, "ifname": "eth0", "config": "{}", **more}
    (tmp_path / "deletes" / name).write_text(json.dumps(doc))


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "deletes").iterdir())


def test_the_oldest_comes_first_and_each_only_once(tmp_path: Path, journal: Journal, deletes: Deletes) -> None:
    write(tmp_path, "00000000000000000002-9.json", "second")
    write(tmp_path, "00000000000000000001-9.json", "first")
    assert journal.replay() == 2
    assert journal.replay() == 0
    assert (deletes.done, left(tmp_path)) == (["first", "second"], [])
    assert (tmp_path / "deletes").stat().st_mode & 0o777 == 0o700


def test_one_that_fails_stays_and_holds_up_no_other(tmp_path: Path, journal: Journal, deletes: Deletes) -> None:
    deletes.failing["stuck"] = Code.KERNEL
    write(tmp_path, "1.json", "stuck")
    write(tmp_path, "2.json", "free")
    assert journal.replay() == 1
    assert left(tmp_path) == ["1.json"]
    deletes.failing.clear()
    assert journal.replay() == 1
    assert left(tmp_path) == []


def test_what_can_never_be_done_is_set_aside(tmp_path: Path, journal: Journal, deletes: Deletes) -> None:
    deletes.failing["odd"] = Code.INVALID_ENVIRONMENT
    write(tmp_path, "1.json", "odd")
    write(tmp_path, "2.json", "add", command="ADD")
    (tmp_path / "deletes/3.json").write_text("{half")
    write(tmp_path, "4.json", "good")
    assert journal.replay() == 1
    assert left(tmp_path) == ["1.rejected", "2.rejected", "3.rejected"]
    assert deletes.done == ["good"]


def test_what_is_still_being_written_is_left_alone(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "deletes/.1.json.tmp").write_text("{")
    (tmp_path / "deletes/.2.json").write_text("{")
    assert journal.replay() == 0
    assert left(tmp_path) == [".1.json.tmp", ".2.json"]


def test_what_a_killed_plugin_left_half_written_goes(tmp_path: Path, journal: Journal) -> None:
    for name, age in ((".old.json.tmp", 100), (".new.json.tmp", 0)):
        path = tmp_path / "deletes" / name
        path.write_text("{")
        os.utime(path, (time.time() - age,) * 2)
    journal.prepare()
    assert left(tmp_path) == [".new.json.tmp"]


def test_a_journal_out_of_reach_keeps_no_pod_from_starting(tmp_path: Path, deletes: Deletes) -> None:
    assert Journal(tmp_path / "nowhere", deletes).replay() == 0
