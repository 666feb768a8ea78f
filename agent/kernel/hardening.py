"""Switch off what makes devices accept routes, prefixes and redirects from the network (ip-sysctl).

`sysctls` is the directory of the files of network sysctls, in most cases /proc/sys/net.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.kernel import link_setup
from agent.kernel.ip_links import Link

IPV4_DEVCONF_ACCEPT_REDIRECTS = 4  # uapi/linux/ip.h
IPV4 = ((IPV4_DEVCONF_ACCEPT_REDIRECTS, 0),)
IPV6: Mapping[str, int] = {"accept_ra": 3, "accept_redirects": 4, "autoconf": 5}
"""Switches in ipv6/conf with their DEVCONF_ numbers (uapi/linux/ipv6.h); all must be 0."""


def differs(link: Link) -> str:
    """Return the name of an IPv6 switch that is on; empty if none is, or the device has no IPv6."""
    found = (name for name, number in IPV6.items() if link_setup.ipv6(link, number) not in (None, 0))
    return next(found, "")


def ipv6(sysctls: Path, device: str) -> None:
    """Switch off those of IPv6, in the namespace of this thread. Raises OSError."""
    try:
        for name in IPV6:
            _off(f"{sysctls}/ipv6/conf/{device}/{name}")
    except FileNotFoundError:  # no IPv6 on this device, or none at all
        return


def ipv4(sysctls: Path, device: str) -> None:
    """Switch off those of IPv4, in the namespace of this thread. Raises OSError."""
    _off(f"{sysctls}/ipv4/conf/{device}/accept_redirects")


def before_up(sysctls: Path, device: str) -> None:
    """Switch off all of them, while the device is down and receives nothing. Raises OSError."""
    ipv6(sysctls, device)
    ipv4(sysctls, device)


def _off(path: str) -> None:
    """Write 0, without pathlib and open(), as an ADD does this seven times."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def sync(sysctls: Path, links: Iterable[Link]) -> list[str]:
    """Switch off those of these devices; return names of devices that had one on. Raises OSError."""
    found = []
    for link in links:
        if differs(link):
            ipv6(sysctls, link.name)
            found.append(link.name)
        if link_setup.ipv4(link, IPV4_DEVCONF_ACCEPT_REDIRECTS):
            ipv4(sysctls, link.name)
            found.append(link.name)
    return sorted({*found})
