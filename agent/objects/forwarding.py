"""How the node forwards packets between its interfaces (ip-sysctl in the kernel's documentation)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

ACCEPTED, ALSO_WHILE_FORWARDING = 1, 2  # of accept_ra
STRICT, LOOSE = 1, 2  # of rp_filter: sources must be reached by the same interface, or by any
SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}

log = logging.getLogger(__name__)


def sync(versions: frozenset[int], sysctls: Path, advertised: Callable[[], Iterable[str]] = tuple) -> list[int]:
    """Turn forwarding on for these IP versions; returns those for which it was off. Raises OSError.

    `sysctls` is /proc/sys/net, or where a container has it mounted: its own can't be written. `advertised` names
    the interfaces with a default route that a router has advertised: a node that forwards drops such a route and
    accepts no other, unless accept_ra is 2. It is set before; where it cannot be, forwarding stays off.
    """
    off = [version for version in sorted(versions) if not _is_on(sysctls / SWITCHES[version])]
    for version in off:
        for device in advertised() if version == 6 else ():
            switch = sysctls / f"ipv6/conf/{device}/accept_ra"
            if _number(switch) == ACCEPTED:
                switch.write_text(str(ALSO_WHILE_FORWARDING))
                log.info("%s accepts router advertisements also while the node forwards (accept_ra 2)", device)
        (sysctls / SWITCHES[version]).write_text("1")
    return off


def sync_each(versions: frozenset[int], devices: Iterable[str], sysctls: Path) -> list[str]:
    """Turn forwarding on for interfaces that we made; those for which it was off. Raises OSError.

    The kernel asks the interface that a packet came by; it has the switch of new interfaces, `default`.
    """
    found = []
    for device in sorted(devices):
        switches = [sysctls / f"ipv{version}/conf/{device}/forwarding" for version in sorted(versions)]
        off = [switch for switch in switches if switch.exists() and not _is_on(switch)]
        for switch in off:
            switch.write_text("1")
        found += [device] if off else []
    return found


def blocked(devices: Iterable[str], sysctls: Path) -> list[str]:
    """Return the interfaces whose packets the node does not forward, though it does forward. Raises OSError."""
    switches = {device: sysctls / f"ipv4/conf/{device}/forwarding" for device in sorted(devices)}
    return [device for device, switch in switches.items() if switch.exists() and not _is_on(switch)]


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


def _is_on(switch: Path) -> bool:
    if not switch.exists() and "ipv6" in switch.parts:
        raise OSError(errno.EAFNOSUPPORT, "the kernel has no IPv6, but the node has IPv6 blocks for pods")
    return _number(switch) != 0


def _number(switch: Path) -> int:
    return int(switch.read_text())
