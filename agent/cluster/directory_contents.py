"""What the files of a folder hold, each and together, and what happened between two looks at them."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.cluster import manifest
from agent.cluster.manifest import ManifestError
from agent.cluster.store import KINDS, Change, Deleted, Kind, Listed, SourceProblem, Upserted
from agent.model.cluster import Resource
from agent.model.problem import Problem
from agent.runtime import atomic_file

Key = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class File:
    """One file, as it was at the last look."""

    stamp: tuple[int, int, int] | None
    """Time, size and inode; None: look again."""
    digest: bytes
    objects: tuple[Resource, ...]
    faults: tuple[ManifestError, ...] = ()
    partial: bool = False
    """Whether each object is in use, and lacks at most what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What all files hold together."""

    objects: Mapping[Key, Resource] = field(default_factory=dict)
    paths: Mapping[Key, Path] = field(default_factory=dict)
    files: Mapping[Path, File] = field(default_factory=dict)
    problems: Mapping[str, Problem] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()
    """Files whose objects are in use all the same."""
    complete: bool = False
    """The folder has been read at least once."""


def parsed(path: Path, data: bytes, known: File | None, stamp: tuple[int, int, int] | None) -> File:
    """A file by its bytes, which are parsed only if they are other ones than before."""
    digest = hashlib.sha256(data).digest()
    if known and known.digest == digest:
        return replace(known, stamp=stamp)
    objects_before = known.objects if known else ()
    try:
        found = manifest.parse(path, data, objects_before)
    except ManifestError as error:
        problem = error
    except (ValueError, TypeError, RecursionError, ArithmeticError) as error:  # YAML can say what no manifest does
        problem = ManifestError(0, str(error), "write plain objects")
    else:
        return File(stamp, digest, found.objects, found.faults, found.partial)
    return File(stamp, digest, objects_before, (problem,))


def contents(path: Path) -> bytes:
    """The bytes of a file; raises OSError, or ManifestError for what can't be a manifest."""
    try:
        data = atomic_file.read(path, manifest.LARGEST)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG):
            raise ManifestError(0, error.strerror or str(error), "move it elsewhere, or split it") from error
        raise
    if not data:  # what an editor leaves for a moment, and a full disk for good
        raise ManifestError(0, "is empty", "write an object or delete the file")
    return data


def between(before: Seen, seen: Seen) -> Iterator[Change]:
    """What happened between two looks."""
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
        if old != obj or old.resource_version != obj.resource_version:  # equality leaves the version out
            yield Upserted(obj)
