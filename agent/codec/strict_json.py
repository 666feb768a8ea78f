"""Read JSON of others, with one error type for all faults.

`json.loads` raises several types of errors (syntax, numbers of more than 4,300 digits, deep nesting, text that is
not UTF-8), and accepts what no field of testcni has (NaN, infinity, half of a surrogate pair, a duplicate name).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

DIGITS = 40  # of a whole number; the longest in any field has 39 (an IPv6 address)
DEPTH = 512  # levels of nesting, as in the plugin; the interpreter's own limit depends on the caller's stack

_OPENING = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]')
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # may be half of a surrogate pair


class JsonError(ValueError):
    """A text is not valid JSON: what is wrong, with line and column if known."""

    def __init__(self, what: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"{what} at line {line}, column {column}" if line else what)
        self.what = what
        self.line = line


def value(data: bytes | str) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of a JSON text. Raises JsonError, also for values that no field can have."""
    text = _text(data)
    found = _loads(text, parse_int=_whole, parse_float=_float, parse_constant=_constant, object_pairs_hook=_once)
    if text.count("[") + text.count("{") > DEPTH and _depth(text) > DEPTH:
        raise JsonError(f"nested deeper than {DEPTH} levels")
    if _HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise JsonError("a \\u escape is half of a character") from error
    return found


def mapping(data: bytes | str) -> dict[str, Any]:
    """Return the object of a JSON text. Raises JsonError, also for another value than an object."""
    return _object(value(data))


def tolerant(data: bytes) -> dict[str, Any]:
    """Return the object of a text with many entries, where a fault in one entry must not affect the others.

    Bytes that are not UTF-8 become surrogates, and numbers that are too long become infinity; the reader of the
    field reports them. Raises JsonError.
    """
    return _object(_loads(data.decode("utf-8", "surrogateescape"), parse_int=_whole_or_infinity))


def _text(data: bytes | str) -> str:
    try:
        if isinstance(data, bytes):
            return data.decode()
        data.encode()
    except UnicodeDecodeError as error:
        raise JsonError("not UTF-8", data[: error.start].count(b"\n") + 1, 1) from error  # type: ignore[arg-type]
    except UnicodeEncodeError as error:
        raise JsonError("not UTF-8", data[: error.start].count("\n") + 1, 1) from error  # type: ignore[arg-type]
    return data


def _loads(text: str, **hooks: Any) -> Any:  # noqa: ANN401 - those of json.loads
    try:
        return json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.lineno, error.colno) from error
    except RecursionError as error:
        raise JsonError(f"nested deeper than {DEPTH} levels") from error


def _object(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise JsonError(f"a JSON {type(found).__name__}, not an object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise JsonError(f"a number of {len(digits)} digits")
    return int(digits)


def _whole_or_infinity(digits: str) -> int | float:
    return int(digits) if len(digits) <= DIGITS else math.inf


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JsonError("a number that is too large")
    return number


def _constant(name: str) -> float:
    raise JsonError(f"{name} is not a JSON value")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonError(f"the name {twice[:80]!r} is given twice in one object")
    return found


def _depth(text: str) -> int:
    return max(_levels(match[0] for match in _OPENING.finditer(text)))


def _levels(signs: Iterable[str]) -> Iterable[int]:
    depth = 0
    for sign in signs:
        depth += (sign in "[{") - (sign in "]}")
        yield depth
