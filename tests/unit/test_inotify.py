"""Folders watched for real."""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.kernel import inotify
from agent.kernel.inotify import DirectoryWatch

NEVER = threading.Event()
SOON = 5.0  # seconds that a change may take on a slow machine
QUIET = 0.05  # seconds without a change that show there is none: events are queued before the system call ends


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "watched"
    path.mkdir()
    return path


@pytest.fixture
def watch(folder: Path) -> Iterator[DirectoryWatch]:
    watch = DirectoryWatch(folder)
    yield watch
    watch.close()


def test_every_way_of_changing_a_file_is_seen(folder: Path, watch: DirectoryWatch, tmp_path: Path) -> None:
    file = folder / "a"
    outside = tmp_path / "outside"
    steps: dict[str, Callable[[], object]] = {
        "create": file.touch,
        "write": lambda: file.write_text("x"),
        "chmod": lambda: file.chmod(0o600),
        "move out": lambda: file.rename(outside),
        "move in": lambda: outside.rename(file),
        "link": lambda: (folder / "b").hardlink_to(file),
        "symlink": lambda: (folder / "c").symlink_to("b"),
        "delete": file.unlink,
    }
    for what, step in steps.items():
        assert not watch.wait(NEVER, 0), what
        step()
        assert watch.wait(NEVER, SOON), what


def test_hidden_files_are_not_told_but_a_config_maps_link_is(folder: Path, watch: DirectoryWatch) -> None:
    hidden = folder / ".new-x"
    hidden.write_text("x")
    hidden.unlink()
    assert not watch.wait(NEVER, QUIET)
    (folder / "..data").symlink_to("elsewhere")
    assert watch.wait(NEVER, SOON)


def test_hidden_files_do_not_cut_the_wait_short(folder: Path, watch: DirectoryWatch) -> None:
    done = threading.Event()

    def touch() -> None:
        while not done.wait(0.005):
            (folder / ".hidden").touch()

    thread = threading.Thread(target=touch)
    thread.start()
    began = time.monotonic()
    assert not watch.wait(NEVER, 0.3)
    assert time.monotonic() - began >= 0.3
    done.set()
    thread.join()


def test_a_file_is_busy_until_its_writer_closes_it(folder: Path, watch: DirectoryWatch) -> None:
    (folder / "other").touch()
    with (folder / "a").open("w") as file:
        file.write("half")
        file.flush()
        assert watch.wait(NEVER, SOON)
        assert watch.busy == {"a"}
        assert not watch.wait(NEVER, 0)  # a write alone is no change
    assert watch.wait(NEVER, SOON)
    assert watch.busy == frozenset()


def test_a_busy_file_that_goes_is_not_busy(folder: Path, watch: DirectoryWatch) -> None:
    with (folder / "a").open("w") as file:
        file.write("half")
        file.flush()
        (folder / "a").unlink()
        assert watch.wait(NEVER, SOON)
        assert watch.busy == frozenset()


def test_settling_gathers_what_comes_together(folder: Path, watch: DirectoryWatch) -> None:
    threading.Timer(0.02, (folder / "b").touch).start()
    (folder / "a").touch()
    assert watch.wait(NEVER, SOON, settle=0.2)
    assert (folder / "b").exists()
    assert not watch.wait(NEVER, QUIET)


