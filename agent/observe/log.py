"""Logs: one logfmt line an event to stderr; never stdout, as that belongs to results."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import queue
import sys
import time
from logging.handlers import QueueHandler, QueueListener

MOST_WAITING = 10_000  # records
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


def set_up(level: str) -> None:
    """Send our logs from `level` on to stderr, and those of libraries from warnings on, by a thread of its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Logfmt())
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(MOST_WAITING)
    writer = QueueListener(waiting, handler)
    writer.start()
    atexit.register(writer.stop)
    logging.basicConfig(level="WARNING", handlers=[Handover(waiting)], force=True)
    logging.getLogger("agent").setLevel(level.upper())
