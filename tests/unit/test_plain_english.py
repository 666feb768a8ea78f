"""Code, comments and pages are in plain English: words that readers stumble over are not used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.lab.space import REPO
from tests.unit.sources import FILES, nodes

pytestmark = pytest.mark.xdist_group("sources")
FOLDERS = ("agent", "bird", "cni-bin", "docs", "ebpf", "image", "manifests")
SUFFIXES = (".py", ".c", ".h", ".conf", ".md", ".yaml")
PLAIN = {
    "anew": "again",
    "aside": "except, without",
    "dear": "expensive",
    "mend": "fix, repair",
    "mended": "fixed, repaired",
    "mends": "fixes, repairs",
    "nobody's": "of no node, of no pod",
    "somebody's": "of another program, of another node",
    "whoever": "the one that",
    "whomever": "any",
    "well again": "recovered",
    "of no use": "useless, not needed",
    "take leave": "close its sessions",
    "takes leave": "closes its sessions",
    "can't be had": "is unavailable",
}
"""What not to write, and what to write instead (docs/glossary.md has the terms of testcni)."""
ALLOWED: dict[str, frozenset[str]] = {}
"""By file, the words that it may have, as when it quotes another program."""
AVOIDED = re.compile(rf"\b({'|'.join(map(re.escape, PLAIN))})\b", re.IGNORECASE)
HEADLESS = re.compile(r"\s*(What|Who|Whose|Those)\b")
"""The beginning of a docstring that is neither a sentence nor a definition."""


def pages() -> Iterator[Path]:
    yield from REPO.glob("*.md")
    for folder in FOLDERS:
        yield from (path for path in (REPO / folder).rglob("*") if path.suffix in SUFFIXES)


def avoided(text: str, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Return lines with a word to avoid, each with the words to use."""
    return [
        f"line {number}: {word!r}: say {PLAIN[word.lower()]}"
        for number, line in enumerate(text.splitlines(), 1)
        for word in AVOIDED.findall(line)
        if word.lower() not in allowed
    ]


def headless(code: Iterable[ast.AST]) -> list[str]:
    """Return the docstrings, those of attributes included, that are neither a sentence nor a definition."""
    strings = (
        (each.lineno, each.value.value)
        for each in code
        if isinstance(each, ast.Expr)
        and isinstance(each.value, ast.Constant)
        and isinstance(each.value.value, str)
    )
    return [f"line {number}: {text.strip()}" for number, text in sorted(strings) if HEADLESS.match(text)]


def test_no_text_has_a_word_to_avoid() -> None:
    found = {
        name: lines
        for path in sorted(pages())
        if (lines := avoided(path.read_text(), ALLOWED.get(name := str(path.relative_to(REPO)), frozenset())))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("it is started anew", ["line 1: 'anew': say again"]),
        ("fine\nWhoever comes", ["line 2: 'Whoever': say the one that"]),
        ("recommended, amend, renewed, beside", []),
    ],
)
def test_words_are_found_as_whole_words(text: str, lines: list[str]) -> None:
    assert avoided(text) == lines


def test_docstrings_are_sentences_or_definitions() -> None:
    found = {str(path.relative_to(REPO)): lines for path in FILES if (lines := headless(nodes(path)))}
    assert found == {}


def test_headless_docstrings_are_found() -> None:
    source = '''
class Place:
    """Whose it is."""

    node: str
    """The node."""
    peers: int
    """
    Those that it has."""

def place():
    """Return what a place is."""
    "What a place is."
'''
    assert headless(ast.walk(ast.parse(source))) == [
        "line 3: Whose it is.",
        "line 8: Those that it has.",
        "line 13: What a place is.",
    ]
