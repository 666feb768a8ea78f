"""Logs: one logfmt line an event to stderr; never stdout, as that belongs to results."""

from __future__ import annotations

import json
import logging
import sys
import time

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


def set_up(level: str) -> None:
    """Send our logs from `level` on to stderr, and those of libraries from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Logfmt())
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    logging.getLogger("agent").setLevel(level.upper())
