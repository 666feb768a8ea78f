"""What is tried again and again: rounds by a pace, log lines once in a while, and texts that stay the same."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest

from agent.host import host_directories
from agent.host.host_directories import HostDirectories
from agent.host.installer import Installer, Places
from agent.log import Logfmt, Repeats
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems, ProblemBoard
from agent.modes.registry import BUILT_IN
from agent.runtime.observable import Observable
from agent.runtime.pace import Pace
from agent.runtime.shutdown import MustEndError
from tests.fake_clock import FakeClock


def test_turns_at_once_and_then_by_and_by() -> None:
    clock, stop = FakeClock(), threading.Event()
    pace = Pace(3, 0.1, clock)
    for _ in range(5):
        pace.wait(stop)
    assert clock.elapsed == pytest.approx(0.2, abs=0.01)
    assert pace.spent == 5
    stop.set()
    pace.wait(stop)  # whoever is told to stop does not wait


def record(text: str, at: float, level: int = logging.WARNING) -> logging.LogRecord:
    made = logging.LogRecord("agent.x", level, "x.py", 1, "%s", (text,), None)
    made.created = at
    return made


def test_a_line_that_repeats_is_written_once_a_minute_with_how_often() -> None:
    repeats = Repeats(60.0)
    written = [r for second in range(130) if repeats.filter(r := record("can't", 1000.0 + second))]
    assert [r.getMessage() for r in written] == [
        "can't",
        "can't (59 more times since it was last written)",
        "can't (59 more times since it was last written)",
    ]
    assert repeats.filter(record("other", 1000.0))
    assert all(repeats.filter(record("said", 1000.0, logging.INFO)) for _ in range(3))


@pytest.mark.parametrize(
    "character",
    ["\n", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\u200b", "\ufeff", '"', "\udcff", "\u00ad", "\U000e0041"],
)
def test_no_text_controls_a_terminal_or_hides_another(character: str) -> None:
    """Names of files and words of others are in log lines."""
    line = Logfmt().format(record(f"a{character}b é", 1000.0))
    assert character not in line.removesuffix('"').partition(' msg="')[2].replace('\\"', "")
    assert json.loads(line.partition(" msg=")[2]) == f"a{character}b é"
    assert "é" in line


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "bundle", tmp_path / "template", tmp_path / "bin", tmp_path / "net.d")
    for folder in (made.bundle, made.bin_dir, made.conf_dir):
        folder.mkdir()
    (made.bundle / "testcni").write_bytes(b"plugin")
    made.template.write_text('{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "testcni"}]}')
    return made


def test_a_folder_that_can_not_be_written_has_one_text_and_wakes_nobody_twice(places: Places) -> None:
    board = ProblemBoard()
    problems = board.part("installer")
    published: list[Mapping[str, Problem]] = []
    board.listen(lambda: published.append(problems.get()))
    installer = Installer(places, Observable(NodeStatus()), problems, modes=BUILT_IN)
    with patch("agent.host.installer.os.open", side_effect=lambda path, *_args: _refuse(path)):
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
    watched = HostDirectories(
        {"--conf-dir": tmp_path, "--bin-dir": tmp_path / "bin"}, PartProblems("host-directories")
    )
    watched.once()
    gone.add(tmp_path)
    with pytest.raises(MustEndError, match=r"--conf-dir\) was removed on the host"):
        watched.once()
    problems = PartProblems("host-directories")
    started_on_it = HostDirectories({"--conf-dir": tmp_path}, problems)
    started_on_it.once()
    assert "delete the agent's pod" in str(problems.get()["--conf-dir"])
    gone.clear()
    started_on_it.once()
    assert problems.get() == {}
