"""Echo requests from inside network namespaces: one raw socket for each source, and no process at all."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.ip import Address
from tests.lab.space import PATIENCE

CLONE_NEWNET = 0x40000000
ICMP_FILTER, ICMP6_FILTER = 1, 1  # options of SOL_RAW and of SOL_ICMPV6
SOL_RAW, SOL_ICMPV6 = 255, 58
ECHO = struct.Struct("!BBHHH")  # type, code, checksum, id, sequence
PAYLOAD = bytes(48)
ROUNDS = 3
AGAIN_AFTER = 0.1  # seconds until an echo request that was not answered is sent again

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Family:
    """The echo messages of one IP version."""

    af: int
    protocol: int
    request: int
    reply: int
    filter: tuple[int, int, bytes]
    """The socket option that lets only replies through."""

    @property
    def header(self) -> int:
        """Bytes before the ICMP message in what a raw socket receives, without options."""
        return 20 if self.af == socket.AF_INET else 0


V4 = Family(socket.AF_INET, socket.IPPROTO_ICMP, 8, 0, (SOL_RAW, ICMP_FILTER, struct.pack("=I", ~1 & 0xFFFFFFFF)))
V6 = Family(
    socket.AF_INET6,
    socket.IPPROTO_ICMPV6,
    128,
    129,
    (SOL_ICMPV6, ICMP6_FILTER, struct.pack("=8I", *([0xFFFFFFFF] * 4), ~2 & 0xFFFFFFFF, *([0xFFFFFFFF] * 3))),
)


def socket_in(netns: Path, af: int, kind: int, protocol: int) -> socket.socket:
    """A socket inside a network namespace. Raises OSError."""
    made: list[socket.socket | OSError] = []

    def make() -> None:  # in a thread of its own: it ends in that namespace, so nobody need come back
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, CLONE_NEWNET):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(netns))
                made.append(socket.socket(af, kind, protocol))
            finally:
                os.close(fd)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class Pinger:
    """Sends echo requests from one network namespace, by sequence number, and tells replies apart."""

    def __init__(self, netns: Path, version: int = 4) -> None:
        self._family = V4 if version == 4 else V6
        self._socket = socket_in(netns, self._family.af, socket.SOCK_RAW, self._family.protocol)
        self._socket.setsockopt(*self._family.filter)
        self._socket.setblocking(False)
        self._id = secrets.randbelow(1 << 16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def send(self, target: Address, sequence: int) -> None:
        """Send one echo request; what can't be sent is as good as lost."""
        message = ECHO.pack(self._family.request, 0, 0, self._id, sequence) + PAYLOAD
        if self._family is V4:  # the kernel fills it in for IPv6 only
            message = ECHO.pack(self._family.request, 0, checksum(message), self._id, sequence) + PAYLOAD
        try:
            self._socket.sendto(message, (str(target), 0))
        except OSError:
            return

    def replies(self) -> Iterator[tuple[Address, int]]:
        """Sender and sequence number of the replies that have come."""
        while True:
            try:
                data, sender = self._socket.recvfrom(2048)
            except OSError:  # nothing more to read, or an ICMP error of some path
                return
            start = self._family.header and (data[0] & 15) * 4
            kind, _code, _checksum, identifier, sequence = ECHO.unpack_from(data, start)
            if (kind, identifier) == (self._family.reply, self._id):
                yield ipaddress.ip_address(sender[0].partition("%")[0]), sequence


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def round_trips(
    sources: Mapping[str, Path], targets: Mapping[str, Address], *, rounds: int = ROUNDS, within: float = 1.0
) -> dict[tuple[str, str], float | None]:
    """Milliseconds from every source (a network namespace) to every target, the best of some; None: no answer.

    First all at once, again and again for `within` seconds: who can be reached at all; that warms the neighbour
    tables too. Then one by one, so that no echo waits for another.
    """
    order = list(targets)
    versions: set[int] = {target.version for target in targets.values()}
    with ExitStack() as stack:
        pingers = {
            (source, version): stack.enter_context(Pinger(netns, version))
            for source, netns in sources.items()
            for version in versions
        }
        reached = _reached(pingers, sources, targets, within)
        return {
            (source, name): _best(pingers[source, targets[name].version], targets[name], order.index(name), rounds)
            if (source, name) in reached
            else None
            for source in sources
            for name in order
        }


def _reached(
    pingers: Mapping[tuple[str, int], Pinger],
    sources: Mapping[str, Path],
    targets: Mapping[str, Address],
    within: float,
) -> set[tuple[str, str]]:
    order = list(targets)
    missing = {(source, name) for source in sources for name in order}
    everybody = set(missing)
    end = time.monotonic() + within * PATIENCE
    with selectors.DefaultSelector() as selector:
        for (source, _version), pinger in pingers.items():
            selector.register(pinger, selectors.EVENT_READ, (source, pinger))
        while missing and time.monotonic() < end:
            for source, name in sorted(missing):
                pingers[source, targets[name].version].send(targets[name], order.index(name))
            _gather(selector, order, targets, missing, time.monotonic() + AGAIN_AFTER)
    return everybody - missing


def _gather(
    selector: selectors.BaseSelector,
    order: list[str],
    targets: Mapping[str, Address],
    missing: set[tuple[str, str]],
    until: float,
) -> None:
    """Take replies until all have come, or until then."""
    left = AGAIN_AFTER
    while missing and left > 0:
        left = until - time.monotonic()
        for key, _events in selector.select(max(0.0, left)):  # what has come is read even if it is late
            source, pinger = key.data
            for sender, sequence in pinger.replies():
                if sequence < len(order) and targets[order[sequence]] == sender:
                    missing.discard((source, order[sequence]))


def _best(pinger: Pinger, target: Address, number: int, rounds: int) -> float | None:
    """The best round-trip time in ms of echo requests one after the other."""
    times = []
    with selectors.DefaultSelector() as selector:
        selector.register(pinger, selectors.EVENT_READ)
        for turn in range(1, rounds + 1):
            list(pinger.replies())  # late ones of before
            # a number that no earlier request had: its reply can't be taken for this one's
            sequence = (turn << 12 | number) & 0xFFFF
            began = time.perf_counter_ns()
            pinger.send(target, sequence)
            while selector.select(AGAIN_AFTER):
                took = time.perf_counter_ns() - began
                if (target, sequence) in pinger.replies():
                    times.append(took / 1e6)
                    break
    return min(times, default=None)
