"""All attachments of the node, and the addresses that are in use by them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.codec.network_json import OptionTypes
from agent.ip import Address, Subnet
from agent.ipam.allocator import Allocator, ExhaustedError, InUseError, Range
from agent.ipam.attachments import attachment_files, unreadable_attachments
from agent.ipam.attachments.attachment import Attachment, Lease, answered
from agent.ipam.attachments.attachment_files import AttachmentFiles
from agent.ipam.attachments.locks import KeyedLocks
from agent.ipam.attachments.released_addresses import ReleaseLog
from agent.ipam.attachments.unreadable_attachments import UnreadableAttachment
from agent.model.marks import mac_for
from agent.model.network import Network
from agent.model.problem import Problem
from agent.runtime.deadline import PAST, Deadline
from agent.runtime.observable import Observable

LINES_KEPT = 4096  # of the file of releases
QUARANTINED_FOR = 300.0  # seconds until an address that another machine uses may be assigned again

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AddressConflict:
    """Another machine that uses an address of this node's blocks, and until when this is remembered."""

    device: str
    mac: str
    until: float
    """Seconds since the node was booted."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The deadlines of an ADD's waits for addresses; by default it does not wait at all."""

    cooled_by: Deadline = PAST
    """The deadline of the wait for an address that cools."""
    gone_by: Deadline = PAST
    """The deadline of the wait until another pod releases a requested address."""


NO_WAITS = Waits()


