"""What runs the tiers of CI, and the table at its end."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.ci import times
from tests.ci.plan import PLAN, Lane, Tier
from tests.ci.runner import Runner
from tests.lab.space import REPO

LOG = """
............ [100%]
============================= slowest 10 durations =============================
12.50s call     tests/lab/test_paths.py::test_reach[a b, c]
4.25s setup    tests/lab/test_paths.py::test_reach[a b, c]
0.40s teardown tests/netns/test_add.py::test_add

(7 durations < 1s hidden.  Use -vv to show these durations.)
3 passed in 20.00s
"""


def test_tiers_and_slowest_cases(tmp_path: Path) -> None:
    (tmp_path / "seconds").write_text("735 make test\n61 make e2e MODE=ipip\n")
    (tmp_path / "make-test.log").write_text(LOG)
    (tmp_path / "make-e2e-MODE-ipip.log").write_text("15.00s passed   [sig-network] DNS should work\n")
    assert times.table(tmp_path).splitlines() == [
        "seconds  tier",
        "    735  make test",
        "     61  make e2e MODE=ipip",
        "",
        "seconds  the slowest cases",
        "   16.8  tests/lab/test_paths.py::test_reach[a b, c]  (make test)",
        "   15.0  [sig-network] DNS should work  (make e2e MODE=ipip)",
        "    0.4  tests/netns/test_add.py::test_add  (make test)",
    ]


def test_only_the_slowest_ten_are_listed(tmp_path: Path) -> None:
    (tmp_path / "seconds").write_text("9 a\n")
    (tmp_path / "a.log").write_text("".join(f"{number}.00s call     case{number}\n" for number in range(30)))
    cases = times.slowest(tmp_path)
    assert [name for _seconds, _tier, name in cases] == [f"case{number}" for number in range(29, 19, -1)]


def runner(folder: Path, within: float = 30, least: float = 0) -> Runner:
    (folder / "seconds").touch()
    return Runner(folder, time.monotonic() + within, least)


def script(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_one_failed_tier_does_not_stop_its_neighbours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = script(tmp_path, "bad", "echo broken; exit 7"), script(tmp_path, "good", "touch $0.ran")
    it = runner(tmp_path)
    assert not it.step([Lane((Tier(bad), Tier(good)))])
    assert it.failed == [bad]
    assert (tmp_path / "good.ran").exists()
    said = capsys.readouterr().out
    assert f"ended with 7: {bad}\nbroken" in said
    assert f"FAILED: {bad}" in said
    assert {tier for _seconds, tier in times.tiers(tmp_path)} == {bad, good}


def test_a_tier_that_can_not_be_started_has_failed(tmp_path: Path) -> None:
    it = runner(tmp_path)
    assert not it.step([Lane((Tier("/nonexistent/program"),))])
    assert it.failed == ["/nonexistent/program"]


def test_lanes_run_side_by_side_once_the_first_has_measured(tmp_path: Path) -> None:
    """The first ends only when the second has begun, and the second finds what the first did alone."""
    first = script(
        tmp_path, "first", "touch $0.alone; echo measured; while [ ! -e $0.second ]; do sleep 0.05; done"
    )
    second = script(tmp_path, "second", f"[ -e {tmp_path}/first.alone ] && touch {tmp_path}/first.second")
    it = runner(tmp_path)
    assert it.step([Lane((Tier(first, alone_until="measured"),)), Lane((Tier(second),))])


def test_a_first_tier_that_measures_nothing_holds_up_nobody(tmp_path: Path) -> None:
    first, second = script(tmp_path, "first", "exit 3"), script(tmp_path, "second", "true")
    it = runner(tmp_path)
    assert not it.step([Lane((Tier(first, alone_until="measured"),)), Lane((Tier(second),))])
    assert it.failed == [first]


def test_what_runs_when_time_is_over_is_ended_with_its_children(tmp_path: Path) -> None:
    endless = script(tmp_path, "endless", "sleep 1000 & echo $! > $0.pid; wait")
    it = runner(tmp_path, within=1)
    assert not it.step([Lane((Tier(endless),))])
    child = Path("/proc", (tmp_path / "endless.pid").read_text().strip(), "status")
    while child.exists() and "State:\tZ" not in child.read_text():
        time.sleep(0.05)


def test_an_optional_tier_is_left_out_for_time_and_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = script(tmp_path, "slow", "sleep 1000")
    assert runner(tmp_path, least=60).step([Lane((Tier(slow, optional=True),))])
    assert f"LEFT OUT: {slow}" in capsys.readouterr().out
    assert runner(tmp_path, within=0.5).step([Lane((Tier(slow, optional=True),))])
    assert "no time was left" in capsys.readouterr().out


def test_the_background_has_its_prefix_and_the_others_know_their_number(tmp_path: Path) -> None:
    says = script(tmp_path, "says", 'echo "$SIDE_BY_SIDE $PREFIX"')
    (tmp_path / "seconds").touch()
    it = Runner(tmp_path, time.monotonic() + 30, 0, ["env", "PREFIX=low"])
    assert it.step([Lane((Tier(says),)), Lane((Tier(f"{says} 2"),), background=True)])
    assert (tmp_path / Tier(says).log).read_text() == "2 \n"
    assert (tmp_path / Tier(f"{says} 2").log).read_text() == "2 low\n"


def test_the_plan_has_every_tier_once() -> None:
    """Each target of the Makefile that proves something is in it."""
    commands = [tier.command for step in PLAN for lane in step.lanes for tier in lane.tiers]
    assert len(commands) == len(set(commands))
    targets = set(re.findall(r"^(test[a-z0-9-]*|e2e|conformance|demo):", (REPO / "Makefile").read_text(), re.M))
    assert targets == {command.split()[1] for command in commands}
    assert {f"make e2e MODE={mode}" for mode in ("ipip", "macvlan")} <= set(commands)
