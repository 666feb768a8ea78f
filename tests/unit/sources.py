"""The sources of the agent, each read and parsed once a process, for the tests that look at all of them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from tests.lab.space import REPO

AGENT = REPO / "agent"
FILES = sorted(AGENT.rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a file's syntax tree: to walk through it takes longer than to parse it."""
    return tuple(ast.walk(tree(path)))
