"""How the node forwards packets between its interfaces (ip-sysctl in the kernel's documentation)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

STRICT, LOOSE = 1, 2  # of rp_filter: sources must be reached by the same interface, or by any
SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def sync(versions: frozenset[int], sysctls: Path) -> list[int]:
    """Turn forwarding on for these IP versions; returns those for which it was off. Raises OSError.

    `sysctls` is /proc/sys/net, or where a container has it mounted: its own can't be written.
    """
    off = [version for version in sorted(versions) if (sysctls / SWITCHES[version]).read_text().strip() == "0"]
    for version in off:
        (sysctls / SWITCHES[version]).write_text("1")
    return off


def loosen(devices: Iterable[str], sysctls: Path) -> list[str]:
    """Let interfaces take packets that would go back by another one; those that did not. Raises OSError."""
    folder = sysctls / "ipv4/conf"
    for_all, found = _number(folder / "all/rp_filter"), []
    for device in sorted(devices):
        switch = folder / device / "rp_filter"
        if switch.exists() and max(for_all, _number(switch)) == STRICT:  # the kernel goes by the higher one
            switch.write_text(str(LOOSE))
            found.append(device)
    return found


def answer(bridges: Iterable[str], sysctls: Path) -> list[str]:
    """Have bridges answer ARP for what is reached by another interface; those that did not. Raises OSError."""
    found = []
    for bridge in sorted(bridges):
        proxy, delay = sysctls / f"ipv4/conf/{bridge}/proxy_arp", sysctls / f"ipv4/neigh/{bridge}/proxy_delay"
        if proxy.exists() and (_number(proxy), _number(delay)) != (1, 0):
            delay.write_text("0")
            proxy.write_text("1")
            found.append(bridge)
    return found


def _number(switch: Path) -> int:
    return int(switch.read_text())
