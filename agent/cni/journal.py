"""The journal of DELs that the plugin wrote while no agent answered. It is replayed before any call is served."""

from __future__ import annotations

import errno
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.cni import protocol
from agent.cni.protocol import Call
from agent.codec import strict_json
from agent.codec.strict_json import JsonError
from agent.errors import CniError, Code
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.runtime import atomic_file
from agent.runtime.controller import Controller, Schedule

ABANDONED = 60.0  # seconds; a plugin writes for milliseconds
SCHEDULE = Schedule(resync=1.0)  # a DEL may have been journaled while the agent was starting
BACKOFF = 1.0, 30.0  # seconds between retries of a DEL that fails, first and longest
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
REJECTED = ".rejected"
RETRIED = "it is retried; its interface may still be there"
REMEDY = "see that the state-dir can be read and written"

log = logging.getLogger(__name__)

Stamp = tuple[str, int, int]
"""The name, inode and time of an entry: a later file of the same name is another entry."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """A DEL that failed: how often, when it is retried (time.monotonic), and the error."""

    tries: int
    after: float
    why: CniError


class Journal(Controller):
    """Does the journaled DELs of a directory, each once, and removes their files. For several threads at once."""

    def __init__(
        self,
        state_dir: Path,
        delete: Callable[[Call], object],
        done: Path | None = None,
        problems: PartProblems | None = None,
    ) -> None:
        """`done`: the file with entries that are done, but cannot be removed, for the next agent."""
        self._problems = problems or PartProblems("journal")
        super().__init__(SCHEDULE, self._problems.report_error)
        self._dir = state_dir / "deletes"
        self._delete = delete
        self._done = done
        self._lock = threading.Lock()
        self._over: dict[Stamp, str] = {}
        """Finished entries that still exist: the suffix to rename them to, or empty to remove them."""
        self._noted: frozenset[Stamp] = frozenset()
        self._failing: dict[Stamp, _Failed] = {}

    def prepare(self) -> None:
        """Create the directory, and remove incomplete files of plugins that were killed."""
        self._noted = frozenset(self._read_noted())
        self._over = dict.fromkeys(self._noted, "")
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._dir.glob(".*"):
                if time.time() - path.lstat().st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)
        except OSError as error:
            self._report({str(self._dir): Problem(f"journal {self._dir}", str(error), REMEDY)})

    def replay(self) -> int:
        """Do every DEL that is due, the oldest first, and return how many were done. DELs that fail stay."""
        try:
            if not any(self._dir.iterdir()) and not self._problems.get():
                return 0
            with self._lock:
                return self._replay_all(sorted(self._dir.glob("[!.]*.json")))
        except OSError as error:  # a journal that cannot be read must not keep pods from starting
            self._report({str(self._dir): Problem(f"journal {self._dir}", str(error), REMEDY)})
            return 0

    def waiting(self) -> int:
        """Return how many entries exist. Raises OSError."""
        return sum(path.suffix == ".json" and path.name[0] != "." for path in self._dir.iterdir())

    def once(self) -> bool:
        """Replay the journal; an entry that fails has a pause of its own."""
        self.replay()
        return True

    def _replay_all(self, paths: list[Path]) -> int:
        problems: dict[str, Problem] = {}
        stamps: set[Stamp] = set()
        done = 0
        for path in paths:
            try:
                stamp = _stamp(path)
                stamps.add(stamp)
                done += self._do_once(path, stamp)
                self._clear(path, stamp)
            except FileNotFoundError:
                continue
            except CniError as error:  # later entries are independent of it
                problems[str(path)] = Problem(f"journaled DEL {path}", error.msg, error.details or RETRIED)
            except OSError as error:
                problems[str(path)] = Problem(f"journaled DEL {path}", str(error), REMEDY)
        self._over = {stamp: suffix for stamp, suffix in self._over.items() if stamp in stamps}
        self._failing = {stamp: failed for stamp, failed in self._failing.items() if stamp in stamps}
        self._note()
        self._report(problems)
        return done

    def _do_once(self, path: Path, stamp: Stamp) -> bool:
        """Do the DEL of an entry unless it was done; return whether it was done now. Raises CniError, OSError."""
        if stamp in self._over:
            return False
        if (failed := self._failing.get(stamp)) and time.monotonic() < failed.after:
            raise failed.why
        return self._do(path, stamp)

    def _clear(self, path: Path, stamp: Stamp) -> None:
        """Remove a finished entry, or rename it. Raises CniError."""
        suffix = self._over[stamp]
        try:
            path.rename(path.with_suffix(suffix)) if suffix else path.unlink(missing_ok=True)
        except OSError as error:
            what = f"it is finished, but can't be removed: {error.strerror}"
            raise CniError(Code.IO_FAILURE, what, "make the state-dir writable, or remove it yourself") from error
        del self._over[stamp]

    def _do(self, path: Path, stamp: Stamp) -> bool:
        """Do the DEL of an entry; return False if it can never be done. Raises CniError."""
        try:
            self._delete(_read(path, stamp))
        except CniError as error:
            if error.code not in (Code.DECODING_FAILURE, Code.INVALID_ENVIRONMENT):
                self._fail(stamp, error)
                raise
            log.error("%s can never be done; renamed to %s: %s", path, REJECTED, error)
            self._over[stamp] = REJECTED
            return False
        except OSError as error:
            failed = CniError(Code.IO_FAILURE, str(error), REMEDY)
            self._fail(stamp, failed)
            raise failed from error
        except Exception as error:
            log.exception("%s failed unexpectedly", path)
            what = f"{type(error).__name__}: {error}"
            failed = CniError(Code.INTERNAL, what, "a bug of testcni; its log has the trace")
            self._fail(stamp, failed)
            raise failed from error
        self._failing.pop(stamp, None)
        self._over[stamp] = ""
        return True

    def _fail(self, stamp: Stamp, why: CniError) -> None:
        tries = self._failing[stamp].tries + 1 if stamp in self._failing else 1
        first, longest = BACKOFF
        pause = min(longest, first * 2 ** (tries - 2)) if tries > 1 else 0.0
        self._failing[stamp] = _Failed(tries, time.monotonic() + pause, why)

    def _report(self, problems: Mapping[str, Problem]) -> None:
        known = self._problems.get()
        for where, problem in problems.items():
            if where not in known:
                log.warning("%s", problem)
        self._problems.publish(dict(problems))

    def _note(self) -> None:
        """Write the entries that are done, but cannot be removed: the next agent must not do them again."""
        done = frozenset(stamp for stamp, suffix in self._over.items() if not suffix)
        if not self._done or done == self._noted:
            return
        try:
            atomic_file.beside(self._done, json.dumps(sorted(done))).rename(self._done)
            self._noted = done
        except OSError as error:
            log.warning("%s can't be written: %s", self._done, error)

    def _read_noted(self) -> Iterator[Stamp]:
        if not self._done:
            return
        try:
            for name, inode, when in strict_json.value(atomic_file.read(self._done)):
                yield (str(name), int(inode), int(when))
        except FileNotFoundError:
            return
        except (OSError, JsonError, TypeError, ValueError) as error:  # an entry's age still protects newer pods
            log.warning("%s can't be used: %s", self._done, error)


def _stamp(path: Path) -> Stamp:
    status = path.lstat()
    return path.name, status.st_ino, status.st_mtime_ns


def _read(path: Path, stamp: Stamp) -> Call:
    """Return the call of an entry, with the time when it was journaled. Raises CniError, OSError."""
    try:
        data = atomic_file.read(path, protocol.REQUEST_LIMIT)
    except OSError as error:
        # no plugin writes a symbolic link: a broken one can never be done
        if error.errno in (errno.EINVAL, errno.EFBIG, errno.ENXIO, errno.EISDIR) or path.is_symlink():
            raise CniError(Code.DECODING_FAILURE, str(error)) from error
        raise
    call = protocol.decode(data, None)
    if call.command != "DEL":
        raise CniError(Code.DECODING_FAILURE, f"is not a DEL, but {call.command!r}")
    earlier = bool(call.boot_id) and call.boot_id != BOOT_ID.read_text().strip()
    return replace(call, journaled=0 if earlier else stamp[2])
