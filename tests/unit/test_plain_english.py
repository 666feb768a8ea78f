"""Code, comments and pages are in plain English: words that readers stumble over are not used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
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
