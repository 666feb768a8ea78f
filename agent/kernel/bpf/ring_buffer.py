"""Read a BPF ring buffer through its mapped pages (Documentation/bpf/ringbuf.rst), without a library."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.kernel.bpf.syscall import Map

BUSY, DISCARD = 1 << 31, 1 << 30  # bits of a record's length (BPF_RINGBUF_BUSY_BIT, _DISCARD_BIT in linux/bpf.h)
HEADER = struct.Struct("=II")  # length, page; before each record
POSITION = struct.Struct("=Q")


class RingBuffer:
    """Read the records of a ring buffer; a record that is read is gone for all other readers.

    The kernel shows a page with the consumer's position, which the reader writes, one with the producer's, and the
    data twice in a row, so that no record is in two pieces.
    """

    def __init__(self, ring: Map, turns: Path) -> None:
        """Map the pages of a map of type BPF_MAP_TYPE_RINGBUF. Raises OSError.

        `turns`: a file or folder by whose lock (flock) readers take turns: a position that two write goes back.
        """
        self._size = ring.entries
        self._turns = os.open(turns, os.O_RDONLY | os.O_CLOEXEC)
        self._consumer = mmap.mmap(ring.fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        pages = mmap.PAGESIZE + 2 * self._size
        self._data = mmap.mmap(ring.fd, pages, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._poll = select.poll()
        self._poll.register(ring.fd, select.POLLIN)

    def wait(self, seconds: float) -> list[bytes]:
        """Return waiting records, as soon as there are any or the timeout ends. Raises OSError."""
        found = self._taken()
        if not found and self._poll.poll(seconds * 1000):
            found = self._taken()
        return found

    def close(self) -> None:
        """Unmap the pages; the map's descriptor stays open."""
        self._consumer.close()
        self._data.close()
        os.close(self._turns)

    def _taken(self) -> list[bytes]:
        with self._turn():
            return list(self._records())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        fcntl.flock(self._turns, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._turns, fcntl.LOCK_UN)

    def _records(self) -> Iterator[bytes]:
        at, end = self._position(self._consumer), self._position(self._data)
        if not 0 <= end - at <= self._size:  # broken by another tool; the kernel would write no more
            at = end
            POSITION.pack_into(self._consumer, 0, at)
        while at < end:
            start = mmap.PAGESIZE + at % self._size
            length, _page = HEADER.unpack_from(self._data, start)
            if length & BUSY:  # a program is still writing it; those after it wait, too
                return
            size = length & ~DISCARD
            if size > end - at - HEADER.size:
                POSITION.pack_into(self._consumer, 0, end)
                return
            if not length & DISCARD:
                yield self._data[start + HEADER.size : start + HEADER.size + size]
            at += HEADER.size + size + 7 & ~7
            POSITION.pack_into(self._consumer, 0, at)

    @staticmethod
    def _position(page: mmap.mmap) -> int:
        position: int = POSITION.unpack_from(page)[0]
        return position
