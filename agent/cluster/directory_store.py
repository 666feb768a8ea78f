"""The datastore in a folder of manifests: what one machine needs to show a whole cluster."""

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
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import yaml

from agent.cluster import accepted_modes, manifest, objects
from agent.cluster.directory_contents import File, Key, Seen, between, contents, parsed
from agent.cluster.manifest import ManifestError
from agent.cluster.store import (
    ConflictError,
    Deliver,
    Kind,
    NotFoundError,
    StoreError,
    kind_of,
)
from agent.kernel.inotify import DirectoryWatch
from agent.model.cluster import AcceptedModes, Node, Resource
from agent.model.problem import Problem
from agent.runtime import atomic_file

RECEIVES = ".receives"  # suffix of what a node has announced
LONGEST_RECEIVES = 1 << 16  # bytes of such a file
SUFFIXES = (".yaml", ".yml", ".json")
DEBOUNCE = 0.02  # seconds: files that come together are read together
LOCKED_WITHIN, LOCKED_AGAIN = 5.0, 0.01  # seconds: a write takes milliseconds, but its process may be stopped
LOOK_AGAIN = 10.0  # seconds, should a change ever be missed
YOUNG = 50_000_000  # ns: a file this fresh may change again without its time showing it
STALLED = 10_000_000_000  # ns: who hasn't written for so long isn't in the middle of it


