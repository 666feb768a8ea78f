"""Network namespaces belong to threads: enter, open the socket, leave (setns(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from agent.kernel.netlink import Netlink

CLONE_NEWNET = 0x40000000
HOME = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class NetnsLostError(BaseException):
    """This thread could not go home to its namespace: a BaseException, so that no handler keeps it alive."""


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def netlink_in(fd: int) -> Netlink:
    """A netlink socket inside the network namespace behind `fd`; the thread is back home afterwards.

    Raises what `inside` raises.
    """
    with inside(fd):
        return Netlink()


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Have this thread inside the network namespace behind `fd`, and home afterwards.

    Raises OSError when `fd` is no network namespace, NetnsLostError when there is no way back: end the thread.
    """
    home = os.open(HOME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
        try:
            yield
        finally:
            try:
                _setns(home)
            except OSError as error:
                raise NetnsLostError(f"no way back from a pod's network namespace: {error}") from error
    finally:
        os.close(home)


def same_netns(fd: int) -> bool:
    """Whether `fd` is the namespace that this thread is in."""
    mine, other = os.stat(HOME), os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (other.st_dev, other.st_ino)
