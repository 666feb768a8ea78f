"""Write logs in logfmt, one line for each event, to stderr; stdout is for results."""

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

from agent.runtime.printable import escaped

MOST_WAITING = 10_000  # records
REMEMBERED = 1000  # texts
BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@+-")


class Logfmt(logging.Formatter):
    """Format a record as `time=... level=... at=... msg="..."`, with quotes where needed."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; a traceback is its field `trace`."""
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
    """Return a value, quoted as JSON unless it is one plain word, so that a newline cannot start a false line."""
    if value and BARE.issuperset(value):
        return value
    return escaped(json.dumps(value, ensure_ascii=False))


class Handover(QueueHandler):
    """Pass records to the writer's thread; drop them when its queue is full."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a record without waiting: a reader of stderr that stalls must not delay pods."""
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leave the formatting to the writer's thread, which is in the same process."""
        return record


class Repeats(logging.Filter):
    """Pass a repeated warning or error once in `every` seconds, with the number of repetitions.

    A failed operation is retried often; one line for each retry would hide all other lines.
    """

    def __init__(self, every: float = 60.0) -> None:
        super().__init__()
        self._every = every
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is written."""
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
            record.msg, record.args = f"{text} ({more} more times since it was last written)", ()
        return again


def set_up(level: str) -> None:
    """Write the agent's logs from `level` on to stderr, and warnings of libraries, in a thread of its own."""
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
