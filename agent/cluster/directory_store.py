"""Read, write and watch objects in a directory of manifests, for clusters without Kubernetes and for tests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

import yaml

from agent.cluster import accepted_modes, manifest, objects
from agent.cluster.directory_contents import Contents, Key, ManifestFile, changes_between, parse_file, read_file
from agent.cluster.kinds import Kind, kind_of
from agent.cluster.manifest import ManifestError
from agent.cluster.store import ConflictError, Deliver, NotFoundError, StoreError
from agent.kernel.inotify import POLL, DirectoryWatch
from agent.model.cluster import AcceptedModes, Node, Resource
from agent.model.problem import Problem
from agent.runtime import atomic_file

SUFFIX = ".receives"  # of the file with the modes that a node accepts
LONGEST = 1 << 16  # bytes of this file
SUFFIXES = (".yaml", ".yml", ".json")
LOCKED_AGAIN = 0.01  # seconds between two tries to take the lock
RESCAN = 10.0  # seconds between scans without a change, in case that one was missed


@dataclass(frozen=True, slots=True)
class DirectoryTimes:
    """The times for which a directory's files and writers are waited for, in seconds."""

    debounce: float = 0.02
    """The wait for more changes, as files that change together are read together."""
    locked: float = 5.0
    """The wait for the lock: a write takes milliseconds, but the writer may be stopped."""
    young: float = 0.05
    """The age up to which a file may change again without a new modification time."""
    stalled: float = 10.0
    """The silence after which a writer has stopped."""
    poll: float = POLL
    """The time between two looks of the watch: whether it is to stop, and for a directory that is missing."""


