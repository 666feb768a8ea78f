"""Write BIRD's log lines into the agent's log, through a named pipe that outlives both processes.

The agent opens it for both directions, non-blocking. So BIRD never waits for a reader, and does not lose the pipe
when the agent is killed; the next agent reads what was written meanwhile (up to 64 KiB, see pipe(7)).
"""

from __future__ import annotations

import logging
import os
import re
import select
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

LINE = re.compile(r"(?:bird: )?(?:\d{4}-\d\d-\d\d )?(?:\d\d:\d\d:\d\d(?:\.\d+)? )?<([A-Z]+)> (.*)")
LEVELS: Mapping[str, int] = {
    "DBG": logging.DEBUG,
    "TRACE": logging.DEBUG,
    "INFO": logging.INFO,
    "RMT": logging.WARNING,
    "WARN": logging.WARNING,
    "ERR": logging.ERROR,
    "AUTH": logging.ERROR,
    "FATAL": logging.ERROR,
    "BUG": logging.CRITICAL,
}
FAREWELL = "Shutdown completed"  # BIRD logs it as fatal
LONGEST = 4096  # characters of a line
LOOK = 0.5  # seconds to the next look whether the agent stops

log = logging.getLogger(__name__)


def parse(line: str) -> tuple[int, str]:
    """Return level and message of a line of BIRD; a line without a class is a warning."""
    found = LINE.fullmatch(line)
    if not found:
        return logging.WARNING, line[:LONGEST]
    if found[2] == FAREWELL:
        return logging.INFO, found[2]
    return LEVELS.get(found[1], logging.WARNING), found[2][:LONGEST]


def open_pipe(path: Path) -> int:
    """Return a descriptor of the pipe at `path`, which is created if it is missing. Raises OSError."""
    if path.exists() and not stat.S_ISFIFO(path.lstat().st_mode):
        path.unlink()
    if not path.exists():
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


def follow(fd: int, stop: threading.Event) -> None:
    """Log the lines from the pipe until `stop` is set."""
    rest = b""
    while not stop.is_set():
        if not select.select([fd], [], [], LOOK)[0]:
            continue
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            continue
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[-LONGEST:]
        for line in lines:
            level, text = parse(line.decode(errors="replace").strip())
            log.log(level, "bird: %s", text)
