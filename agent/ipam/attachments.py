"""One small file per attachment: what exists for whom, and which addresses are therefore in use.

The file is written before the kernel is touched and removed after, so whatever a crash leaves has a file: its
first line is the attachment, under the suffix .new; with a second line, of what was wired, it becomes .json.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.datapath.state import mac_for
from agent.ipam.allocator import Allocator, ExhaustedError, Range
from agent.ipam.attachment import Attachment, Lease, decode, encode
from agent.model import Address, Network, Problem, Subnet
from agent.shared import Latest

AT_WORK, WHOLE = ".new", ".json"  # suffixes
ASIDE_FOR = 300.0  # seconds until an address that somebody else has is looked at again
LINES_KEPT = 4096  # the log of releases is cut to one line an address when it is longer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Aside:
    """Who has an address that should be a pod's: the MAC that answered on a device, and until when that counts."""

    device: str
    mac: str
    until: float
    """Seconds since the node was booted."""


class Attachments:
    """All attachments of this node: the files are the truth, memory is a copy. For several threads at once."""

    def __init__(self, run_dir: Path, cool_down: float) -> None:
        self._dir = run_dir / "attachments"
        self._released = run_dir / "released"
        self._lock = threading.Lock()
        self._cooled = threading.Condition(self._lock)
        self._all: dict[tuple[str, str], Attachment] = {}
        self._allocator = Allocator(cool_down)
        self._lines = 0
        self._listeners: list[Callable[[], None]] = []
        self.aside: Latest[Mapping[Address, Aside]] = Latest({})
        """Addresses that were found to be somebody else's."""

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever an attachment has come or gone that the node path should know of."""
        self._listeners.append(listener)

    def withhold(self, addresses: frozenset[Address]) -> None:
        """Give these only to who asks for them as their own."""
        with self._lock:
            self._allocator.withhold(addresses, _now())
            self._cooled.notify_all()

    def load(self) -> None:
        """Read what an earlier run left; a file that can't be read is set aside and said. Raises OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._released.touch(mode=0o600)
        for path in sorted(self._dir.iterdir()):
            if path.suffix not in (WHOLE, AT_WORK):
                continue
            try:
                attachment = decode(path.read_bytes(), whole=path.suffix == WHOLE)
            except ValueError as error:
                if path.suffix == AT_WORK:  # the crash was before the kernel was touched
                    path.unlink()
                    continue
                log.error("%s can't be used and is set aside as .bad: %s", path, error)
                path.rename(path.with_suffix(".bad"))
                continue
            self._all[attachment.key] = attachment
        used = [lease.address for a in self._all.values() for lease in a.leases]
        self._allocator.restore(used, self._read_released())

    def all(self) -> tuple[Attachment, ...]:
        """Every attachment now."""
        with self._lock:
            return tuple(self._all.values())

    def get(self, container_id: str, ifname: str) -> Attachment | None:
        """One attachment, or None."""
        with self._lock:
            return self._all.get((container_id, ifname))

    def networks(self) -> frozenset[Network]:
        """The networks that any attachment is on."""
        return frozenset(attachment.network for attachment in self.all())

    def counts(self, candidates: Range) -> tuple[int, int, int]:
        """How many addresses of a range are in use, cooling and free."""
        with self._lock:
            return self._allocator.counts(candidates, _now())

    def busy(self, block: Subnet) -> bool:
        """Whether any address of a block is in use or cooling."""
        used, cooling, _free = self.counts(Range(block, int(block[0]), int(block[-1])))
        return used + cooling > 0

    def problems(self) -> tuple[Problem, ...]:
        """Who has addresses that should be pods', as long as these are set aside."""
        now = _now()
        return tuple(
            Problem(
                f"interface {one.device}",
                f"{address} is of this node's block, but {one.mac} answers for it",
                "give that machine another address, or name it in `exclude` of the IPPool",
            )
            for address, one in self.aside.get().items()
            if one.until > now
        )

    def reserve(
        self, wanted: Attachment, ranges: Sequence[Range], asked: Sequence[Address], deadline: float
    ) -> Attachment:
        """`wanted` with an address for each IP version of `ranges`, on file before this returns.

        Where it asks for no MAC, it gets that of its first address.

        Waits until `deadline` (time.monotonic) for an address to cool.
        Raises ExhaustedError, UnavailableError, OSError.
        """
        with self._lock:
            leases = self._take(ranges, asked, deadline, withheld=bool(wanted.owner))
            attachment = replace(wanted, leases=leases, mac=wanted.mac or mac_for(leases[0].address))
            try:
                _write(self._path(attachment, AT_WORK), encode(attachment), os.O_CREAT | os.O_EXCL)
            except OSError:
                for lease in leases:
                    self._allocator.release(lease.address, 0)
                raise
            self._all[attachment.key] = attachment
        self._tell(attachment)
        return attachment

    def finish(self, attachment: Attachment, wired: Mapping[str, Any]) -> None:
        """Note that the attachment is wired, and how. Raises OSError."""
        done = replace(attachment, wired=wired)
        path = self._path(done, AT_WORK)
        with self._lock:
            _write(path, json.dumps(wired).encode(), os.O_APPEND)
            os.rename(path, self._path(done, WHOLE))
            self._all[done.key] = done

    def remove(self, attachment: Attachment) -> None:
        """Forget an attachment whose interface is gone; its addresses cool. Raises OSError."""
        now = _now()
        with self._lock:
            known = self._all.get(attachment.key)
            if known is None:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(known, AT_WORK if known.wired is None else WHOLE))
            del self._all[attachment.key]
            for lease in attachment.leases:
                self._allocator.release(lease.address, now)
            self._note_released(attachment.leases, now)
            self._cooled.notify_all()
        self._tell(attachment)

    def set_aside(self, address: Address, device: str, mac: str) -> None:
        """Give an address of an attachment that was removed to nobody for a while, as somebody else has it."""
        now = _now()
        with self._lock:
            self._allocator.set_aside(address, now, now + ASIDE_FOR)
        found = Aside(device, mac, now + ASIDE_FOR)
        self.aside.update(lambda known: {**{a: o for a, o in known.items() if o.until > now}, address: found})

    def _tell(self, attachment: Attachment) -> None:
        for listener in self._listeners if self._matters(attachment) else ():
            listener()

    def _matters(self, attachment: Attachment) -> bool:
        """Whether its address is reserved, two modes share its block, or it is a network's first or last."""
        others = [other for other in self.all() if other.key != attachment.key]
        if attachment.owner or not any(other.network == attachment.network for other in others):
            return True
        blocks, mode = {lease.block for lease in attachment.leases}, attachment.network.mode
        strange = (other.leases for other in others if other.network.mode != mode)
        return any(lease.block in blocks for leases in strange for lease in leases)

    def _take(
        self, ranges: Sequence[Range], asked: Sequence[Address], deadline: float, *, withheld: bool
    ) -> tuple[Lease, ...]:
        """One address for each IP version; all or none."""
        taken: list[Address] = []
        try:
            for address in asked:
                taken.append(self._allocator.take_this(address, ranges, withheld=withheld))
            for version in sorted({r.block.version for r in ranges} - {a.version for a in asked}):
                taken.append(self._take_any([r for r in ranges if r.block.version == version], deadline))
        except Exception:
            for address in taken:
                self._allocator.release(address, 0)
            raise
        return tuple(Lease(a, next(r.block for r in ranges if a in r)) for a in taken)

    def _take_any(self, ranges: Sequence[Range], deadline: float) -> Address:
        while True:
            try:
                return self._allocator.take(ranges, _now())
            except ExhaustedError as error:
                left = deadline - time.monotonic()
                if error.wait is None or left <= 0:
                    raise
                self._cooled.wait(min(error.wait, left))

    def _path(self, attachment: Attachment, suffix: str) -> str:
        return f"{self._dir}/{attachment.link}{suffix}"

    def _note_released(self, leases: Sequence[Lease], now: float) -> None:
        """Remember over a restart when addresses were freed; without it they are only reused sooner."""
        entries = [(lease.address, now) for lease in leases]
        self._lines += len(entries)
        mode = "a"
        if self._lines > LINES_KEPT and self._lines > 2 * len(self._allocator.released):
            mode, entries = "w", list(self._allocator.released.items())
            self._lines = len(entries)
        try:
            with self._released.open(mode) as file:
                file.write("".join(f"{address} {when!r}\n" for address, when in entries))
        except OSError as error:
            log.warning("%s can't be written, cool-downs are lost at a restart: %s", self._released, error)

    def _read_released(self) -> list[tuple[Address, float]]:
        lines = self._released.read_text(errors="replace").splitlines()
        entries: dict[Address, float] = {}
        for line in lines:
            address, _, when = line.partition(" ")
            try:
                entries[ipaddress.ip_address(address)] = float(when)
            except ValueError:
                log.warning("%s: line %r is no address and time, and is dropped", self._released, line)
        self._lines = len(lines)
        return list(entries.items())


def _now() -> float:
    """Seconds since the node was booted, as the run-dir's files live no longer; nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _write(path: str, line: bytes, flags: int) -> None:
    """Write a line; on failure nothing of a new file stays."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        if os.write(fd, line + b"\n") <= len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    except OSError:
        if flags & os.O_EXCL:
            os.unlink(path)
        raise
    finally:
        os.close(fd)
