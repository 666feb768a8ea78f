"""Rules about the code of agent/ that neither ruff nor mypy checks: no shared mutable state, and no long files."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib
import ipaddress
import logging
import re
import types
import typing
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path, PurePath
from struct import Struct

import pytest

from agent.modes.registry import BUILT_IN
from tests.unit.sources import AGENT, FILES, nodes, tree

pytestmark = pytest.mark.xdist_group("sources")  # parsed once, where tests run side by side
FILE_LINES, FUNCTION_LINES = 350, 45

STATE = {
    "agent.kernel.netlink._threads": "a socket for each thread, which saves an ADD 0.3 ms (docs/architecture.md)",
    "agent.modes.registry.BUILT_IN": "Modes has read-only mappings of modes, and modes have no attributes",
}
"""The only objects of modules that could be changed, and why they may be there."""

CACHES = {
    "agent.cni.netconf._read": "a pure function of a netconf's text; 64 entries",
    "agent.codec.network_json.encode_network": "a pure function of a frozen value; 64 entries",
    "agent.codec.network_json._readers": "a pure function of a class",
    "agent.ipam.blocks.ranges": "a pure function of frozen values; 64 entries",
    "agent.kernel.bpf.syscall.possible_cpus": "the kernel's answer does not change before a reboot",
    "agent.kernel.tcx.known": "the kernel's answer does not change before a reboot",
    "agent.modes.ipip.bird.render._template": "a file of this package",
}
"""The only functions of modules that remember results, and why that is no state."""

ATOMS = (
    bool, bytes, int, float, str, type(None), range, type, types.FunctionType, types.GenericAlias, types.UnionType,
    typing.TypeVar, re.Pattern, Struct, PurePath, enum.Enum, logging.Logger, CDLL,
    ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
)  # fmt: skip
"""Types whose objects do not change, or whose state belongs to the process (logging, C libraries)."""


def name_of(path: Path) -> str:
    parts = path.relative_to(AGENT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def assigned(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """The names that a module or class gives values to, with their annotations as text."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from assigned(node.body)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        for name in (part for target in targets if target for part in ast.walk(target)):
            if isinstance(name, ast.Name):
                yield name.id, annotation


def is_constant(value: object) -> bool:
    """Whether neither the object nor what it consists of can change."""
    if isinstance(value, tuple | frozenset):
        return all(map(is_constant, value))
    if isinstance(value, types.MappingProxyType):
        return all(map(is_constant, (*value.keys(), *value.values())))
    if isinstance(value, functools.partial):
        return all(map(is_constant, (value.func, *value.args, *value.keywords.values())))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen = type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and all(is_constant(getattr(value, one.name)) for one in dataclasses.fields(value))
    return isinstance(value, ATOMS) or typing.get_origin(value) is not None or is_without_attributes(value)


def is_without_attributes(value: object) -> bool:
    """Whether an object is of a class of testcni and has no attributes: as modes, which are functions only."""
    return type(value).__module__.startswith("agent.") and not getattr(value, "__dict__", True)


def is_read_only(value: object, annotation: str) -> bool:
    """Whether nothing writes to a constant: where it is a dict, mypy refuses that by its annotation."""
    if isinstance(value, dict) and re.match(r"(ClassVar\[|Final\[)?Mapping\[", annotation):
        return all(is_read_only(each, "Mapping[") for each in value.values())
    return is_constant(value)


def namespaces(path: Path) -> Iterator[tuple[str, dict[str, object], list[ast.stmt]]]:
    """A module and its classes: their names, what they hold, and their bodies."""
    module = importlib.import_module(name_of(path))
    yield name_of(path), vars(module), tree(path).body
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and not issubclass(found := getattr(module, node.name), enum.Enum):
            yield f"{name_of(path)}.{node.name}", dict(vars(found)), node.body


MODULES = [path for path in FILES if path.name != "__main__.py"]


def test_modules_and_classes_hold_constants_only() -> None:
    """What changes belongs to an object that `agent/app.py` makes: so two agents fit into one process."""
    changeable = [
        f"{name}.{key}"
        for path in MODULES
        for name, values, body in namespaces(path)
        for key, annotation in assigned(body)
        if key in values and not isinstance(values[key], types.MemberDescriptorType)
        if not is_read_only(values[key], annotation) and f"{name}.{key}" not in STATE
    ]
    assert changeable == [], "give it to a constructor; a constant dict is annotated as Mapping[...]"


def test_no_function_rebinds_a_name_of_its_module() -> None:
    rebinding = [f"{path}:{node.lineno}" for path in FILES for node in nodes(path) if isinstance(node, ast.Global)]
    assert rebinding == []


def test_the_functions_that_remember_results_are_listed() -> None:
    found = {
        f"{name}.{key}"
        for path in MODULES
        for name, values, body in namespaces(path)
        for key in (node.name for node in body if isinstance(node, ast.FunctionDef))
        if hasattr(values[key], "cache_info")
    }
    assert found == set(CACHES)


def test_the_exceptions_are_there() -> None:
    """An entry of which the object is gone would allow the next one of that name."""
    for name in STATE:
        module, _, key = name.rpartition(".")
        assert not is_constant(getattr(importlib.import_module(module), key)), name


@pytest.mark.parametrize(
    "value", [[], {}, set(), bytearray(), types.SimpleNamespace(), ({},), functools.partial(print, [])]
)
def test_what_can_change_is_no_constant(value: object) -> None:
    assert not is_constant(value)
    assert not is_read_only(value, "")


def test_mechanisms_of_the_kernel_name_no_mode() -> None:
    """Except kinds of links of the kernel that two modes are named after."""
    kinds = {"subinterfaces.py": {"macvlan", "ipvlan"}}
    named = [
        f"{path}: {name}"
        for path in (AGENT / "kernel").rglob("*.py")
        for name in set(BUILT_IN.names) - kinds.get(path.name, set())
        if name in path.read_text().lower()
    ]
    assert named == []


def test_files_and_functions_are_short() -> None:
    long = [f"{path}: {count}" for path in FILES if (count := len(path.read_text().splitlines())) > FILE_LINES]
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno
                if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                    long.append(f"{path}:{node.lineno} {node.name}: {lines}")
    assert long == []
