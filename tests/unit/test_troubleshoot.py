"""docs/operations/troubleshoot.md has words that testcni says today: a message that changes changes there, too."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator

import pytest

from tests.lab.space import REPO
from tests.unit.sources import FILES, nodes

pytestmark = pytest.mark.xdist_group("sources")
PAGE = REPO / "docs/operations/troubleshoot.md"
OTHERS = "## Words of other programs"
ROW = re.compile(r"^\| (.+?) \| .* \|$", re.MULTILINE)
WORDS = re.compile(r"``(.+?)``|`([^`]+)`")
KERNEL = {
    "[SSL:",
    "Address already in use",
    "Connection refused",
    "Device or resource busy",
    "HTTP 403",
    "HTTP 404",
    "ErrImagePull",
    "CrashLoopBackOff",
    "timed out",
    "nft list ruleset",
}
"""Words of the kernel, of libraries and of commands."""


def texts(code: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the texts of a syntax tree's nodes, with `…` in place of each value."""
    for each in code:
        if isinstance(each, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in each.values)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield re.sub(r"%[sdrg]|%\.0f|%\.\*s", "…", each.value)


@functools.cache
def said() -> str:
    """Return all texts of the agent, the plugin and the manifests, one a line."""
    agent = (text for path in FILES for text in texts(nodes(path)))
    others = [path.read_text() for path in (*REPO.glob("manifests/base/*.yaml"), REPO / "cni-bin/testcni.c")]
    return "\n".join([*agent, *others])


def words(page: str) -> Iterator[str]:
    """Yield what testcni says according to the first column of the page's tables."""
    own = page.partition("## Runtime and conflist")[2].partition(OTHERS)[0]
    for cell in ROW.findall(own):
        yield from (found[1] or found[2] for found in WORDS.finditer(cell))


def test_the_words_are_those_that_testcni_says() -> None:
    known = said()
    missing = [
        text
        for text in words(PAGE.read_text())
        if text not in KERNEL and not all(part.strip() in known for part in text.split("…"))
    ]
    assert missing == [], "no message has these words: see which one was changed"


def test_words_that_nobody_says_are_found() -> None:
    page = f"## Runtime and conflist\n| `neither podCIDR nor` `no such words` | x | y |\n{OTHERS}\n| `z` | x |\n"
    known = said()
    assert [text in known for text in words(page)] == [True, False]