class DirectoryStore:
    """A Datastore (see agent.cluster.store) over the manifests in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._files: dict[Path, File] = {}
        self._identity: tuple[int, int] | None = None
        self._said: dict[str, AcceptedModes] = {}

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        """All objects of a kind now. Raises StoreError when the folder can't be read."""
        seen = self._scan()
        if not seen.complete:
            raise StoreError(str(seen.problems.get(str(self._path), f"{self._path} can't be read")))
        return tuple(obj for (k, _name), obj in seen.objects.items() if k == kind)

    def get(self, kind: Kind, name: str) -> Resource:
        """The object now; NotFoundError where no manifest has it."""
        found = self._scan().objects.get((kind, name))
        if found is None:
            raise NotFoundError(f"there is no {kind} {name} in {self._path}")
        return found

    def watch(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver a complete list of each kind, then what changes, until `stop` is set."""
        before = Seen()
        with closing(DirectoryWatch(self._path)) as watch:
            while not stop.is_set():
                seen = self._scan(watch.busy)
                if changes := [*between(before, seen)]:
                    deliver(changes)
                before = seen
                young = any(file.stamp is None and file.digest for file in seen.files.values())
                watch.wait(stop, YOUNG / 1e9 if young else LOOK_AGAIN, settle=DEBOUNCE)

    def create(self, obj: Resource) -> Resource:
        """Create the object in a file of its own, which exists at once and whole, or not at all."""
        kind = kind_of(obj)
        if (kind, obj.name) in self._scan().objects:
            raise ConflictError(f"{kind} {obj.name} exists")
        path = self._path / f"{kind.lower()}-{obj.name}.yaml"
        with self._written(obj, path) as temporary:
            try:
                os.link(temporary, path)  # unlike a rename, it fails where another agent was first
            except FileExistsError as error:
                raise ConflictError(f"{kind} {obj.name}: {path} exists") from error
        return self._alone(kind, obj.name)[1]

    def update(self, obj: Resource) -> Resource:
        """Replace the object, if nobody else did since it was read; fields that we don't know are not kept."""
        kind = kind_of(obj)
        with self._exclusive():
            path, found = self._alone(kind, obj.name)
            if found.resource_version != obj.resource_version:
                raise ConflictError(f"{kind} {obj.name} has changed since it was read")
            with self._written(obj, path) as temporary:
                temporary.rename(path)
            return self._alone(kind, obj.name)[1]

    def delete(self, kind: Kind, name: str, known: Resource | None = None) -> None:
        """Delete the object with its file, if it says what is known of it."""
        with self._exclusive():
            path, found = self._alone(kind, name)
            if known is not None and found != known:
                raise ConflictError(f"{kind} {name} is another one than was known")
            try:
                path.unlink()
            except FileNotFoundError as error:
                raise NotFoundError(f"there is no {kind} {name} in {self._path} any more") from error
            except OSError as error:
                raise StoreError(f"{kind} {name} can't be deleted: {error}") from error

    def publish_accepted_modes(self, node: str, text: str) -> None:
        """A small file beside the manifests, which are their owner's; an empty text removes it."""
        path = self._path / f"{quote(node, safe='')}{RECEIVES}"
        try:
            if not text:
                path.unlink(missing_ok=True)
                return
            atomic_file.beside(path.with_name(f".{path.name}"), f"{text}\n").rename(path)
        except OSError as error:
            raise StoreError(f"{path} can't be written: {error}") from error

    def _alone(self, kind: Kind, name: str) -> tuple[Path, Resource]:
        """The object and its file, which must be well and hold no other."""
        seen = self._scan()
        key = (kind, name)
        if key not in seen.objects:
            raise NotFoundError(f"there is no {kind} {name} in {self._path}")
        path = seen.paths[key]
        if problem := seen.problems.get(str(path)):
            raise StoreError(str(problem))
        if len(seen.files[path].objects) > 1:
            raise StoreError(f"{path} holds other objects than {kind} {name}; give it a file of its own")
        return path, seen.objects[key]

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Alone among all who write to this folder."""
        try:
            fd = os.open(self._path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path} can't be written: {error}") from error
        try:
            self._lock_within(fd, time.monotonic() + LOCKED_WITHIN)
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
                    what = f"somebody else has had {self._path}/.lock for {LOCKED_WITHIN:g} s"
                    raise StoreError(what) from error
            except OSError as error:  # a network file system may know no locks
                raise StoreError(f"{self._path}/.lock can't be locked: {error.strerror}") from error
            else:
                return
            time.sleep(LOCKED_AGAIN)

    @contextmanager
    def _written(self, obj: Resource, target: Path) -> Iterator[Path]:
        """A hidden file with the object as `target` will have it, safely on disk; it is gone afterwards."""
        doc = objects.to_doc(obj)
        doc["metadata"].pop("resourceVersion", None)  # here it is the content itself
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

    def _scan(self, busy: Collection[str] = ()) -> Seen:
        """Read what changed since the last time, but for files being written, and put all together."""
        with self._lock:
            problems: dict[str, Problem] = {}
            try:
                self._files, self._identity = self._read(busy)
                self._said = self._hear()
            except OSError as error:  # a folder that went away takes nothing with it
                remedy = "make it readable; until then its last state stays in force"
                problems[str(self._path)] = Problem(str(self._path), str(error), remedy)
            return self._together(problems)

    def _read(self, busy: Collection[str]) -> tuple[dict[Path, File], tuple[int, int]]:
        """All files, and which folder they are in. Raises OSError when that went away or lost everything."""
        identity = _identity(self._path)
        paths = sorted(p for p in self._path.iterdir() if p.suffix in SUFFIXES and p.name[0] != ".")
        files = {path: file for path in paths if (file := self._load(path, path.name in busy))}
        if _identity(self._path) != identity:
            raise OSError(errno.ESTALE, "it was replaced while it was read")
        if self._files and not files and identity != self._identity:
            raise OSError(errno.ESTALE, "another folder is here now, and it has no manifests")  # unmounted?
        return files, identity

    def _load(self, path: Path, busy: bool) -> File | None:
        """What a file holds; its last good objects and an error where it can't be used."""
        known = self._files.get(path)
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            age = abs(time.time_ns() - status.st_mtime_ns)
            if (known and known.stamp == stamp) or (busy and age < STALLED):
                return known
            return parsed(path, contents(path), known, stamp if age > YOUNG else None)
        except ManifestError as error:
            return File(None, b"", known.objects if known else (), (error,))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not path.is_symlink():
                return None  # it went while we looked
            problem = ManifestError(0, str(error), "make it readable")
            return File(None, b"", known.objects if known else (), (problem,))

    def _together(self, problems: dict[str, Problem]) -> Seen:
        found: dict[Key, Resource] = {}
        paths: dict[Key, Path] = {}
        doubles: set[Path] = set()
        for path, file in self._files.items():
            if file.faults:
                problems[str(path)] = manifest.problem(path, file.faults)
            for obj in file.objects:
                key = (kind_of(obj), obj.name)
                if key in found:
                    what = f"{' '.join(key)} stands in {paths[key]} already"
                    problems[str(path)] = Problem(str(path), what, "remove one; the first file's is in force")
                    doubles.add(path)
                    continue
                found[key], paths[key] = obj, path
        for key, obj in found.items():
            if isinstance(obj, Node) and (said := self._said.get(obj.name)):
                found[key] = replace(obj, accepted_modes=said)
        partial = frozenset(
            str(path) for path, file in self._files.items() if file.partial and path not in doubles
        )
        return Seen(found, paths, self._files, problems, partial, self._identity is not None)

    def _hear(self) -> dict[str, AcceptedModes]:
        """What nodes have announced. Raises OSError."""
        said = {}
        for path in self._path.glob(f"*{RECEIVES}"):
            if path.name[0] == ".":
                continue
            with contextlib.suppress(OSError, UnicodeDecodeError):  # it went, or is nothing that an agent wrote
                text = atomic_file.read(path, LONGEST_RECEIVES).decode()
                said[unquote(path.name.removesuffix(RECEIVES))] = accepted_modes.decode(text)
        return said


def _identity(path: Path) -> tuple[int, int]:
    """Which folder is there. Raises OSError, also for one that was removed and is only mounted here."""
    status = path.stat()
    if status.st_nlink == 0:
        raise OSError(errno.ESTALE, "it was removed, and is only mounted here")
    return status.st_dev, status.st_ino
