"""Watch a directory for changes with inotify(7), and know which of its files are being written."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import time
from pathlib import Path

IN_MODIFY, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE = 0x2, 0x8, 0x100, 0x200
IN_MOVED_FROM, IN_MOVED_TO = 0x40, 0x80
IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF = 0x4, 0x400, 0x800
IN_Q_OVERFLOW, IN_IGNORED = 0x4000, 0x8000
IN_ONLYDIR = 0x1000000
WHOLE = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_DELETE  # the file of this name is written completely
# link(2) and symlink(2) cause only IN_CREATE
EVENTS = WHOLE | IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF
EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name
POLL = 0.2  # seconds
BLIND = 1.0  # seconds between assumed changes of a directory that cannot be watched

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Watch the files of one directory, which may be created and deleted; for one thread.

    Where the kernel allows no watch (its limits are per user), a change is assumed every `blind` seconds. `stop`
    is looked at every `poll` seconds, and so is a directory that does not exist.
    """

    def __init__(self, path: Path, poll: float = POLL, blind: float = BLIND) -> None:
        self._path = path
        self._poll, self._blind = poll, blind
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watch = -1
        self._identity: tuple[int, int] | None = None
        self._busy: set[str] = set()
        self._reattached()

    @property
    def busy(self) -> frozenset[str]:
        """Return names of files that were written to and not closed, as of the last `wait`."""
        return frozenset(self._busy)

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._watch = -1

    def wait(self, stop: threading.Event, timeout: float, settle: float = 0.0) -> bool:
        """Wait for a change, at most `timeout` seconds or until `stop`; return whether there was a change.

        After a change it waits `settle` more seconds, so that changes at about the same time are one.
        """
        deadline = time.monotonic() + timeout
        while not stop.is_set():
            if self._changed(stop, max(0.0, deadline - time.monotonic())):
                stop.wait(settle)
                self._drain()
                return True
            if time.monotonic() >= deadline:
                break
        return False

    def _changed(self, stop: threading.Event, left: float) -> bool:
        """Wait at most `poll` or `blind` seconds; return whether there was a change."""
        if self._reattached():
            return True
        if self._watch < 0:
            pause = self._poll if self._identity is None else self._blind
            stop.wait(min(pause, left))
            return self._identity is not None and left >= pause
        poller = select.poll()  # select(2) cannot use descriptors above 1023
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(min(self._poll, left) * 1000)) and self._drain()

    def _reattached(self) -> bool:
        """Watch the directory again if it was replaced; return whether it was created, deleted or replaced."""
        try:
            status = self._path.stat()
            identity = (status.st_dev, status.st_ino)
        except OSError:
            identity = None
        same = identity == self._identity
        if same and (identity is None or self._watch >= 0):
            return False
        if self._watch >= 0:
            _libc.inotify_rm_watch(self._fd, self._watch)
        self._watch = -1
        if identity is not None and self._fd >= 0:
            self._watch = _libc.inotify_add_watch(self._fd, os.fsencode(self._path), EVENTS | IN_ONLYDIR)
        self._identity = identity
        self._busy.clear()
        return not same or self._watch >= 0

    def _drain(self) -> bool:
        """Read all waiting events; return whether one of them is a change."""
        matters = False
        while self._fd >= 0:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                break
            offset = 0
            while offset < len(data):
                watch, mask, _cookie, length = EVENT.unpack_from(data, offset)
                name = data[offset + EVENT.size : offset + EVENT.size + length].rstrip(b"\0")
                offset += EVENT.size + length
                matters |= self._note(watch, mask, os.fsdecode(name))
        return matters

    def _note(self, watch: int, mask: int, name: str) -> bool:
        """Record one event; return whether it is a change."""
        if mask & IN_Q_OVERFLOW:
            self._busy.clear()  # the lost events may be their ends
            return True
        if watch != self._watch:  # of a directory that was replaced
            return False
        if mask & IN_IGNORED:
            self._watch = -1
        if mask & IN_MODIFY:
            self._busy.add(name)
            return False
        if mask & WHOLE:
            self._busy.discard(name)
        # a hidden file is a temporary one of another program, but a ConfigMap changes by its link `..data`
        return not name.startswith(".") or name.startswith("..")
