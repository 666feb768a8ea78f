"""One small file per attachment: what exists for whom, and which addresses are therefore in use.

The file is written before the kernel is touched and removed after, so whatever a crash leaves has a file: its
first line is the attachment, under the suffix .new; with a second line, of what was wired, it becomes .json.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.codec.network_json import OptionTypes
from agent.ip import Address, Subnet
from agent.ipam import unreadable_attachments
from agent.ipam.allocator import Allocator, ExhaustedError, Range
from agent.ipam.attachment import Attachment, Lease, answered, decode, encode, link_name
from agent.ipam.locks import KeyedLocks
from agent.ipam.released_addresses import ReleaseLog
from agent.ipam.unreadable_attachments import UnreadableAttachment
from agent.model.marks import mac_for
from agent.model.network import Network
from agent.model.problem import Problem
from agent.runtime import atomic_file
from agent.runtime.observable import Observable

AT_WORK, WHOLE, REJECTED = ".new", ".json", ".bad"  # suffixes; the last one is of agents before this
LINES_KEPT = 4096  # of the log of releases
QUARANTINED_FOR = 300.0  # seconds until an address that somebody else has is looked at again

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AddressConflict:
    """Who has an address that should be a pod's: the MAC that answered on a device, and until when that counts."""

    device: str
    mac: str
    until: float
    """Seconds since the node was booted."""


