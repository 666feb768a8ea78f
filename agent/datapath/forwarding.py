"""Whether the node forwards packets between its interfaces (ip-sysctl in the kernel's documentation)."""

from __future__ import annotations

from pathlib import Path

SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def sync(versions: frozenset[int], sysctls: Path) -> list[int]:
    """Turn forwarding on for these IP versions; returns those for which it was off. Raises OSError.

    `sysctls` is /proc/sys/net, or where a container has it mounted: its own can't be written.
    """
    off = [version for version in sorted(versions) if (sysctls / SWITCHES[version]).read_text().strip() == "0"]
    for version in off:
        (sysctls / SWITCHES[version]).write_text("1")
    return off
