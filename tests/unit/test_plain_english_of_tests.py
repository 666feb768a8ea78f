"""Tests of the slower tiers are in plain English, as the code is: words, and docstrings that are sentences."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.unit.test_plain_english import HEADLESS, avoided, headless

TESTS = Path(__file__).resolve().parents[1]
TIERS = ("bench", "ci", "conformance", "e2e", "kernel", "lab", "netns")
BEGINS_SO = re.compile(rf"[\"']{HEADLESS.pattern}")
"""Only files with such a string are parsed, which takes long."""
FILES = sorted(path for tier in TIERS for path in (TESTS / tier).rglob("*.py"))


def test_no_test_has_a_word_to_avoid() -> None:
    found = {str(path.relative_to(TESTS)): lines for path in FILES if (lines := avoided(path.read_text()))}
    assert found == {}


def test_docstrings_of_tests_are_sentences_or_definitions() -> None:
    found = {
        str(path.relative_to(TESTS)): lines
        for path in FILES
        if BEGINS_SO.search(source := path.read_text()) and (lines := headless(ast.walk(ast.parse(source))))
    }
    assert found == {}
