"""A folder's changes by inotify(7): which names changed, and when to look at everything again."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from pathlib import Path

IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE = 0x8, 0x40, 0x80, 0x200
IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF = 0x4, 0x400, 0x800
IN_Q_OVERFLOW, IN_IGNORED = 0x4000, 0x8000
IN_ONLYDIR = 0x1000000
EVENTS = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF
EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name
POLL = 0.2  # seconds between looks at `stop`, and at a folder that isn't there

_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """Changes of the files of one folder, which may come and go; for one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), f"inotify: {os.strerror(ctypes.get_errno())}")
        self._watch = -1
        self._identity: tuple[int, int] | None = None

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    def wait(self, stop: threading.Event, timeout: float) -> bool:
        """Wait for any change, or for `timeout` seconds, or for `stop`; whether something changed."""
        left = timeout
        while not stop.is_set() and left > 0:
            if self._reattached():
                return True
            if select.select([self._fd], [], [], min(POLL, left))[0] and self._drain():
                return True
            left -= POLL
        return False

    def _reattached(self) -> bool:
        """Whether the folder came, went or became another one since the last look."""
        try:
            status = self._path.stat()
            identity = (status.st_dev, status.st_ino)
        except OSError:
            identity = None
        if identity == self._identity and (identity is None or self._watch >= 0):
            return False
        if self._watch >= 0:
            _libc.inotify_rm_watch(self._fd, self._watch)
        self._watch = _libc.inotify_add_watch(self._fd, os.fsencode(self._path), EVENTS | IN_ONLYDIR)
        self._identity = identity if self._watch >= 0 else None
        return True

    def _drain(self) -> bool:
        """Read all events; whether one of them matters: hidden files are other people's half-written ones."""
        matters = False
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return matters
            offset = 0
            while offset < len(data):
                watch, mask, _cookie, length = EVENT.unpack_from(data, offset)
                name = data[offset + EVENT.size : offset + EVENT.size + length].rstrip(b"\0")
                offset += EVENT.size + length
                if mask & IN_IGNORED and watch == self._watch:
                    self._watch = -1
                matters |= not name.startswith(b".")
