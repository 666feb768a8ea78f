"""Notifications of the kernel that node state may have drifted: cheap to read, cheap to ignore."""

from __future__ import annotations

import errno
import socket

from agent.datapath import netlink, rtnl
from agent.datapath.state import LINK_PREFIX, NFT_TABLE, ROUTE_PROTOCOL

# RTMGRP_* bits of rtnetlink(7): links, IPv4 and IPv6 addresses and routes
ROUTE_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
NFT_GROUPS = 1 << (7 - 1)  # NFNLGRP_NFTABLES
NFT_TABLE_ATTRIBUTE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE
NFGENMSG = 4  # bytes of struct nfgenmsg
NETLINK_NETFILTER = 12


class Monitor:
    """A socket in this thread's namespace that hears of links, addresses and routes, or of nft tables."""

    def __init__(self, *, nft: bool = False) -> None:
        self._concerns = _nft_concerns if nft else _route_concerns
        protocol = NETLINK_NETFILTER if nft else socket.NETLINK_ROUTE
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, NFT_GROUPS if nft else ROUTE_GROUPS))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def changed(self) -> bool:
        """Wait for the next notification: whether it may concern node state. Raises OSError."""
        try:
            data = self._socket.recv(netlink.RECEIVE)
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # some were lost: assume the worst
                return True
            raise
        return any(self._concerns(kind, data[start:end]) for kind, _f, _s, start, end in netlink.messages(data))


def _route_concerns(kind: int, payload: bytes) -> bool:
    if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
        name = netlink.attributes(payload, rtnl.IFINFO.size, len(payload)).get(rtnl.IFLA_IFNAME, b"")
        return not name.startswith(LINK_PREFIX.encode())  # pods' links come and go: not ours to repair here
    if kind == rtnl.RTM_DELROUTE:
        return bool(rtnl.RTMSG.unpack_from(payload)[5] == ROUTE_PROTOCOL)
    return kind in (rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR)


def _nft_concerns(_kind: int, payload: bytes) -> bool:
    table = netlink.attributes(payload, NFGENMSG, len(payload)).get(NFT_TABLE_ATTRIBUTE, b"")
    return table.rstrip(b"\0") == NFT_TABLE.encode()
