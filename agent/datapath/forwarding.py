"""Whether the node forwards packets between its interfaces (ip-sysctl in the kernel's documentation)."""

from __future__ import annotations

from pathlib import Path

SWITCHES = {
    4: Path("/proc/sys/net/ipv4/ip_forward"),
    6: Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}


def sync(versions: frozenset[int]) -> list[int]:
    """Turn forwarding on for these IP versions; returns those for which it was off. Raises OSError."""
    off = [version for version in sorted(versions) if SWITCHES[version].read_text().strip() == "0"]
    for version in off:
        SWITCHES[version].write_text("1")
    return off
