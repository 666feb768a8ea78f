"""What is tried again and again: rounds by a pace, log lines once in a while, and texts that stay the same."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest

from agent.errors import MustEndError
from agent.log import Repeats
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.node import host_directories
from agent.node.host_directories import HostDirectories
from agent.node.installer import Installer, Places
from agent.runtime.observable import Observable
from agent.runtime.pace import Pace


def test_turns_at_once_and_then_by_and_by() -> None:
    pace, stop = Pace(3, 0.1), threading.Event()
    began = time.monotonic()
    for _ in range(5):
        pace.wait(stop)
    assert time.monotonic() - began >= 0.19
    assert pace.spent == 5
    stop.set()
    pace.wait(stop)  # whoever is told to stop does not wait


def test_parts_that_wake_each_other_do_so_by_their_pace() -> None:
    one, two, stop = Observable(0), Observable(0), threading.Event()

    def follow(source: Observable[int], timings: Observable[int], pace: Pace) -> None:
        wake = threading.Event()
        source.listen(wake.set)
        while not stop.is_set():
            wake.wait(0.05)
            pace.wait(stop)
            wake.clear()
            timings.update(lambda value: value + 1)

    paces = Pace(5, 10.0), Pace(5, 10.0)
    threads = [
        threading.Thread(target=follow, args=(one, two, paces[0])),
        threading.Thread(target=follow, args=(two, one, paces[1])),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert all(pace.spent <= 6 for pace in paces)


def record(text: str, at: float, level: int = logging.WARNING) -> logging.LogRecord:
    made = logging.LogRecord("agent.x", level, "x.py", 1, "%s", (text,), None)
    made.created = at
    return made


def test_a_line_that_repeats_is_written_once_a_minute_with_how_often() -> None:
    repeats = Repeats(60.0)
    written = [r for second in range(130) if repeats.filter(r := record("can't", 1000.0 + second))]
    assert [r.getMessage() for r in written] == [
        "can't",
        "can't (59 times more since it was last written)",
        "can't (59 times more since it was last written)",
    ]
    assert repeats.filter(record("other", 1000.0))
    assert all(repeats.filter(record("said", 1000.0, logging.INFO)) for _ in range(3))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "bundle", tmp_path / "template", tmp_path / "bin", tmp_path / "net.d")
    for folder in (made.bundle, made.bin_dir, made.conf_dir):
        folder.mkdir()
    (made.bundle / "testcni").write_bytes(b"plugin")
    made.template.write_text('{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "testcni"}]}')
    return made


def test_a_folder_that_can_not_be_written_has_one_text_and_wakes_nobody_twice(places: Places) -> None:
    problems: Observable[Mapping[str, Problem]] = Observable({})
    published: list[Mapping[str, Problem]] = []
    problems.listen(lambda: published.append(problems.get()))
    installer = Installer(places, Observable(NodeStatus()), problems)
    with patch("agent.node.installer.os.open", side_effect=lambda path, *_args: _refuse(path)):
        for _ in range(5):
            installer.once()
    assert len(published) == 1, published


def _refuse(path: Path) -> int:
    raise OSError(30, "Read-only file system", str(path))


def test_a_folder_removed_behind_its_mount_ends_the_agent_but_not_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: set[Path] = set()
    monkeypatch.setattr(host_directories, "removed", lambda path: path in gone)
    watched = HostDirectories({"--conf-dir": tmp_path, "--bin-dir": tmp_path / "bin"})
    watched.once()
    gone.add(tmp_path)
    with pytest.raises(MustEndError, match=r"--conf-dir\) was removed on the host"):
        watched.once()
    started_on_it = HostDirectories({"--conf-dir": tmp_path})
    started_on_it.once()
    assert "delete the agent's pod" in str(started_on_it.problems.get()["--conf-dir"])
    gone.clear()
    started_on_it.once()
    assert started_on_it.problems.get() == {}
