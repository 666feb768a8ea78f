"""Enter a network namespace with one thread, and return (setns(2))."""

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
    """This thread could not return to its namespace. A BaseException, so that no handler lets the thread go on."""


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def netlink_in(fd: int) -> Netlink:
    """Return a netlink socket in the network namespace of a descriptor.

    Raises OSError, NetnsLostError (see `inside`).
    """
    with inside(fd):
        return Netlink()


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run a block with this thread in the network namespace of a descriptor.

    Raises OSError if `fd` is not a network namespace, NetnsLostError if the thread cannot return: it must end.
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
                raise NetnsLostError(f"cannot return from a network namespace: {error}") from error
    finally:
        os.close(home)


def same_netns(fd: int) -> bool:
    """Return whether a descriptor is of the namespace of this thread."""
    mine, other = os.stat(HOME), os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (other.st_dev, other.st_ino)
