"""The labs of this machine, noted on disk: anybody can see and end them, also when their creator was killed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab import space
from tests.lab.space import REPO, Space

LABS = Path("/run/testcni-lab")


def claim(lab_id: str) -> int:
    """Return a descriptor of the lab's lock. While a process holds it open, the lab has a creator.

    A pid would not do: the creator may be in another PID namespace.
    """
    LABS.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(_lock(lab_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def note(lab_id: str, spaces: Sequence[Space], *, kept: bool) -> None:
    """Remember what must be ended; processes by pid and start time, as pids are used again."""
    doc = {
        "id": lab_id,
        "keep": kept,
        "creator": [os.getpid(), space.start_time(os.getpid())],
        "holders": [[one.pid, one.began] for one in spaces],
    }
    path = LABS / f"{lab_id}.json"
    path.with_suffix(".new").write_text(json.dumps(doc))
    path.with_suffix(".new").rename(path)


def labs() -> Iterator[dict[str, Any]]:
    """All labs, as noted."""
    for path in sorted(LABS.glob("*.json")):
        try:
            yield json.loads(path.read_text())
        except FileNotFoundError:  # another process has ended it
            continue


def down(lab_id: str | None = None) -> list[str]:
    """End one lab, or all; their ids."""
    ended = [lab for lab in labs() if lab_id in (None, lab["id"])]
    for lab in ended:
        _end(lab)
    return [lab["id"] for lab in ended]


def purge() -> None:
    """End the labs whose creator died and that nobody wanted to keep."""
    for lab in labs():
        if not lab["keep"] and _is_left(lab["id"]):
            _end(lab)


def warden(lab_id: str) -> subprocess.Popen[bytes]:
    """A process that ends the lab when this one dies, however that may be; a line on its stdin dismisses it."""
    script = 'read -r dismissed || exec "$0" -m tests.lab down "$1"'
    return subprocess.Popen(
        ("sh", "-c", script, sys.executable, lab_id),
        cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """End a warden that has nothing to do any more."""
    guard.communicate(b"done\n")


def _lock(lab_id: str) -> Path:
    return LABS / f"{lab_id}.lock"


def _is_left(lab_id: str) -> bool:
    """Return whether nothing holds a lab's lock."""
    try:
        lock = os.open(_lock(lab_id), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # it has ended
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _end(lab: Mapping[str, Any]) -> None:
    with _alone():
        alive = [pid for pid, began in lab["holders"] if space.start_time(pid) == began]
        space.end_all(alive)
        if (LABS / lab["id"]).exists():
            space.remove_tree(LABS / lab["id"])
        (LABS / f"{lab['id']}.json").unlink(missing_ok=True)
        _lock(lab["id"]).unlink(missing_ok=True)


@contextmanager
def _alone() -> Iterator[None]:
    """Two that end the same lab do so one after the other."""
    LABS.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(LABS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
