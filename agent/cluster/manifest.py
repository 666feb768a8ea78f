"""Parse one manifest file: its objects, and its faults with their lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from agent.cluster import objects
from agent.cluster.kinds import Kind, kind_of
from agent.cluster.object_fields import Faults, ObjectError
from agent.codec import strict_json, strict_yaml
from agent.codec.strict_json import JsonError
from agent.codec.strict_yaml import YamlError
from agent.model.cluster import Resource
from agent.model.problem import Problem

LARGEST = 64 << 20  # bytes
TOLD = 3  # faults of a file beside the first


@dataclass(frozen=True, slots=True)
class ManifestError(Exception):
    """A file is faulty: the line (0: unknown), what is wrong, how to fix it."""

    line: int
    what: str
    remedy: str

    def problem(self, path: Path) -> Problem:
        """Return the problem to report."""
        return Problem(f"{path}:{self.line}" if self.line else str(path), self.what, self.remedy)


def problem(path: Path, faults: Sequence[ManifestError]) -> Problem:
    """Return one problem for all faults of a file, at the line of the first."""
    first = faults[0].problem(path)
    more = [f"line {fault.line}: {fault.what}" for fault in faults[1:]]
    if len(more) > TOLD:
        more = [*more[:TOLD], f"and {len(more) - TOLD} more"]
    return replace(first, what="; ".join((first.what, *more)))


@dataclass(frozen=True, slots=True)
class Manifest:
    """The usable objects of a file, and the faults of the others."""

    objects: tuple[Resource, ...]
    faults: tuple[ManifestError, ...] = ()
    partial: bool = True
    """Whether all objects are in use, without their faulty fields."""


def parse(path: Path, data: bytes, known: Sequence[Resource] = ()) -> Manifest:
    """Return the objects in the bytes of a YAML or JSON file.

    A faulty object is replaced by the one of its name in `known`, the objects of the file's last good state.
    Raises ManifestError where the syntax is wrong, or a faulty object cannot be identified.
    """
    if len(data) > LARGEST:
        raise ManifestError(0, f"is larger than {LARGEST >> 20} MiB", "split it")
    found: dict[tuple[Kind, str], Resource] = {}
    before = {(kind_of(obj), obj.name): obj for obj in known}
    faults: list[ManifestError] = []
    partial = True
    for node, first, doc in _documents(path, data):
        for where, item in _parts(node, first, doc):
            read = _read(item, before)
            partial = partial and read.whole
            if before and read.obj is None:  # it is unknown which object it was: keep the last good state
                raise _at(node, where, first, read.faults[-1])
            faults += [_at(node, where, first, fault) for fault in read.faults]
            if read.obj and (key := (kind_of(read.obj), read.obj.name)) in found:
                twice = ObjectError("metadata.name", f"{' '.join(key)} is here twice", "remove one")
                raise _at(node, where, first, twice)
            if read.obj:
                found[key] = read.obj
    return Manifest(tuple(found.values()), tuple(faults), partial)


@dataclass(frozen=True, slots=True)
class _Item:
    """An object of a manifest as it is used."""

    obj: Resource | None
    """None: it is faulty, and nothing can replace it."""
    faults: Faults
    whole: bool
    """Whether only faulty fields of it are not in use."""


def _read(item: object, before: dict[tuple[Kind, str], Resource]) -> _Item:
    """Return an object, or what replaces a faulty one."""
    faults: Faults = []
    last_good = _last_good(item, before)
    try:
        obj = objects.usable(item, faults, last_good)
    except ObjectError as error:
        return _Item(last_good or error.stand_in, [*faults, error], whole=False)
    return _Item(replace(obj, resource_version=digest(item)), faults, whole=True)


def _parts(node: yaml.Node | None, line: int, doc: object) -> Iterator[tuple[str, object]]:
    """Yield the objects of a document with their paths in it. Raises ManifestError."""
    if doc is None:  # an empty document
        return
    try:
        for number, item in enumerate(objects.expand(doc)):
            yield "" if item is doc else f"items[{number}].", item
    except ObjectError as error:
        raise _at(node, "", line, error) from error


def _last_good(item: object, before: Mapping[tuple[Kind, str], Resource]) -> Resource | None:
    """Return the last good state of a faulty object; None where there is none."""
    metadata = item.get("metadata") if isinstance(item, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
    names = (name, f"{namespace or 'default'}/{name}")
    kind = item.get("kind") if isinstance(item, dict) else None
    return next((obj for key, obj in before.items() if key[0] == kind and key[1] in names), None)


def _at(node: yaml.Node | None, where: str, line: int, error: ObjectError) -> ManifestError:
    """Return an object's error with its line in the file."""
    field = where + error.path
    return ManifestError(_line(node, field, line), f"{field} {error.what}", error.remedy)


def digest(doc: object) -> str:
    """Return the resourceVersion of a document in a file: a hash of its content."""
    return hashlib.sha256(json.dumps(doc, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _documents(path: Path, data: bytes) -> Iterator[tuple[yaml.Node | None, int, object]]:
    """Yield each document with its node and its first line. Raises ManifestError."""
    try:
        if path.suffix == ".json":
            yield None, 1, strict_json.value(data)
            return
        for node, doc in strict_yaml.documents(data):
            yield node, node.start_mark.line + 1, doc
    except JsonError as error:
        raise ManifestError(error.line, f"is not JSON: {error.what}", "fix the syntax") from error
    except YamlError as error:
        raise ManifestError(error.line, error.what, "fix the syntax") from error


def _line(node: yaml.Node | None, path: str, otherwise: int) -> int:
    """Return the line of a field such as spec.podCIDRs[0], or of its nearest existing parent."""
    for part in path.replace("[", ".").replace("]", "").split("."):
        if node is None:
            break
        otherwise = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
        else:
            node = None
    return node.start_mark.line + 1 if node is not None else otherwise
