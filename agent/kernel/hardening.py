"""Turn off what makes our devices accept routes, prefixes and redirects from others (ip-sysctl)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from agent.kernel import link_setup, sysctl
from agent.kernel.ip_links import Link

IPV4_DEVCONF_ACCEPT_REDIRECTS = 4  # uapi/linux/ip.h
IPV4 = ((IPV4_DEVCONF_ACCEPT_REDIRECTS, 0),)
IPV6 = {"accept_ra": 3, "accept_redirects": 4, "autoconf": 5}
"""Names in ipv6/conf, and numbers as DEVCONF_ in uapi/linux/ipv6.h; all are to be 0."""


def differs(link: Link) -> str:
    """Say which switch of IPv6 is on; empty where none is, or where the device has no IPv6."""
    found = (name for name, number in IPV6.items() if link_setup.ipv6(link, number) not in (None, 0))
    return next(found, "")


def ipv6(device: str) -> None:
    """Turn the switches of IPv6 off, here or wherever this thread is. Raises OSError."""
    try:
        for name in IPV6:
            _off(f"{sysctl.root()}/ipv6/conf/{device}/{name}")
    except FileNotFoundError:  # no IPv6 on this device, or none at all
        return


def ipv4(device: str) -> None:
    """Turn those of IPv4 off. Raises OSError."""
    _off(f"{sysctl.root()}/ipv4/conf/{device}/accept_redirects")


def before_up(device: str) -> None:
    """Turn all of them off, while the device still takes nothing. Raises OSError."""
    ipv6(device)
    ipv4(device)


def _off(path: str) -> None:
    """Write 0; by descriptor, as an ADD does it seven times."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def sync(links: Iterable[Link]) -> list[str]:
    """Turn the switches of these devices off; those that had one on. Raises OSError."""
    found = []
    for link in links:
        if differs(link):
            ipv6(link.name)
            found.append(link.name)
        if link_setup.ipv4(link, IPV4_DEVCONF_ACCEPT_REDIRECTS):
            ipv4(link.name)
            found.append(link.name)
    return sorted({*found})
