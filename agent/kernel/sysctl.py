"""Read and write network sysctls as files; they are those of the thread's network namespace (ip-sysctl)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Place:
    """The directory of the files."""

    root: Path = Path("/proc/sys/net")


_place = _Place()


def use(root: Path) -> None:
    """Set the directory of the files: a container's own are read-only, so it mounts the host's elsewhere."""
    _place.root = root


def root() -> Path:
    """Return the directory of the files."""
    return _place.root


def enable_ipv6(links: Iterable[str]) -> None:
    """Enable IPv6 on links of this thread's namespace. Raises OSError, also if the kernel has no IPv6."""
    for link in links:
        switch = _place.root / "ipv6/conf" / link / "disable_ipv6"
        if switch.read_text() != "0\n":
            switch.write_text("0")
