"""Notifications of the kernel that node state may have drifted; what pods do all day does not even wake us."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from agent.datapath import netlink, rtnl
from agent.datapath.state import LINK_PREFIX, NFT_TABLE
from agent.model import ROUTE_PROTOCOL

# RTMGRP_* bits of rtnetlink(7): links, IPv4 and IPv6 addresses and routes
ROUTE_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
NETLINK_NETFILTER = 12
NFT_GROUPS = 1 << (7 - 1)  # NFNLGRP_NFTABLES
NFT_TABLE_ATTRIBUTE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE
NFGENMSG = 4  # bytes of struct nfgenmsg
SO_ATTACH_FILTER = 26
# Classic BPF (Documentation/networking/filter.rst): operations, and offsets into a notification
LOAD_WORD, LOAD_HALF, LOAD_BYTE, JUMP_EQUAL, RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
TYPE, PROTOCOL, FIRST_NAME = 4, 21, 36  # nlmsg_type; rtm_protocol; IFLA_IFNAME, which always comes first


def _big(value: int) -> int:
    """A message type as a filter sees it: it loads big-endian, the kernel writes native."""
    return int.from_bytes(struct.pack("=H", value), "big")


def _route_filter(protocol: int) -> tuple[tuple[int, int, int, int], ...]:
    """Drop new routes, lost routes of other protocols, and links of pods; an ADD would wake us a dozen times."""
    return (
        (LOAD_HALF, 0, 0, TYPE),
        (JUMP_EQUAL, 8, 0, _big(rtnl.RTM_NEWROUTE)),  # drop
        (JUMP_EQUAL, 4, 0, _big(rtnl.RTM_DELROUTE)),  # to the protocol
        (JUMP_EQUAL, 1, 0, _big(rtnl.RTM_NEWLINK)),  # to the name
        (JUMP_EQUAL, 0, 4, _big(rtnl.RTM_DELLINK)),  # else keep
        (LOAD_WORD, 0, 0, FIRST_NAME),
        (JUMP_EQUAL, 3, 2, int.from_bytes(LINK_PREFIX.encode(), "big")),
        (LOAD_BYTE, 0, 0, PROTOCOL),
        (JUMP_EQUAL, 0, 1, protocol),
        (RETURN, 0, 0, 0xFFFFFFFF),
        (RETURN, 0, 0, 0),
    )


class Monitor:
    """A socket in this thread's namespace that hears of links, addresses and routes, or of nft tables."""

    def __init__(self, *, nft: bool = False, route_protocol: int = ROUTE_PROTOCOL) -> None:
        self._nft = nft
        protocol = NETLINK_NETFILTER if nft else socket.NETLINK_ROUTE
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        if not nft:
            _attach(self._socket, _route_filter(route_protocol))
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
        return not self._nft or any(
            _is_our_table(data[start:end]) for _kind, _flags, _sequence, start, end in netlink.messages(data)
        )


def _attach(sock: socket.socket, instructions: tuple[tuple[int, int, int, int], ...]) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    room = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(instructions), ctypes.addressof(room))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _is_our_table(payload: bytes) -> bool:
    """nft tells of many changes in one datagram, so no filter can pick ours."""
    table = netlink.attributes(payload, NFGENMSG, len(payload)).get(NFT_TABLE_ATTRIBUTE, b"")
    return table.rstrip(b"\0") == NFT_TABLE.encode()