class DirectoryStore:
    """A Datastore (agent.cluster.store) in a directory of manifests."""

    def __init__(self, path: Path, times: DirectoryTimes | None = None) -> None:
        self._times = times or DirectoryTimes()
        self._path = path
        self._lock = threading.Lock()
        self._files: dict[Path, ManifestFile] = {}
        self._identity: tuple[int, int] | None = None
        self._accepted_modes: dict[str, AcceptedModes] = {}

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        """Return all objects of a kind. Raises StoreError where the directory is unreadable."""
        contents = self._scan()
        if not contents.complete:
            raise StoreError(str(contents.problems.get(str(self._path), f"{self._path} can't be read")))
        return tuple(obj for (k, _name), obj in contents.objects.items() if k == kind)

    def get(self, kind: Kind, name: str) -> Resource:
        """Return an object. Raises NotFoundError where no manifest has it."""
        found = self._scan().objects.get((kind, name))
        if found is None:
            raise NotFoundError(f"there is no {kind} {name} in {self._path}")
        return found

    def watch(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver a complete list of each kind, then what changes, until `stop` is set."""
        before = Contents()
        with closing(DirectoryWatch(self._path, self._times.poll)) as watch:
            while not stop.is_set():
                contents = self._scan(watch.busy)
                if changes := [*changes_between(before, contents)]:
                    deliver(changes)
                before = contents
                young = any(file.stamp is None and file.digest for file in contents.files.values())
                watch.wait(stop, self._times.young if young else RESCAN, settle=self._times.debounce)

    def create(self, obj: Resource) -> Resource:
        """Create an object in a file of its own, atomically. Raises ConflictError, StoreError."""
        kind = kind_of(obj)
        if (kind, obj.name) in self._scan().objects:
            raise ConflictError(f"{kind} {obj.name} exists")
        path = self._path / f"{kind.lower()}-{obj.name}.yaml"
        with self._temporary_file(obj, path) as temporary:
            try:
                os.link(temporary, path)  # unlike rename(2), it fails where the file exists
            except FileExistsError as error:
                raise ConflictError(f"{kind} {obj.name}: {path} exists") from error
        return self._single(kind, obj.name)[1]

    def update(self, obj: Resource) -> Resource:
        """Replace an object, without fields that testcni does not know. Raises ConflictError, StoreError."""
        kind = kind_of(obj)
        with self._locked():
            path, found = self._single(kind, obj.name)
            if found.resource_version != obj.resource_version:
                raise ConflictError(f"{kind} {obj.name} has changed since it was read")
            with self._temporary_file(obj, path) as temporary:
                temporary.rename(path)
            return self._single(kind, obj.name)[1]

    def delete(self, kind: Kind, name: str, known: Resource | None = None) -> None:
        """Delete an object and its file, if it equals `known`. Raises ConflictError, NotFoundError, StoreError."""
        with self._locked():
            path, found = self._single(kind, name)
            if known is not None and found != known:
                raise ConflictError(f"{kind} {name} has changed since it was read")
            try:
                path.unlink()
            except FileNotFoundError as error:
                raise NotFoundError(f"there is no {kind} {name} in {self._path} any more") from error
            except OSError as error:
                raise StoreError(f"{kind} {name} can't be deleted: {error}") from error

    def publish_accepted_modes(self, node: str, text: str) -> None:
        """Write a small file beside the manifests; an empty text removes it. Raises StoreError."""
        path = self._path / f"{quote(node, safe='')}{SUFFIX}"
        try:
            if not text:
                path.unlink(missing_ok=True)
                return
            atomic_file.beside(path.with_name(f".{path.name}"), f"{text}\n").rename(path)
        except OSError as error:
            raise StoreError(f"{path} can't be written: {error}") from error

    def _single(self, kind: Kind, name: str) -> tuple[Path, Resource]:
        """Return an object and its file. Raises StoreError where the file is faulty or has other objects."""
        contents = self._scan()
        key = (kind, name)
        if key not in contents.objects:
            raise NotFoundError(f"there is no {kind} {name} in {self._path}")
        path = contents.paths[key]
        if problem := contents.problems.get(str(path)):
            raise StoreError(str(problem))
        if len(contents.files[path].objects) > 1:
            raise StoreError(f"{path} holds other objects than {kind} {name}; give it a file of its own")
        return path, contents.objects[key]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock that all writers to this directory take. Raises StoreError."""
        try:
            fd = os.open(self._path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path} can't be written: {error}") from error
        try:
            self._lock_within(fd, time.monotonic() + self._times.locked)
            yield
        finally:
            os.close(fd)

    def _lock_within(self, fd: int, end: float) -> None:
        """Lock the file, until `end` (time.monotonic) at most. Raises StoreError."""
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    what = f"another process holds {self._path}/.lock for more than {self._times.locked:g} s"
                    raise StoreError(what) from error
            except OSError as error:  # a network file system may know no locks
                raise StoreError(f"{self._path}/.lock can't be locked: {error.strerror}") from error
            else:
                return
            time.sleep(LOCKED_AGAIN)

    @contextmanager
    def _temporary_file(self, obj: Resource, target: Path) -> Iterator[Path]:
        """Write an object to a hidden file in the form of `target`, synced to disk; remove it afterwards."""
        doc = objects.to_doc(obj)
        doc["metadata"].pop("resourceVersion", None)  # here it is a hash of the content
        path: Path | None = None
        try:
            fd, name = tempfile.mkstemp(prefix=".new-", dir=self._path)
            path = Path(name)
            with os.fdopen(fd, "w") as file:
                if target.suffix == ".json":
                    json.dump(doc, file, indent=2)
                else:
                    yaml.safe_dump(doc, file, sort_keys=False)
                file.flush()
                os.fsync(file.fileno())
            yield path
        except OSError as error:
            raise StoreError(
                f"{kind_of(obj)} {obj.name} can't be written to {self._path}: {error.strerror}"
            ) from error
        finally:
            if path:
                path.unlink(missing_ok=True)

    def _scan(self, busy: Collection[str] = ()) -> Contents:
        """Read files that changed since the last scan, except files being written; return all contents."""
        with self._lock:
            problems: dict[str, Problem] = {}
            try:
                self._files, self._identity = self._read(busy)
                self._accepted_modes = self._read_accepted_modes()
            except OSError as error:  # a directory that vanished deletes no objects
                remedy = "make it readable; until then its last state stays in use"
                problems[str(self._path)] = Problem(str(self._path), str(error), remedy)
            return self._combine(problems)

    def _read(self, busy: Collection[str]) -> tuple[dict[Path, ManifestFile], tuple[int, int]]:
        """Return all files and the directory's identity. Raises OSError where it vanished or is newly empty."""
        identity = _identity(self._path)
        paths = sorted(p for p in self._path.iterdir() if p.suffix in SUFFIXES and p.name[0] != ".")
        files = {path: file for path in paths if (file := self._load(path, path.name in busy))}
        if _identity(self._path) != identity:
            raise OSError(errno.ESTALE, "it was replaced while it was read")
        if self._files and not files and identity != self._identity:
            raise OSError(errno.ESTALE, "another folder is here now, and it has no manifests")  # unmounted?
        return files, identity

    def _load(self, path: Path, busy: bool) -> ManifestFile | None:
        """Return a file; where it is faulty, with its last good objects and the error."""
        known = self._files.get(path)
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            age = abs(time.time_ns() - status.st_mtime_ns) / 1e9
            if (known and known.stamp == stamp) or (busy and age < self._times.stalled):
                return known
            return parse_file(path, read_file(path), known, stamp if age > self._times.young else None)
        except ManifestError as error:
            return ManifestFile(None, b"", known.objects if known else (), (error,))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not path.is_symlink():
                return None  # it was deleted meanwhile
            problem = ManifestError(0, str(error), "make it readable")
            return ManifestFile(None, b"", known.objects if known else (), (problem,))

    def _combine(self, problems: dict[str, Problem]) -> Contents:
        found: dict[Key, Resource] = {}
        paths: dict[Key, Path] = {}
        doubles: set[Path] = set()
        for path, file in self._files.items():
            if file.faults:
                problems[str(path)] = manifest.problem(path, file.faults)
            for obj in file.objects:
                key = (kind_of(obj), obj.name)
                if key in found:
                    what = f"{' '.join(key)} is in {str(paths[key])!r} already"
                    problems[str(path)] = Problem(
                        str(path), what, "remove one; the one of the first file is in use"
                    )
                    doubles.add(path)
                    continue
                found[key], paths[key] = obj, path
        for key, obj in found.items():
            if isinstance(obj, Node) and (said := self._accepted_modes.get(obj.name)):
                found[key] = replace(obj, accepted_modes=said)
        partial = frozenset(
            str(path) for path, file in self._files.items() if file.partial and path not in doubles
        )
        return Contents(found, paths, self._files, problems, partial, self._identity is not None)

    def _read_accepted_modes(self) -> dict[str, AcceptedModes]:
        """Return the modes that nodes accept. Raises OSError."""
        said = {}
        for path in self._path.glob(f"*{SUFFIX}"):
            if path.name[0] == ".":
                continue
            with contextlib.suppress(OSError, UnicodeDecodeError):  # it was deleted, or no agent wrote it
                text = atomic_file.read(path, LONGEST).decode()
                said[unquote(path.name.removesuffix(SUFFIX))] = accepted_modes.decode(text)
        return said


def _identity(path: Path) -> tuple[int, int]:
    """Return device and inode of a directory. Raises OSError, also where it is removed but still mounted here."""
    status = path.stat()
    if status.st_nlink == 0:
        raise OSError(errno.ESTALE, "it was removed, but is still mounted here")
    return status.st_dev, status.st_ino