class AttachmentStore:
    """All attachments of this node: the files are the truth, memory is a copy. For several threads at once."""

    def __init__(
        self, run_dir: Path, cool_down: float, types: OptionTypes, quarantined_for: float = QUARANTINED_FOR
    ) -> None:
        """`types`: the options of all known modes; an attachment of another mode is unreadable."""
        self._quarantined_for = quarantined_for
        self._files = AttachmentFiles(run_dir / "attachments", types)
        self._released = ReleaseLog(run_dir / "released", LINES_KEPT)
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._all: dict[tuple[str, str], Attachment] = {}
        self._unreadable: dict[str, UnreadableAttachment] = {}
        """The unreadable attachments, by the name of the file, or of the link where there is no file."""
        self._allocator = Allocator(cool_down)
        self._listeners: list[Callable[[], None]] = []
        self.locks = KeyedLocks()
        """A thread that changes an attachment, or its state in the kernel, holds its lock."""
        self.conflicts: Observable[Mapping[Address, AddressConflict]] = Observable({})
        """Addresses of this node's blocks that other machines use."""

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each new or removed attachment that matters to the node path."""
        self._listeners.append(listener)

    def set_reserved(self, addresses: frozenset[Address]) -> None:
        """Assign these addresses only to pods for which they are reserved."""
        with self._lock:
            self._allocator.set_reserved(addresses, _now())
            self._freed.notify_all()

    def load(self) -> None:
        """Read the attachments of an earlier run. Raises OSError.

        A file that cannot be used stays as it is, and the addresses that it names are in use.
        """
        found, unreadable = self._files.load()
        with self._lock:
            self._all = {attachment.key: attachment for attachment in found}
            self._unreadable = {entry.name: entry for entry in unreadable}
            used = {lease.address for a in found for lease in a.leases}
            used.update(*(entry.addresses for entry in unreadable))
            self._allocator.restore(used, self._released.read())

    def note_unknown_links(self, behind: Mapping[str, tuple[frozenset[Address], str]]) -> None:
        """Note host ends without a readable file: the addresses behind each and its alias, by the link's name.

        Call it once, after `load`. Links that are missing in `behind` do not exist.
        """
        with self._lock:
            for name in behind.keys() - {entry.link for entry in self._unreadable.values()}:
                self._unreadable[name] = UnreadableAttachment(name, "it has no attachment file")
            for name, entry in tuple(self._unreadable.items()):
                addresses, alias = behind.get(entry.link, (None, ""))
                if addresses is None and entry.path and attachment_files.discard_if_unused(entry.path):
                    log.info("%s has no link and is ignored", entry.path)
                    del self._unreadable[name]
                    self._free(entry.addresses)
                    continue
                self._unreadable[name] = seen = unreadable_attachments.known_by_kernel(entry, addresses, alias)
                log.error("%s", seen.problem())
                self._allocator.hold(seen.addresses)

    def note_unnamed_addresses(self, behind: Mapping[str, frozenset[Address]]) -> None:
        """Hold addresses of pods that their links or the result of ADD show, but their files do not name.

        Call it once, after `note_unknown_links`.
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
        """Return the attachments whose file cannot be used, or that have none."""
        with self._lock:
            return tuple(self._unreadable.values())

    def in_force(self) -> tuple[Attachment, ...]:
        """Return every attachment, also those of unreadable files, as far as they can be understood."""
        with self._lock:
            guesses = (entry.guess for entry in self._unreadable.values())
            return (*self._all.values(), *(guess for guess in guesses if guess and guess.key not in self._all))

    def forget(self, link: str) -> None:
        """Forget the unreadable attachments of a link that is gone, with their files. Raises OSError."""
        with self._lock:
            gone = {name: entry for name, entry in self._unreadable.items() if entry.link == link}
            for name, entry in gone.items():
                if entry.path:
                    attachment_files.remove_unreadable(entry.path)
                del self._unreadable[name]
                self._free(entry.addresses)
                log.info("unreadable attachment of link %s is removed", link)

    def forget_removed(self, links: Collection[str]) -> None:
        """Forget unreadable attachments whose file was removed, and whose link is not among `links`."""
        with self._lock:
            for name, entry in tuple(self._unreadable.items()):
                alive = entry.link in links
                self._unreadable[name] = replace(entry, alive=alive)
                if not alive and not (entry.path and os.path.lexists(entry.path)):
                    del self._unreadable[name]
                    self._free(entry.addresses)

    def _free(self, addresses: Collection[Address]) -> None:
        """Release addresses that no other attachment has, readable or not. The caller holds the lock."""
        others = {lease.address for a in self._all.values() for lease in a.leases}
        others.update(*(entry.addresses for entry in self._unreadable.values()))
        free, now = [address for address in addresses if address not in others], _now()
        for address in free:
            self._allocator.release(address, now)
        self._released.note(free, now, self._allocator.released)
        self._freed.notify_all()

    def all(self) -> tuple[Attachment, ...]:
        """Return every attachment."""
        with self._lock:
            return tuple(self._all.values())

    def get(self, container_id: str, ifname: str) -> Attachment | None:
        """Return one attachment, or None."""
        with self._lock:
            return self._all.get((container_id, ifname))

    def written(self, container_id: str, ifname: str) -> int:
        """Return when the file of an attachment was written, in ns of the wall clock, or 0. Raises OSError."""
        return self._files.written(container_id, ifname)

    def bridge_macs_in_results(self) -> dict[str, str]:
        """Return the MAC of each bridge in most results of ADD, by the bridge's name."""
        macs = Counter(
            (str(first.get("name")), str(first.get("mac")))
            for a in self.in_force()
            if a.wired
            for first in a.wired["interfaces"][:1]
        )
        return dict(pair for pair, _count in sorted(macs.items(), key=lambda entry: (entry[1], entry[0])))

    def networks(self) -> frozenset[Network]:
        """Return the networks that any attachment is on."""
        return frozenset(attachment.network for attachment in self.in_force())

    def counts(self, candidates: Range) -> tuple[int, int, int]:
        """Return how many addresses of a range are in use, cooling and free."""
        with self._lock:
            return self._allocator.counts(candidates, _now())

    def busy(self, block: Subnet) -> bool:
        """Return whether any address of a block is in use or cooling."""
        used, cooling, _free = self.counts(Range(block, int(block[0]), int(block[-1])))
        return used + cooling > 0

    def problems(self) -> tuple[Problem, ...]:
        """Return the problems: other machines that use addresses of pods, and files that cannot be used."""
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

    def take(
        self,
        wanted: Attachment,
        ranges: Sequence[Range],
        asked: Sequence[Address] = (),
        versions: frozenset[int] = frozenset(),
        waits: Waits = NO_WAITS,
    ) -> Attachment:
        """Return `wanted` with the requested addresses and one of each other IP version, and write its file.

        The IP versions are those of `ranges` and `versions`. Without a MAC it gets the one that follows from its
        first address. Raises ExhaustedError, UnavailableError, OSError.
        """
        with self._lock:
            missing = ({r.block.version for r in ranges} | versions) - {address.version for address in asked}
            with self._released_on_error() as taken:
                for address in asked:
                    taken.append(self._take_this(address, ranges, waits.gone_by, reserved=bool(wanted.owner)))
                for version in sorted(missing):
                    taken.append(self._take_any(ranges, version, waits.cooled_by))
                leases = tuple(Lease(a, next(r.block for r in ranges if a in r)) for a in taken)
                attachment = replace(wanted, leases=leases, mac=wanted.mac or mac_for(leases[0].address))
                self._files.create(attachment)
            self._all[attachment.key] = attachment
        self._notify(attachment)
        return attachment

    def finish(self, attachment: Attachment, wired: Mapping[str, Any]) -> None:
        """Note that the attachment is wired, with the result of ADD. Raises OSError."""
        done = replace(attachment, wired=wired)
        with self._lock:
            self._files.finish(done)
            self._all[done.key] = done

    def remove(self, attachment: Attachment) -> None:
        """Forget an attachment whose interface is gone; its addresses cool. Raises OSError."""
        with self._lock:
            known = self._all.get(attachment.key)
            if known is None:
                return
            self._files.remove(known)
            del self._all[attachment.key]
            self._free([lease.address for lease in known.leases])
        self._notify(attachment)

    def restore_files(self) -> None:
        """Write the files of wired attachments again that somebody removed. Raises OSError."""
        with self._lock:
            self._files.restore(self._all.values())

    def quarantine(self, address: Address, device: str, mac: str) -> None:
        """Assign a free address to no pod for a while, as another machine uses it."""
        now = _now()
        with self._lock:
            self._allocator.quarantine(address, now, now + self._quarantined_for)
        found = AddressConflict(device, mac, now + self._quarantined_for)
        self.conflicts.update(lambda known: {**{a: o for a, o in known.items() if o.until > now}, address: found})

    def _notify(self, attachment: Attachment) -> None:
        for listener in self._listeners if self._matters(attachment) else ():
            listener()

    def _matters(self, attachment: Attachment) -> bool:
        """Return whether the node path must know of an attachment: most need no change of the node's state.

        It must know of a reserved address, of a block that two modes share, and of a network's first or last pod.
        """
        others = [other for other in self.all() if other.key != attachment.key]
        if attachment.owner or self._allocator.any_reserved(lease.address for lease in attachment.leases):
            return True
        if not any(other.network == attachment.network for other in others):
            return True
        blocks, mode = {lease.block for lease in attachment.leases}, attachment.network.mode
        of_others = (other.leases for other in others if other.network.mode != mode)
        return any(lease.block in blocks for leases in of_others for lease in leases)

    @contextmanager
    def _released_on_error(self) -> Iterator[list[Address]]:
        """Collect taken addresses, and release all of them on an error; these need not cool."""
        taken: list[Address] = []
        try:
            yield taken
        except Exception:
            for address in taken:
                self._allocator.release(address, 0)
            raise

    def _take_this(
        self, address: Address, ranges: Sequence[Range], gone_by: Deadline, *, reserved: bool
    ) -> Address:
        """Take this very address, once its earlier pod has gone. Raises UnavailableError."""
        while True:
            try:
                return self._allocator.take_this(address, ranges, reserved=reserved)
            except InUseError:
                if gone_by.passed:
                    raise
                self._freed.wait(gone_by.left)

    def _take_any(self, ranges: Sequence[Range], version: int, cooled_by: Deadline) -> Address:
        """Take any address of an IP version, once one has cooled. Raises ExhaustedError."""
        mine = [r for r in ranges if r.block.version == version]
        while True:
            try:
                return self._allocator.take(mine, _now())
            except ExhaustedError as error:
                if error.wait is None or cooled_by.passed:
                    error.version = version
                    raise
                self._freed.wait(min(error.wait, cooled_by.left))


def _now() -> float:
    """Return the seconds since the node was booted: the run-dir lives no longer, and nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
