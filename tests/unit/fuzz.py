"""Texts that are nearly right, for the fuzz tests: parts of good documents replaced, removed and repeated.

Without FUZZ_EXAMPLES the texts are the same each time. `make fuzz-agent` tries new ones.
"""

from __future__ import annotations

import copy
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.unit import properties

EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "")
TOKENS = (
    b"9" * 5000, b"1e999", b"-1", b"0", b"0x" + b"f" * 5000, b"NaN", b"null", b"true", b"1:59", b"2026-13-45",
    b"[" * 2000, b"{", b"}", b"]", b'"', b"'", b":", b",", b"-", b"\n", b"\r", b"\x85", b" ", b"\t", b"#",
    b"---\n",
    b"\\ud800", b"\\u0000", b"\xff", b"\xef\xbb\xbf", b"\0", b"*a", b"&a ", b"!!int ", b"- " * 300, b"? [a]\n: b",
    b'""', b"[]", b"{}", b"::", b"/129", b"/0", b"%eth0", b"::ffff:1.2.3.4", b"9999-12-31T23:59:59-14:00",
)  # fmt: skip
WORD = re.compile(rb"[0-9]+|[A-Za-z_]+|\s+|[^\w\s]")
VALUES: st.SearchStrategy[Any] = st.sampled_from([
    None, True, 0, -1, 1.5, 10**39, "", "x", "\ud800", "::", "0.0.0.0/0", "::/0", [], {}, [None], [[]], [7],
])  # fmt: skip


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try so many examples, always the same; with FUZZ_EXAMPLES that many, which are new each time."""
    return settings(
        max_examples=int(EXAMPLES or properties.examples(examples)),
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        print_blob=bool(EXAMPLES),
        suppress_health_check=list(HealthCheck),
    )


def dumped(doc: object) -> bytes:
    return json.dumps(doc).encode()


def texts(*seeds: bytes) -> st.SearchStrategy[bytes]:
    """One of the seeds with changes, of its values if it is JSON and of its words; now and then any bytes."""
    return _texts(seeds)


@st.composite
def _texts(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    how = draw(st.integers(0, 9))
    if not how:
        return draw(st.binary(max_size=40))
    text = draw(st.sampled_from(seeds))
    if how > 3 and (doc := _parsed(text)):
        return _changed(draw, doc)
    for _ in range(draw(st.integers(0, 3))):
        text = _cut(draw, text)
    return text


def _cut(draw: st.DrawFn, text: bytes) -> bytes:
    """The text with a word or some bytes replaced, repeated or removed."""
    spans = [match.span() for match in WORD.finditer(text)] or [(0, 0)]
    start, end = draw(st.sampled_from(spans))
    match draw(st.sampled_from(["word", "bytes", "line"])):
        case "bytes":
            start = draw(st.integers(start, end))
            end = min(len(text), start + draw(st.integers(0, 20)))
        case "line":
            end = max(end, text.find(b"\n", end))
    put = draw(st.sampled_from([b"", text[start:end] * 2, *TOKENS]) | st.binary(max_size=4))
    return text[:start] + put + text[end:]


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _changed(draw: st.DrawFn, doc: Any) -> bytes:
    """The document with values of other types, for what only parsed ones get to."""
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from([*_places(doc)] or [({}, "")]))
        if draw(st.integers(0, 4)):
            container[key] = copy.deepcopy(draw(VALUES))
        else:
            container.pop(key, None) if isinstance(container, dict) else container.pop(key)
    return dumped(doc)


def _places(doc: Any) -> Iterator[tuple[Any, Any]]:
    """Where in a document there is a value."""
    keys = doc.keys() if isinstance(doc, dict) else range(len(doc)) if isinstance(doc, list) else ()
    for key in [*keys]:
        yield doc, key
        yield from _places(doc[key])


@st.composite
def lines(draw: st.DrawFn, text: str, code: int) -> bytes:
    """The text with some of its lines changed, but for their first characters, which are `code` many."""
    rows = text.encode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(rows) - 1))
        changed = _cut(draw, rows[number][code:]).replace(b"\n", b" ")
        rows[number] = rows[number][:code] + changed
    return b"\n".join(rows) + b"\n"


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder for one example."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as path:
        yield Path(path)
