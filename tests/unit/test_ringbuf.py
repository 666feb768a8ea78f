"""A ring buffer's pages as the kernel fills them (Documentation/bpf/ringbuf.rst), here in a file."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.datapath.bpfcall import Map
from agent.datapath.ringbuf import BUSY, DISCARD, HEADER, POSITION, RingBuffer

SIZE = 4096


class Pages:
    """The producer's side."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(2 * mmap.PAGESIZE + 2 * SIZE))
        self.fd = os.open(path, os.O_RDWR)
        self.end = 0
        self.ring = RingBuffer(Map(self.fd, "events", 27, 0, 0, SIZE))

    def put(self, data: bytes, flags: int = 0) -> int:
        """Write a record, and return where it is."""
        at = self.end
        self.header(at, len(data) | flags)
        for number, byte in enumerate(data):
            self._write(at + HEADER.size + number, bytes([byte]))
        self.end += HEADER.size + len(data) + 7 & ~7
        os.pwrite(self.fd, POSITION.pack(self.end), mmap.PAGESIZE)
        return at

    def header(self, at: int, length: int) -> None:
        self._write(at, HEADER.pack(length, 0))

    def consumed(self) -> int:
        position: int = POSITION.unpack(os.pread(self.fd, POSITION.size, 0))[0]
        return position

    def _write(self, at: int, data: bytes) -> None:
        for copy in (0, SIZE):  # the same memory, twice in a row
            os.pwrite(self.fd, data, 2 * mmap.PAGESIZE + copy + at % SIZE)


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    it = Pages(tmp_path / "ring")
    yield it
    it.ring.close()
    os.close(it.fd)


def test_records_come_once_and_their_room_is_given_back(pages: Pages) -> None:
    pages.put(b"one")
    pages.put(b"second of 20 bytes..")
    assert pages.ring.wait(0) == [b"one", b"second of 20 bytes.."]
    assert pages.consumed() == pages.end == 16 + 32
    assert pages.ring.wait(0) == []


def test_a_record_that_is_being_written_is_waited_for(pages: Pages) -> None:
    pages.put(b"before")
    at = pages.put(b"slow", BUSY)
    pages.put(b"after")
    assert pages.ring.wait(0) == [b"before"]
    pages.header(at, len(b"slow"))
    assert pages.ring.wait(0) == [b"slow", b"after"]


def test_a_discarded_record_is_skipped(pages: Pages) -> None:
    pages.put(b"no", DISCARD)
    pages.put(b"yes")
    assert pages.ring.wait(0) == [b"yes"]
    assert pages.consumed() == pages.end


def test_round_and_round(pages: Pages) -> None:
    """A record that crosses the end is whole, as the data is there twice."""
    for number in range(3 * SIZE // 32):
        data = number.to_bytes(20, "little")
        pages.put(data)
        assert pages.ring.wait(0) == [data]
    assert pages.consumed() == pages.end > 2 * SIZE
