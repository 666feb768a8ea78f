"""What tests of all folders share: addresses in short, and waiting for a condition."""

from __future__ import annotations

import ast
import builtins
import inspect
import ipaddress
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from agent.ip import Address, Subnet
from tests.lab.space import PATIENCE

T = TypeVar("T")
WITHIN = 60.0  # seconds: a busy machine takes long, and waiting ends as soon as it can


def net(text: str) -> Subnet:
    """Return a network by its text."""
    return ipaddress.ip_network(text)


def ip(text: str) -> Address:
    """Return an address by its text."""
    return ipaddress.ip_address(text)


def eventually(
    look: Callable[..., T], within: float = WITHIN, every: float = 0.01, ignore: tuple[type[Exception], ...] = ()
) -> T:
    """Return what `look` returns once that is true, looking each `every` seconds.

    Raises AssertionError after `within` seconds (in a guest a multiple), with what was last seen.
    An error of a kind in `ignore` counts as not true.
    """
    last: object = None
    end = time.monotonic() + within * PATIENCE
    while True:
        try:
            if value := look():
                return value
            last = value
        except ignore as error:
            last = error
        if time.monotonic() >= end:
            raise AssertionError(f"not within {within * PATIENCE:g} s: {last!r}{_seen(look)}")
        time.sleep(every)


def seconds_until(look: Callable[..., object], within: float = WITHIN, every: float = 0.01) -> float:
    """Return how many seconds passed until `look` returned something true. Raises AssertionError."""
    began = time.monotonic()
    eventually(look, within, every)
    return time.monotonic() - began


def _seen(look: Callable[..., object]) -> str:
    """Return the values that a lambda compares, as they are now: a bare False says little."""
    try:
        outer = inspect.getclosurevars(look)
        defaults = {p.name: p.default for p in inspect.signature(look).parameters.values()}
        names = {**vars(builtins), **outer.globals, **outer.nonlocals, **defaults}
        return "".join(f"; {text} is {value!r}" for text, value in _compared(look, names))
    except Exception as error:  # noqa: BLE001 - it must not hide the failure that is being shown
        return f" (values are not shown: {error!r})"


def _compared(look: Callable[..., object], names: dict[str, Any]) -> Iterator[tuple[str, object]]:
    tree = ast.parse(Path(look.__code__.co_filename).read_text())
    line = look.__code__.co_firstlineno
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno == line]
    inside = ast.walk(found[0].body) if len(found) == 1 else ()
    for compared in (node for node in inside if isinstance(node, ast.Compare)):
        for operand in (compared.left, *compared.comparators):
            used = [node for node in ast.walk(operand) if isinstance(node, ast.Name)]
            own = {node.id for node in used if isinstance(node.ctx, ast.Store)}
            if used and {node.id for node in used} <= names.keys() | own:
                code = compile(ast.Expression(operand), "<compared>", "eval")
                yield ast.unparse(operand), eval(code, names)  # noqa: S307 - the test itself has just called it
