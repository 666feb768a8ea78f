"""A ring buffer's pages as the kernel fills them (Documentation/bpf/ringbuf.rst), here in a file."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kernel.bpf.ring_buffer import BUSY, DISCARD, HEADER, POSITION, RingBuffer
from agent.kernel.bpf.syscall import Map

SIZE = 4096


class Pages:
    """The producer's side."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(2 * mmap.PAGESIZE + 2 * SIZE))
        self.fd = os.open(path, os.O_RDWR)
        self.end = 0
        self.turns = path.parent
        self.ring = self.reader()

    def reader(self) -> RingBuffer:
        return RingBuffer(Map(self.fd, "events", 27, 0, 0, SIZE), self.turns)

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


def test_two_readers_share_the_records_and_never_put_the_position_back(pages: Pages) -> None:
    """Each has its turn: one that wrote a position of before would read what is half overwritten."""
    other = pages.reader()
    numbers = iter(range(10**9))
    seen: list[bytes] = []
    done = threading.Event()

    def read(ring: RingBuffer) -> None:
        while not done.is_set():
            seen.extend(ring.wait(0))

    readers = [threading.Thread(target=read, args=(ring,)) for ring in (pages.ring, other)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for reader in readers:
            reader.start()
        put, last = 0, 0
        while put < 20 * SIZE // 32:
            assert pages.consumed() >= last, "the position went back"
            last = pages.consumed()
            if pages.end - last <= SIZE - 32:  # else the kernel writes nothing either
                pages.put(next(numbers).to_bytes(20, "little"))
                put += 1
    finally:
        done.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(before)
        other.close()
    seen.extend(pages.ring.wait(0))
    assert sorted(int.from_bytes(data, "little") for data in seen) == list(range(put))


@pytest.mark.parametrize("wrong", [8, 24, 10**6])
def test_a_position_that_somebody_broke_is_put_right(pages: Pages, wrong: int) -> None:
    """The kernel writes nothing more while the position is ahead of its own (kernel/bpf/ringbuf.c)."""
    pages.put(b"\xff\xff\xff\x3f" * 8)
    os.pwrite(pages.fd, POSITION.pack(wrong), 0)
    pages.ring.wait(0)
    assert pages.consumed() == pages.end
    pages.put(b"next")
    assert pages.ring.wait(0) == [b"next"]