def test_an_absent_folder_is_awaited(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "late"
    watch = DirectoryWatch(path)
    assert not watch.wait(NEVER, QUIET)
    path.mkdir(parents=True)
    assert watch.wait(NEVER, SOON)
    (path / "a").touch()
    assert watch.wait(NEVER, SOON)
    watch.close()


@pytest.mark.parametrize("way", ["delete", "rename"])
def test_a_folder_that_goes_and_comes_again(folder: Path, watch: DirectoryWatch, way: str) -> None:
    if way == "delete":
        folder.rmdir()
    else:
        folder.rename(folder.with_name("away"))
    assert watch.wait(NEVER, SOON)
    while watch.wait(NEVER, QUIET):  # more than one event may tell it
        pass
    folder.mkdir()
    assert watch.wait(NEVER, SOON)
    while watch.wait(NEVER, QUIET):
        pass
    (folder / "a").touch()
    assert watch.wait(NEVER, SOON)


def test_a_folder_swapped_for_another_is_followed(folder: Path, watch: DirectoryWatch, tmp_path: Path) -> None:
    (tmp_path / "next").mkdir()
    folder.rename(tmp_path / "old")
    (tmp_path / "next").rename(folder)
    assert watch.wait(NEVER, SOON)
    while watch.wait(NEVER, QUIET):
        pass
    (tmp_path / "old" / "a").touch()
    assert not watch.wait(NEVER, QUIET)
    (folder / "a").touch()
    assert watch.wait(NEVER, SOON)


@pytest.mark.parametrize("noticed", [True, False])
def test_who_was_busy_in_another_folder_is_not_busy_here(
    folder: Path, watch: DirectoryWatch, tmp_path: Path, noticed: bool
) -> None:
    with (folder / "a").open("w") as file:
        file.write("half")
        file.flush()
        assert not noticed or watch.wait(NEVER, SOON)
        folder.rename(tmp_path / "old")
        folder.mkdir()
        assert watch.wait(NEVER, SOON)
        assert watch.busy == frozenset()


def test_a_watch_that_the_kernel_drops_is_set_again(folder: Path, watch: DirectoryWatch) -> None:
    inotify._libc.inotify_rm_watch(watch._fd, watch._watch)  # as on unmount, or when an inode is used again
    assert watch.wait(NEVER, SOON)
    while watch.wait(NEVER, QUIET):
        pass
    (folder / "a").touch()
    assert watch.wait(NEVER, SOON)


def test_overflow_is_a_change_and_forgets_who_is_busy(folder: Path, watch: DirectoryWatch) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip("the queue is too long to fill here")
    with (folder / ".a").open("w") as file:
        file.write("half")
        file.flush()
        assert not watch.wait(NEVER, QUIET)
        assert watch.busy == {".a"}
        (folder / ".b").touch()
        for _ in range(limit // 2 + 10):  # in turns, as equal events that follow each other are one
            os.utime(folder / ".a")
            os.utime(folder / ".b")
        assert watch.wait(NEVER, SOON)
        assert watch.busy == frozenset()


def test_stop_ends_the_wait(watch: DirectoryWatch) -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    began = time.monotonic()
    assert not watch.wait(stop, 60)
    assert time.monotonic() - began < SOON


class Denied:
    """A libc whose inotify has reached its limits."""

    def __init__(self, call: str) -> None:
        self._call = call
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __getattr__(self, name: str) -> Any:
        return (lambda *_args: -1) if name == self._call else getattr(self._libc, name)


@pytest.mark.parametrize("call", ["inotify_init1", "inotify_add_watch"])
def test_without_a_watch_time_itself_is_the_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(inotify, "_libc", Denied(call))
    watch = DirectoryWatch(folder, blind=0.05)
    began = time.monotonic()
    assert all(watch.wait(NEVER, SOON) for _ in range(4))
    assert time.monotonic() - began >= 4 * 0.05  # and no spinning
    assert not watch.wait(NEVER, 0.01)
    watch.close()


def test_a_watch_that_is_granted_later_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(inotify, "_libc", Denied("inotify_add_watch"))
        watch = DirectoryWatch(folder, blind=0.2)
    assert watch.wait(NEVER, SOON)  # as something may have changed before
    assert not watch.wait(NEVER, QUIET)
    (folder / "a").touch()
    assert watch.wait(NEVER, SOON)
    watch.close()


def test_more_descriptors_than_select_can_take(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("so many descriptors are not allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        watch = DirectoryWatch(folder)
        (folder / "a").touch()
        assert watch.wait(NEVER, SOON)
        watch.close()
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_closing_leaves_no_descriptor(folder: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    watch = DirectoryWatch(folder)
    watch.close()
    watch.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
