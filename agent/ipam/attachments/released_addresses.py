"""The file of released addresses and their times, so that cool-downs go on after a restart of the agent."""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.ip import Address
from agent.runtime import atomic_file

log = logging.getLogger(__name__)


class ReleaseLog:
    """The file of releases, one line for each. An address whose line is lost may be assigned again sooner."""

    def __init__(self, path: Path, longest: int) -> None:
        """A file of more than `longest` lines is cut to one line for each address."""
        self._path = path
        self._longest = longest
        self._lines = 0

    def note(self, addresses: Iterable[Address], now: float, all_known: Mapping[Address, float]) -> None:
        """Add releases at `now`; `all_known` are those of all addresses, these included."""
        entries = [(address, now) for address in addresses]
        self._lines += len(entries)
        mode = "a"
        if self._lines > self._longest and self._lines > 2 * len(all_known):
            mode, entries = "w", list(all_known.items())
            self._lines = len(entries)
        try:
            with open(self._path, mode, opener=_without_waiting) as file:
                file.write("".join(f"{address} {when!r}\n" for address, when in entries))
        except OSError as error:
            log.warning("%s can't be written, cool-downs are lost at a restart: %s", self._path, error)

    def read(self) -> list[tuple[Address, float]]:
        """Return each address and its last release. Raises OSError if the file can't be created."""
        try:
            lines = atomic_file.read(self._path).decode(errors="replace").splitlines()
        except FileNotFoundError:
            self._path.touch(mode=0o600)
            return []
        except (OSError, ValueError) as error:
            log.error(
                "%s cannot be used, so released addresses may be assigned again sooner: %s", self._path, error
            )
            return []
        entries: dict[Address, float] = {}
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        for line in lines:
            address, _, when = line.partition(" ")
            try:
                if not 0 <= float(when) <= now:  # a time in the future would lock the address
                    raise ValueError(when)
                entries[ipaddress.ip_address(address)] = float(when)
            except ValueError:
                log.warning("%s: line %.80r has no address and time, and is ignored", self._path, line)
        self._lines = len(lines)
        return list(entries.items())


def _without_waiting(path: str, flags: int) -> int:
    """Open a file without blocking: a FIFO without a reader would block for ever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
