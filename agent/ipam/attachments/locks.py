"""A lock for each attachment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class KeyedLocks:
    """A lock for each attachment, which exists for as long as a thread holds it or waits for it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[tuple[str, str], tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: tuple[str, str]) -> Iterator[None]:
        """Hold the lock of `key`."""
        with self._guard:
            lock, holders = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, holders + 1)
        try:
            with lock:
                yield
        finally:
            self._leave(key)

    @contextmanager
    def attempt(self, key: tuple[str, str]) -> Iterator[bool]:
        """Hold the lock of `key` if it is free, without waiting; yield whether it is held."""
        with self._guard:
            free = key not in self._locks
            if free:
                lock = threading.Lock()
                lock.acquire()
                self._locks[key] = (lock, 1)
        try:
            yield free
        finally:
            if free:
                lock.release()
                self._leave(key)

    def _leave(self, key: tuple[str, str]) -> None:
        with self._guard:
            lock, holders = self._locks.pop(key)
            if holders > 1:
                self._locks[key] = (lock, holders - 1)
