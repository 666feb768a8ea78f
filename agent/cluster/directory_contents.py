"""Parse the files of a directory of manifests, and compare two scans of it."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.cluster import manifest
from agent.cluster.kinds import KINDS, Kind
from agent.cluster.manifest import ManifestError
from agent.cluster.store import Change, Deleted, Listed, SourceProblem, Upserted
from agent.model.cluster import Resource
from agent.model.problem import Problem
from agent.runtime import atomic_file

Key = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file, as it was at the last scan."""

    stamp: tuple[int, int, int] | None
    """Time, size and inode; None: read it again at the next scan."""
    digest: bytes
    objects: tuple[Resource, ...]
    faults: tuple[ManifestError, ...] = ()
    partial: bool = False
    """Whether all objects of the file are in use, without their faulty fields."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The objects of all files together."""

    objects: Mapping[Key, Resource] = field(default_factory=dict)
    paths: Mapping[Key, Path] = field(default_factory=dict)
    files: Mapping[Path, ManifestFile] = field(default_factory=dict)
    problems: Mapping[str, Problem] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()
    """Files with faults whose objects are all in use, without their faulty fields."""
    complete: bool = False
    """Whether the directory was read at least once."""


def parse_file(
    path: Path, data: bytes, known: ManifestFile | None, stamp: tuple[int, int, int] | None
) -> ManifestFile:
    """Return a file of these bytes, which are parsed only if they changed."""
    digest = hashlib.sha256(data).digest()
    if known and known.digest == digest:
        return replace(known, stamp=stamp)
    objects_before = known.objects if known else ()
    try:
        found = manifest.parse(path, data, objects_before)
    except ManifestError as error:
        problem = error
    except (
        ValueError,
        TypeError,
        RecursionError,
        ArithmeticError,
    ) as error:  # YAML has more values
        problem = ManifestError(0, str(error), "write plain objects")
    else:
        return ManifestFile(stamp, digest, found.objects, found.faults, found.partial)
    return ManifestFile(stamp, digest, objects_before, (problem,))


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError, or ManifestError where it cannot be a manifest."""
    try:
        data = atomic_file.read(path, manifest.LARGEST)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG):
            raise ManifestError(0, error.strerror or str(error), "move it elsewhere, or split it") from error
        raise
    if not data:  # an editor leaves it so for a moment, a full disk permanently
        raise ManifestError(0, "is empty", "write an object or delete the file")
    return data


def changes_between(before: Contents, seen: Contents) -> Iterator[Change]:
    """Yield the changes between two scans."""
    if seen.complete and not before.complete:
        for kind in KINDS:
            yield Listed(kind, tuple(obj for (k, _name), obj in seen.objects.items() if k == kind))
    else:
        yield from _edits(_followed(before.objects), _followed(seen.objects))
    for source in before.problems.keys() - seen.problems.keys():
        yield SourceProblem(source, None)
    for source, problem in seen.problems.items():
        partial = source in seen.partial
        if before.problems.get(source) != problem or (source in before.partial) != partial:
            yield SourceProblem(source, problem, partial)


def _followed(objects: Mapping[Key, Resource]) -> Mapping[Key, Resource]:
    return {key: obj for key, obj in objects.items() if key[0] in KINDS}


def _edits(before: Mapping[Key, Resource], now: Mapping[Key, Resource]) -> Iterator[Change]:
    for kind, name in before:
        if (kind, name) not in now:
            yield Deleted(kind, name)
    for key, obj in now.items():
        old = before.get(key)
        if old != obj or old.resource_version != obj.resource_version:  # equality ignores the version
            yield Upserted(obj)
