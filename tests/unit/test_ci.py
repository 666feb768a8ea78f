"""The table at the end of a CI run."""

from __future__ import annotations

from pathlib import Path

from tests.ci import times

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
