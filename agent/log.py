"""Logs: one logfmt line an event to stderr; never stdout, as that belongs to results."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import queue
import sys
import threading
import time
from logging.handlers import QueueHandler, QueueListener

MOST_WAITING = 10_000  # records
REMEMBERED = 1000  # texts
BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@+-")


class Logfmt(logging.Formatter):
    """`time=... level=... at=... msg="..."`, whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; a trace is a field of it."""
        pairs = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "at": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            pairs["trace"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())


def _quoted(value: str) -> str:
    """JSON's quotes where a value is not one plain word: a newline in it can't fake a line."""
    return value if value and BARE.issuperset(value) else json.dumps(value, ensure_ascii=False)


class Handover(QueueHandler):
    """Hands records to the writer's thread; drops them when that is far behind."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """A reader of our stderr that stalls must not stall pods."""
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leave the formatting to the writer's thread: it is the same process."""
        return record


class Repeats(logging.Filter):
    """Lets a warning or error through once in `every` seconds, and says then how often it came meanwhile.

    What fails is tried again and again; the same line for each try would hide all others.
    """

    def __init__(self, every: float = 60.0) -> None:
        super().__init__()
        self._every = every
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        with self._lock:
            since, more = self._seen.pop((record.name, text), (-math.inf, 0))
            again = record.created - since >= self._every
            self._seen[record.name, text] = (record.created, 0) if again else (since, more + 1)
            if len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
        if again and more:
            record.msg, record.args = f"{text} ({more} times more since it was last written)", ()
        return again


def set_up(level: str) -> None:
    """Send our logs from `level` on to stderr, and those of libraries from warnings on, by a thread of its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Logfmt())
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(MOST_WAITING)
    writer = QueueListener(waiting, handler)
    writer.start()
    atexit.register(writer.stop)
    handover = Handover(waiting)
    handover.addFilter(Repeats())
    logging.basicConfig(level="WARNING", handlers=[handover], force=True)
    logging.getLogger("agent").setLevel(level.upper())
