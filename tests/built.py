"""Where what is built once a machine is kept, and how two that want the same build it once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Say = Callable[[str], None]


def cache() -> Path:
    """The folder of this machine's builds, for all clones."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testcni"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def alone(lock: Path, say: Say) -> Iterator[None]:
    """Hold a lock file; wait for another process that builds the same."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process builds {lock.stem}: waiting for it")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
