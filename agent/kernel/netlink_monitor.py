"""Notifications of the kernel that something has changed; ADDs and DELs of pods do not even wake us."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Mapping

from agent.kernel import ip_addresses, ip_links, ip_routes, netlink, tc

# RTMGRP_* bits of rtnetlink(7): links, programs (tc), IPv4 and IPv6 addresses and routes
ROUTE_GROUPS = 0x1 | 0x8 | 0x10 | 0x40 | 0x100 | 0x400
NETLINK_NETFILTER = 12
NFT_GROUPS = 1 << (7 - 1)  # NFNLGRP_NFTABLES
NFT_TABLE_ATTRIBUTE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE
NFGENMSG = 4  # bytes of struct nfgenmsg
SO_ATTACH_FILTER = 26
# Classic BPF (Documentation/networking/filter.rst): operations, and offsets into a notification
LOAD_WORD, LOAD_HALF, LOAD_BYTE, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x28, 0x30, 0x15, 0x45, 0x06
TYPE, PROTOCOL, FIRST_NAME = 4, 21, 36  # nlmsg_type; rtm_protocol; IFLA_IFNAME, which always comes first
FAMILY, FLAGS, CHANGE = 16, 24, 28  # of struct ifinfomsg

Filter = Mapping[str, tuple[int, str, str, int]]
"""Instructions by label: operation, the next one if it is so and if not ("": the one that follows), operand."""


def _big(value: int, form: str = "=H") -> int:
    """A number of a notification as a filter sees it: it loads big-endian, the kernel writes native."""
    return int.from_bytes(struct.pack(form, value), "big")


UP = _big(ip_links.IFF_UP, "=I")


# Of pods' links it keeps only what neither ADD nor DEL does, as these would wake us often: a link is set down
# (then only this flag has changed; more have when it is made or deleted), or leaves its bridge while it is up. Of
# routes it keeps our own that are lost, and of programs all that are lost.
def _route_filter(protocol: int, link_prefix: str) -> Filter:
    """Return the filter for routes of this protocol number, and links of pods with this prefix of four bytes."""
    prefix = int.from_bytes(link_prefix.encode(), "big")
    return {
        "type": (LOAD_HALF, "", "", TYPE),
        "new address": (JUMP_EQUAL, "keep", "", _big(ip_addresses.RTM_NEWADDR)),
        "lost address": (JUMP_EQUAL, "keep", "", _big(ip_addresses.RTM_DELADDR)),
        "lost filter": (JUMP_EQUAL, "keep", "", _big(tc.RTM_DELTFILTER)),
        "lost qdisc": (JUMP_EQUAL, "keep", "", _big(tc.RTM_DELQDISC)),
        "lost route": (JUMP_EQUAL, "route", "", _big(ip_routes.RTM_DELROUTE)),
        "changed link": (JUMP_EQUAL, "name", "", _big(ip_links.RTM_NEWLINK)),
        "lost link": (JUMP_EQUAL, "lost name", "drop", _big(ip_links.RTM_DELLINK)),
        "name": (LOAD_WORD, "", "", FIRST_NAME),
        "pod's": (JUMP_EQUAL, "", "keep", prefix),
        "change": (LOAD_WORD, "", "", CHANGE),
        "only up": (JUMP_EQUAL, "", "drop", UP),
        "flags": (LOAD_WORD, "", "", FLAGS),
        "set down": (JUMP_SET, "drop", "keep", UP),
        "lost name": (LOAD_WORD, "", "", FIRST_NAME),
        "pod's lost": (JUMP_EQUAL, "", "keep", prefix),
        "family": (LOAD_BYTE, "", "", FAMILY),
        "port": (JUMP_EQUAL, "", "drop", socket.AF_BRIDGE),
        "port's flags": (LOAD_WORD, "", "", FLAGS),
        "port is up": (JUMP_SET, "keep", "drop", UP),
        "route": (LOAD_BYTE, "", "", PROTOCOL),
        "our route": (JUMP_EQUAL, "keep", "drop", protocol),
        "keep": (RETURN, "", "", 0xFFFFFFFF),
        "drop": (RETURN, "", "", 0),
    }


class Monitor:
    """A socket in this thread's namespace that hears of links, addresses and routes, or of nft tables."""

    def __init__(self, protocol: int, groups: int, wanted: Filter | None = None, table: str = "") -> None:
        """Join these multicast groups of a netlink protocol. Raises OSError.

        `wanted` is what the kernel hands over, None for all; `table` is the only nft table to hear of.
        """
        self._table = table
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        if wanted:
            _attach(self._socket, wanted)
        self._socket.bind((0, groups))

    @classmethod
    def of_routes(cls, route_protocol: int, link_prefix: str) -> Monitor:
        """Return a monitor of links, addresses, programs, and the routes with this protocol number.

        Of links with this prefix of four bytes (of pods) it hears only what neither an ADD nor a DEL does.
        Raises OSError.
        """
        return cls(socket.NETLINK_ROUTE, ROUTE_GROUPS, _route_filter(route_protocol, link_prefix))

    @classmethod
    def of_nft(cls, table: str) -> Monitor:
        """Return a monitor of one nft table. Raises OSError."""
        return cls(NETLINK_NETFILTER, NFT_GROUPS, table=table)

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
        return not self._table or any(
            self._is_our_table(data[start:end]) for _kind, _flags, _sequence, start, end in netlink.messages(data)
        )

    def _is_our_table(self, payload: bytes) -> bool:
        """nft reports many changes in one datagram, so no filter can pick ours."""
        table = netlink.attributes(payload, NFGENMSG, len(payload)).get(NFT_TABLE_ATTRIBUTE, b"")
        return table.rstrip(b"\0") == self._table.encode()


def _attach(sock: socket.socket, instructions: Filter) -> None:
    lines = {label: number for number, label in enumerate(instructions)}
    code = b"".join(
        struct.pack("=HBBI", operation, *(lines[to] - lines[label] - 1 if to else 0 for to in (yes, no)), operand)
        for label, (operation, yes, no, operand) in instructions.items()
    )
    room = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(instructions), ctypes.addressof(room))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
