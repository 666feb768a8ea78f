"""Text for a terminal or a log: the words of others, such as names of files, must not control it or hide text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def python_code(character: str) -> str:
    r"""Return a character in the notation of Python, such as `\x1b`."""
    return ascii(character)[1:-1]


def json_code(character: str) -> str:
    r"""Return a character in the notation of JSON without short forms, such as `\u001b` (RFC 8259)."""
    return f"\\u{ord(character):04x}" if ord(character) < 1 << 16 else json.dumps(character)[1:-1]


def escaped(text: str, kept: str = "", code: Callable[[str], str] = json_code) -> str:
    """Return a text with a code for each character that str.isprintable refuses, except those in `kept`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else code(c) for c in text)


def escaped_values(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value with all its texts escaped."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, list):
        return [escaped_values(item) for item in value]
    if isinstance(value, dict):
        return {escaped(key): escaped_values(item) for key, item in value.items()}
    return value
