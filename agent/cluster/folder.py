"""The datastore in a folder of manifests: what one machine needs to show a whole cluster."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from agent.cluster import manifests, objects
from agent.cluster.inotify import FolderWatch
from agent.cluster.manifests import ManifestError
from agent.cluster.store import (
    KINDS,
    Change,
    ConflictError,
    Deliver,
    Gone,
    Kind,
    NotFoundError,
    Put,
    Replaced,
    StoreError,
    Trouble,
    kind_of,
)
from agent.model import Problem, Resource

SUFFIXES = (".yaml", ".yml", ".json")
DEBOUNCE = 0.02  # seconds: files that come together are read together
LOOK_AGAIN = 10.0  # seconds, should a change ever be missed
YOUNG = 50_000_000  # ns: a file this fresh may change again without its time showing it

log = logging.getLogger(__name__)
Key = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, int, int] | None
    """Time, size and inode; None: look again."""
    digest: bytes
    objects: tuple[Resource, ...]
    error: ManifestError | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What all files hold together."""

    objects: Mapping[Key, Resource] = field(default_factory=dict)
    files: Mapping[Key, Path] = field(default_factory=dict)
    problems: Mapping[str, Problem] = field(default_factory=dict)
    complete: bool = False
    """The folder has been read at least once."""


class Folder:
    """A Datastore (see agent.cluster.store) over the manifests in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._files: dict[Path, _File] = {}
        self._read_once = False

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        """All objects of a kind now. Raises StoreError when the folder can't be read."""
        seen = self._scan()
        if not seen.complete:
            raise StoreError(str(seen.problems.get(str(self._path), f"{self._path} can't be read")))
        return tuple(obj for (k, _name), obj in seen.objects.items() if k == kind)

    def watch(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver a complete list of each kind, then what changes, until `stop` is set."""
        watch = FolderWatch(self._path)
        before = _Seen()
        while not stop.is_set():
            seen = self._scan()
            if changes := list(_changes(before, seen)):
                deliver(changes)
            before = seen
            young = any(file.stamp is None and file.digest for file in self._files.values())
            watch.wait(stop, YOUNG / 1e9 if young else LOOK_AGAIN)
            stop.wait(DEBOUNCE)
        watch.close()

    def create(self, obj: Resource) -> Resource:
        """Create the object in a file of its own, which exists at once and whole, or not at all."""
        kind = kind_of(obj)
        if (kind, obj.name) in self._scan().objects:
            raise ConflictError(f"{kind} {obj.name} exists")
        with self._written(obj) as temporary:
            try:
                os.link(temporary, self._file(kind, obj.name))
            except FileExistsError as error:
                raise ConflictError(f"{kind} {obj.name} exists") from error
        return self._get(kind, obj.name)

    def update(self, obj: Resource) -> Resource:
        """Replace the object, if nobody else did since it was read."""
        kind = kind_of(obj)
        with self._exclusive():
            path, found = self._alone(kind, obj.name)
            if found.resource_version != obj.resource_version:
                raise ConflictError(f"{kind} {obj.name} has changed since it was read")
            with self._written(obj) as temporary:
                temporary.rename(path)
            return self._get(kind, obj.name)

    def delete(self, kind: Kind, name: str) -> None:
        """Delete the object with its file."""
        with self._exclusive():
            path, _found = self._alone(kind, name)
            try:
                path.unlink()
            except OSError as error:
                raise StoreError(f"{kind} {name} can't be deleted: {error}") from error

    def _file(self, kind: Kind, name: str) -> Path:
        return self._path / f"{kind.lower()}-{name}.yaml"

    def _get(self, kind: Kind, name: str) -> Resource:
        try:
            return self._scan().objects[(kind, name)]
        except KeyError:
            raise NotFoundError(f"there is no {kind} {name} in {self._path}") from None

    def _alone(self, kind: Kind, name: str) -> tuple[Path, Resource]:
        """The object and its file, which must hold no other."""
        found = self._get(kind, name)
        path = self._scan().files[(kind, name)]
        if len(self._files[path].objects) > 1:
            raise StoreError(f"{path} holds other objects than {kind} {name}; give it a file of its own")
        return path, found

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Alone among all who write to this folder."""
        try:
            fd = os.open(self._path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path} can't be written: {error}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _written(self, obj: Resource) -> Iterator[Path]:
        """A hidden file with the object, safely on disk; it is gone afterwards."""
        doc = objects.to_doc(obj)
        doc["metadata"].pop("resourceVersion", None)  # here it is the content itself
        path: Path | None = None
        try:
            fd, name = tempfile.mkstemp(prefix=".new-", dir=self._path)
            path = Path(name)
            with os.fdopen(fd, "w") as file:
                yaml.safe_dump(doc, file, sort_keys=False)
                file.flush()
                os.fsync(file.fileno())
            yield path
        except OSError as error:
            raise StoreError(f"{kind_of(obj)} {obj.name} can't be written to {self._path}: {error}") from error
        finally:
            if path:
                path.unlink(missing_ok=True)

    def _scan(self) -> _Seen:
        """Read what changed since the last time, and put all files together."""
        with self._lock:
            problems: dict[str, Problem] = {}
            try:
                paths = sorted(p for p in self._path.iterdir() if p.suffix in SUFFIXES and p.name[0] != ".")
                self._files = {path: file for path in paths if (file := self._load(path))}
                self._read_once = True
            except OSError as error:  # a folder that went away takes nothing with it
                remedy = "make it readable; until then its last state stays in force"
                problems[str(self._path)] = Problem(str(self._path), str(error), remedy)
            return self._together(problems)

    def _load(self, path: Path) -> _File | None:
        known = self._files.get(path)
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if known and known.stamp == stamp:
                return known
            data = path.read_bytes() if status.st_size <= manifests.LARGEST else b" " * (manifests.LARGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = ManifestError(0, str(error), "make it readable")
            return _File(None, b"", known.objects if known else (), problem)
        digest = hashlib.sha256(data).digest()
        trusted = stamp if abs(time.time_ns() - status.st_mtime_ns) > YOUNG else None
        if known and known.digest == digest:
            return _File(trusted, digest, known.objects, known.error)
        try:
            return _File(trusted, digest, manifests.parse(path, data))
        except ManifestError as error:
            return _File(trusted, digest, known.objects if known else (), error)

    def _together(self, problems: dict[str, Problem]) -> _Seen:
        found: dict[Key, Resource] = {}
        files: dict[Key, Path] = {}
        for path, file in self._files.items():
            if file.error:
                problems[str(path)] = file.error.problem(path)
            for obj in file.objects:
                key = (kind_of(obj), obj.name)
                if key in found:
                    what = f"{' '.join(key)} stands in {files[key]} already"
                    problems[str(path)] = Problem(str(path), what, "remove one; the first file's is in force")
                    continue
                found[key], files[key] = obj, path
        return _Seen(found, files, problems, self._read_once)


def _changes(before: _Seen, seen: _Seen) -> Iterator[Change]:
    """What happened between two looks."""
    if seen.complete and not before.complete:
        for kind in KINDS:
            yield Replaced(kind, tuple(obj for (k, _name), obj in seen.objects.items() if k == kind))
    elif seen.complete:
        for kind, name in before.objects.keys() - seen.objects.keys():
            yield Gone(kind, name)
        for key, obj in seen.objects.items():
            if before.objects.get(key) != obj:
                yield Put(obj)
    for source in before.problems.keys() - seen.problems.keys():
        yield Trouble(source, None)
    for source, problem in seen.problems.items():
        if before.problems.get(source) != problem:
            yield Trouble(source, problem)