class AttachmentStore:
    """All attachments of this node: the files are the truth, memory is a copy. For several threads at once."""

    def __init__(self, run_dir: Path, cool_down: float, types: OptionTypes) -> None:
        """`types`: the options of the modes that the agent knows; an attachment of another is unreadable."""
        self._types = types
        self._dir = run_dir / "attachments"
        self._released = ReleaseLog(run_dir / "released", LINES_KEPT)
        self._lock = threading.Lock()
        self._cooled = threading.Condition(self._lock)
        self._all: dict[tuple[str, str], Attachment] = {}
        self._unreadable: dict[str, UnreadableAttachment] = {}
        """By the name of the file, or of the link where there is none."""
        self._allocator = Allocator(cool_down)
        self._listeners: list[Callable[[], None]] = []
        self.locks = KeyedLocks()
        """Held by who changes an attachment, or what the kernel has of it."""
        self.conflicts: Observable[Mapping[Address, AddressConflict]] = Observable({})
        """Addresses that were found to be somebody else's."""

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever an attachment has come or gone that the node path should know of."""
        self._listeners.append(listener)

    def set_reserved(self, addresses: frozenset[Address]) -> None:
        """Give these only to who asks for them as their own."""
        with self._lock:
            self._allocator.set_reserved(addresses, _now())
            self._cooled.notify_all()

    def load(self) -> None:
        """Read what an earlier run left. Raises OSError.

        A file that cannot be used stays as it is, and the addresses that it names are in use.
        """
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self._dir.iterdir()):
            if path.suffix in (WHOLE, AT_WORK, REJECTED):
                self._load(path)
        self._restore()

    def _load(self, path: Path) -> None:
        try:
            attachment = decode(atomic_file.read(path), self._types, whole=path.suffix != AT_WORK)
            if path.stem != attachment.link:
                raise ValueError(f"it is named {path.name}, but its attachment has the link {attachment.link}")
            if attachment.key in self._all or (path.suffix == REJECTED and path.with_suffix(WHOLE).exists()):
                raise ValueError("another file is of the same attachment")
            if path.suffix == REJECTED:  # an agent that could not read it had renamed it
                path.rename(path.with_suffix(WHOLE))
        except (ValueError, OSError) as error:
            log.error("attachment file %s cannot be used: %s", path, error)
            self._unreadable[path.name] = unreadable_attachments.describe(
                path, f"it cannot be used: {error}", self._types
            )
            return
        self._all[attachment.key] = attachment

    def _restore(self) -> None:
        used = {lease.address for a in self._all.values() for lease in a.leases}
        used.update(*(entry.addresses for entry in self._unreadable.values()))
        self._allocator.restore(used, self._released.read())

    def see_links(self, behind: Mapping[str, tuple[frozenset[Address], str]]) -> None:
        """Take note of host ends that no readable file names: by name the addresses behind each, and its alias.

        It is called once, after `load`; a link that is not given is not there.
        """
        with self._lock:
            for name in behind.keys() - {entry.link for entry in self._unreadable.values()}:
                self._unreadable[name] = UnreadableAttachment(name, "it has no attachment file")
            for name, entry in tuple(self._unreadable.items()):
                addresses, alias = behind.get(entry.link, (None, ""))
                if addresses is None and entry.path and _means_nothing(entry.path):
                    log.info("%s has no link and is ignored", entry.path)
                    del self._unreadable[name]
                    self._free(entry.addresses)
                    continue
                self._unreadable[name] = seen = unreadable_attachments.known_by_kernel(entry, addresses, alias)
                log.error("%s", seen.problem())
                self._allocator.hold(seen.addresses)

    def see_more(self, behind: Mapping[str, frozenset[Address]]) -> None:
        """Hold addresses that pods have by their links, or by what ADD answered, and that their files do not name.

        It is called once, after `see_links`.
        """
        with self._lock:
            named = {lease.address for a in self._all.values() for lease in a.leases}
            for attachment in self._all.values():
                more = (behind.get(attachment.link, frozenset()) | answered(attachment)) - named
                if attachment.link in behind and more:
                    what = "the pod behind it has addresses that its attachment file does not name"
                    name = attachment.network.name
                    seen = UnreadableAttachment(attachment.link, what, addresses=more, complete=True, network=name)
                    self._unreadable[attachment.link] = seen
                    log.error("%s", seen.problem())
                    self._allocator.hold(more)

    def unreadable(self) -> tuple[UnreadableAttachment, ...]:
        """The attachments whose file cannot be used, or that have none."""
        with self._lock:
            return tuple(self._unreadable.values())

    def in_force(self) -> tuple[Attachment, ...]:
        """Every attachment, and those of unreadable files as far as these are understood."""
        with self._lock:
            guesses = (entry.guess for entry in self._unreadable.values())
            return (*self._all.values(), *(guess for guess in guesses if guess and guess.key not in self._all))

    def forget(self, link: str) -> None:
        """Forget the unreadable attachments of a link that is gone, with their files. Raises OSError."""
        with self._lock:
            gone = {name: entry for name, entry in self._unreadable.items() if entry.link == link}
            for name, entry in gone.items():
                if entry.path:
                    _remove(entry.path)
                del self._unreadable[name]
                self._free(entry.addresses)
                log.info("unreadable attachment of link %s is removed", link)
            self._cooled.notify_all()

    def look_again(self, links: Collection[str]) -> None:
        """Forget what a person has removed: the file, and the link, which is not among `links`."""
        with self._lock:
            for name, entry in tuple(self._unreadable.items()):
                alive = entry.link in links
                self._unreadable[name] = replace(entry, alive=alive)
                if not alive and not (entry.path and os.path.lexists(entry.path)):
                    del self._unreadable[name]
                    self._free(entry.addresses)

    def _free(self, addresses: Collection[Address]) -> None:
        """Release those that no other attachment has, readable or not. The caller holds the lock."""
        others = {lease.address for a in self._all.values() for lease in a.leases}
        others.update(*(entry.addresses for entry in self._unreadable.values()))
        free, now = [address for address in addresses if address not in others], _now()
        for address in free:
            self._allocator.release(address, now)
        self._released.note(free, now, self._allocator.released)

    def all(self) -> tuple[Attachment, ...]:
        """Every attachment now."""
        with self._lock:
            return tuple(self._all.values())

    def get(self, container_id: str, ifname: str) -> Attachment | None:
        """One attachment, or None."""
        with self._lock:
            return self._all.get((container_id, ifname))

    def written(self, container_id: str, ifname: str) -> int:
        """When the file of an attachment was written, in ns of the wall clock; 0: it has none. Raises OSError."""
        found = self._dir.glob(f"{link_name(container_id, ifname)}.*")
        return max((path.stat().st_mtime_ns for path in found), default=0)

    def told_macs(self) -> dict[str, str]:
        """The MACs of bridges that most of their pods were told, by the bridge's name."""
        told = Counter(
            (str(first.get("name")), str(first.get("mac")))
            for a in self.in_force()
            if a.wired
            for first in a.wired["interfaces"][:1]
        )
        return dict(pair for pair, _count in sorted(told.items(), key=lambda entry: (entry[1], entry[0])))

    def networks(self) -> frozenset[Network]:
        """The networks that any attachment is on."""
        return frozenset(attachment.network for attachment in self.in_force())

    def counts(self, candidates: Range) -> tuple[int, int, int]:
        """How many addresses of a range are in use, cooling and free."""
        with self._lock:
            return self._allocator.counts(candidates, _now())

    def busy(self, block: Subnet) -> bool:
        """Whether any address of a block is in use or cooling."""
        used, cooling, _free = self.counts(Range(block, int(block[0]), int(block[-1])))
        return used + cooling > 0

    def problems(self) -> tuple[Problem, ...]:
        """Other machines that have addresses of pods, and attachments whose file cannot be used."""
        now = _now()
        return tuple(
            Problem(
                f"interface {one.device}",
                f"{address} is of this node's block, but {one.mac} answers for it",
                "give that machine another address, or name it in `exclude` of the IPPool",
            )
            for address, one in self.conflicts.get().items()
            if one.until > now
        ) + tuple(entry.problem() for entry in self.unreadable())

    def reserve(
        self,
        wanted: Attachment,
        ranges: Sequence[Range],
        asked: Sequence[Address],
        deadline: float,
        families: frozenset[int] = frozenset(),
    ) -> Attachment:
        """`wanted` with an address for each IP version of `ranges` and of `families`, on file before this returns.

        Where it asks for no MAC, it gets that of its first address.

        Waits until `deadline` (time.monotonic) for an address to cool.
        Raises ExhaustedError, UnavailableError, OSError.
        """
        with self._lock:
            leases = self._take(ranges, asked, deadline, families, reserved=bool(wanted.owner))
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
        with self._lock:
            known = self._all.get(attachment.key)
            if known is None:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(known, AT_WORK if known.wired is None else WHOLE))
            del self._all[attachment.key]
            self._free([lease.address for lease in known.leases])
            self._cooled.notify_all()
        self._tell(attachment)

    def keep(self) -> None:
        """Write anew the files of wired attachments that somebody removed. Raises OSError."""
        with self._lock:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            there = {path.name for path in self._dir.iterdir()}
            lost = [a for a in self._all.values() if a.wired is not None and f"{a.link}{WHOLE}" not in there]
            for attachment in lost:
                _write(path := self._path(attachment, ".lost"), encode(attachment), os.O_CREAT | os.O_TRUNC)
                _write(path, json.dumps(attachment.wired).encode(), os.O_APPEND)
                os.rename(path, self._path(attachment, WHOLE))
        if lost:
            log.warning("%s: files of %d attachments were removed: they are there again", self._dir, len(lost))

    def quarantine(self, address: Address, device: str, mac: str) -> None:
        """Give an address of an attachment that was removed to nobody for a while, as somebody else has it."""
        now = _now()
        with self._lock:
            self._allocator.quarantine(address, now, now + QUARANTINED_FOR)
        found = AddressConflict(device, mac, now + QUARANTINED_FOR)
        self.conflicts.update(lambda known: {**{a: o for a, o in known.items() if o.until > now}, address: found})

    def _tell(self, attachment: Attachment) -> None:
        for listener in self._listeners if self._matters(attachment) else ():
            listener()

    def _matters(self, attachment: Attachment) -> bool:
        """Whether its address is reserved, two modes share its block, or it is a network's first or last."""
        others = [other for other in self.all() if other.key != attachment.key]
        if attachment.owner or self._allocator.any_reserved(lease.address for lease in attachment.leases):
            return True
        if not any(other.network == attachment.network for other in others):
            return True
        blocks, mode = {lease.block for lease in attachment.leases}, attachment.network.mode
        strange = (other.leases for other in others if other.network.mode != mode)
        return any(lease.block in blocks for leases in strange for lease in leases)

    def _take(
        self,
        ranges: Sequence[Range],
        asked: Sequence[Address],
        deadline: float,
        families: frozenset[int],
        *,
        reserved: bool,
    ) -> tuple[Lease, ...]:
        """One address for each IP version; all or none."""
        taken: list[Address] = []
        try:
            for address in asked:
                taken.append(self._allocator.take_this(address, ranges, reserved=reserved))
            for version in sorted(({r.block.version for r in ranges} | families) - {a.version for a in asked}):
                try:
                    taken.append(self._take_any([r for r in ranges if r.block.version == version], deadline))
                except ExhaustedError as error:
                    error.version = version
                    raise
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


def _means_nothing(path: Path) -> bool:
    """Whether a file without a link says nothing.

    An ADD that died while it wrote the first line had not touched the kernel yet; an older agent renamed a file
    that it could not use, and its DEL left it behind.
    """
    try:
        if path.suffix == AT_WORK and b"\n" not in atomic_file.read(path):
            path.unlink()
            return True
    except (OSError, ValueError):
        return False
    return path.suffix == REJECTED


def _remove(path: Path) -> None:
    """Remove a file; anything else in its place is renamed, so that it is not lost. Raises OSError."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        path.rename(path.with_name(f".{path.name}.removed"))


def _now() -> float:
    """Seconds since the node was booted, as the run-dir's files live no longer; nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _write(path: str, line: bytes, flags: int) -> None:
    """Write a line; on failure nothing of a new file stays, and a FIFO is not waited for. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o600)
    try:
        if os.write(fd, line + b"\n") <= len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    except OSError:
        if flags & os.O_EXCL:
            os.unlink(path)
        raise
    finally:
        os.close(fd)
