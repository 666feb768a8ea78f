"""Read and write network sysctls as files; they are those of the thread's network namespace (ip-sysctl)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def enable_ipv6(sysctls: Path, links: Iterable[str]) -> None:
    """Enable IPv6 on links of this thread's namespace. Raises OSError, also if the kernel has no IPv6.

    `sysctls` is /proc/sys/net, or where a container has the host's mounted: its own files are read-only.
    """
    for link in links:
        switch = sysctls / "ipv6/conf" / link / "disable_ipv6"
        if switch.read_text() != "0\n":
            switch.write_text("0")
