"""The runner of guests, with a program in the place of the kernel: what it makes of every way to end."""

from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

import pytest

from tests.kernel import __main__ as tier
from tests.kernel import guest, uml

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a guest's PID namespace needs root")


def run(tmp_path: Path, script: str, within: float = 20) -> tuple[int, str, str]:
    """The exit code, what the guest said, and what the runner said."""
    kernel = tmp_path / "linux"
    kernel.write_text(f"#!/bin/sh\n{script}\n")
    kernel.chmod(0o755)
    out, said = io.BytesIO(), list[str]()
    code = guest.run(kernel, ["true"], within=within, say=said.append, out=out)
    return code, out.getvalue().decode(), "\n".join(said)


@pytest.mark.parametrize("code", [0, 1, 5])
def test_the_commands_exit_code_is_passed_on(tmp_path: Path, code: int) -> None:
    got, out, said = run(tmp_path, f"echo Linux 1; printf 'a\\nb'; echo {guest.DONE} >&2; exit {code}")
    assert (got, out) == (code, "a\nb")
    assert re.match(r"Linux 1 booted in \d", said)


def test_a_panic_is_told_and_no_success(tmp_path: Path) -> None:
    got, _, said = run(tmp_path, f"echo {guest.DONE} >&2; echo Kernel panic - not syncing: why >&2; exit 0")
    assert got == guest.CRASHED
    assert "Kernel panic - not syncing: why" in said


def test_a_kernel_that_dies_is_a_crash(tmp_path: Path) -> None:
    assert run(tmp_path, "echo Linux 1; kill -SEGV $$")[0] == guest.CRASHED


def test_a_guest_that_says_it_is_well_without_booting_is_a_crash(tmp_path: Path) -> None:
    assert run(tmp_path, "exit 0")[0] == guest.CRASHED


@pytest.mark.parametrize("script", ["echo Linux 1; sleep 77", "sleep 77", "exec >&- ; sleep 77"])
def test_a_guest_that_hangs_is_ended_with_all_its_processes(tmp_path: Path, script: str) -> None:
    began, mine = time.monotonic(), f"7{os.getpid()}.7"  # another's test may look for its own
    got, _, said = run(tmp_path, f"setsid sleep {mine} & {script}", within=0.5)
    assert got == guest.TIMED_OUT
    assert "not done within" in said
    assert time.monotonic() - began < 8
    while [one for one in Path("/proc").glob("[0-9]*/cmdline") if mine.encode() in _read(one)]:
        assert time.monotonic() - began < 8
        time.sleep(0.05)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.parametrize(
    ("codes", "boots", "wanted"),
    [([0], 1, 0), ([1], 1, 1), ([125, 0], 2, 0), ([125, 125], 2, 125), ([124], 1, 124)],
)
def test_only_a_kernel_that_crashed_is_tried_again_and_that_once(
    codes: list[int], boots: int, wanted: int
) -> None:
    left = iter(codes)
    booted = []

    def boot() -> int:
        booted.append(code := next(left))
        return code

    assert tier.attempts(boot) == wanted
    assert len(booted) == boots


def test_the_default_selection_is_there() -> None:
    tests = [one for part in tier.SELECTION for one in part if not one.startswith("-")]
    assert "tests/kernel" in tests
    assert all((uml.FRAGMENT.parents[2] / one.partition("::")[0]).exists() for one in tests)


def test_an_option_is_asked_for_once() -> None:
    names = [line.partition("=")[0] for line in uml.options(uml.FRAGMENT.read_text())]
    assert len(names) == len(set(names))
