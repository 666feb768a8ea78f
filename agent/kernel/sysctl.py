"""The kernel's network switches as files: those of the network namespace of the thread that looks (ip-sysctl)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Place:
    """Where this process finds them."""

    root: Path = Path("/proc/sys/net")


_place = _Place()


def use(root: Path) -> None:
    """Say where they are: in a container, where the host's are mounted, as its own cannot be written."""
    _place.root = root


def root() -> Path:
    """The folder of them."""
    return _place.root


def enable_ipv6(links: Iterable[str]) -> None:
    """Let links of this thread's namespace have IPv6 addresses. Raises OSError, also where there is no IPv6."""
    for link in links:
        switch = _place.root / "ipv6/conf" / link / "disable_ipv6"
        if switch.read_text() != "0\n":
            switch.write_text("0")
