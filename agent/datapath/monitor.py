"""Notifications of the kernel that node state may have drifted: cheap to read, cheap to ignore."""

from __future__ import annotations

import errno
import socket

from agent.datapath import netlink, rtnl
from agent.datapath.state import LINK_PREFIX, ROUTE_PROTOCOL

# RTMGRP_* bits of rtnetlink(7)
GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 and IPv6 addresses and routes


class Monitor:
    """A socket in this thread's namespace that hears of links, addresses and routes."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, GROUPS))

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def changed(self) -> bool:
        """Read what is there (waiting for the first): whether any of it may concern node state."""
        try:
            data = self._socket.recv(netlink.RECEIVE)
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # some were lost: assume the worst
                return True
            raise
        return any(_concerns(kind, data[offset:end]) for kind, _f, _s, offset, end in netlink.messages(data))


def _concerns(kind: int, payload: bytes) -> bool:
    if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
        name = netlink.attributes(payload, rtnl.IFINFO.size, len(payload)).get(rtnl.IFLA_IFNAME, b"")
        return not name.startswith(LINK_PREFIX.encode())  # pods' links come and go: not ours to repair here
    if kind == rtnl.RTM_DELROUTE:
        return bool(rtnl.RTMSG.unpack_from(payload)[5] == ROUTE_PROTOCOL)
    return kind in (rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR)
