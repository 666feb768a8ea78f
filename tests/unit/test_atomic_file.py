"""Files that others wrote: whatever is in their place, nothing is waited for and nothing is left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.runtime import atomic_file


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _descriptors() -> list[str]:
    return sorted(fd.name for fd in Path("/proc/self/fd").iterdir())


def _large(path: Path) -> None:
    path.write_bytes(b"x" * 11)


OTHERS: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a link to a folder": lambda path: path.symlink_to("/"),
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": _socket,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "what is too large": _large,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_is_no_file_costs_no_descriptor_and_is_told_alike_each_time(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Each look at a folder `x.yaml` left a descriptor open, and named it in a problem that was new each time."""
    make(path := tmp_path / "x.yaml")
    before, told = _descriptors(), set()
    for _ in range(3):
        with pytest.raises(OSError) as error:  # noqa: PT011 - of several kinds, whose text is what counts
            atomic_file.read(path, 10)
        told.add(str(error.value))
    assert _descriptors() == before
    assert len(told) == 1
