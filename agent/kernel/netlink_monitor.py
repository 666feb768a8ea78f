"""Wait for notifications that the kernel sends when links, addresses, routes, filters or nft tables change.

A socket filter drops notifications of what an ADD or DEL of a pod does, so that these do not wake the agent.
"""

from __future__ import annotations

import errno
import socket

from agent.kernel import ip_addresses, ip_links, ip_routes, netlink, socket_filter, tc
from agent.kernel.socket_filter import (
    JUMP_EQUAL,
    JUMP_SET,
    LOAD_BYTE,
    LOAD_HALF,
    LOAD_WORD,
    RETURN,
    WHOLE,
    Filter,
    big_endian,
)

# RTMGRP_* bits of rtnetlink(7): links, programs (tc), IPv4 and IPv6 addresses and routes
ROUTE_GROUPS = 0x1 | 0x8 | 0x10 | 0x40 | 0x100 | 0x400
NETLINK_NETFILTER = 12
NFT_GROUPS = 1 << (7 - 1)  # NFNLGRP_NFTABLES
NFT_TABLE_ATTRIBUTE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE
NFGENMSG = 4  # bytes of struct nfgenmsg
# offsets into a notification
TYPE, PROTOCOL, FIRST_NAME = 4, 21, 36  # nlmsg_type; rtm_protocol; IFLA_IFNAME, which always comes first
FAMILY, FLAGS, CHANGE = 16, 24, 28  # of struct ifinfomsg

UP = big_endian(ip_links.IFF_UP, "=I")


# Of pods' links it keeps what neither an ADD nor a DEL does: a link is set down (then only this flag has changed;
# more flags change when a link is made or deleted), or leaves its bridge while it is up. Of routes it keeps
# deletions of those with the protocol number, and of tc filters and qdiscs all deletions.
def _route_filter(protocol: int, link_prefix: str) -> Filter:
    """Return the filter for routes of this protocol number, and for links with this prefix of four bytes."""
    prefix = int.from_bytes(link_prefix.encode(), "big")
    return {
        "type": (LOAD_HALF, "", "", TYPE),
        "new address": (JUMP_EQUAL, "keep", "", big_endian(ip_addresses.RTM_NEWADDR)),
        "lost address": (JUMP_EQUAL, "keep", "", big_endian(ip_addresses.RTM_DELADDR)),
        "lost filter": (JUMP_EQUAL, "keep", "", big_endian(tc.RTM_DELTFILTER)),
        "lost qdisc": (JUMP_EQUAL, "keep", "", big_endian(tc.RTM_DELQDISC)),
        "lost route": (JUMP_EQUAL, "route", "", big_endian(ip_routes.RTM_DELROUTE)),
        "changed link": (JUMP_EQUAL, "name", "", big_endian(ip_links.RTM_NEWLINK)),
        "lost link": (JUMP_EQUAL, "lost name", "drop", big_endian(ip_links.RTM_DELLINK)),
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
        "keep": (RETURN, "", "", WHOLE),
        "drop": (RETURN, "", "", 0),
    }


class Monitor:
    """A netlink socket in this thread's namespace that receives notifications (netlink(7), multicast groups)."""

    def __init__(self, protocol: int, groups: int, wanted: Filter | None = None, table: str = "") -> None:
        """Join these multicast groups of a netlink protocol. Raises OSError.

        `wanted` is the filter of notifications, None for all. `table` is the only nft table to watch; empty: all.
        """
        self._table = table
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        if wanted:
            socket_filter.attach(self._socket, socket_filter.assemble(wanted))
        self._socket.bind((0, groups))

    @classmethod
    def of_routes(cls, route_protocol: int, link_prefix: str) -> Monitor:
        """Return a monitor of links, addresses, tc filters, and the routes with this protocol number.

        Of links with this prefix of four bytes (of pods) it reports only what neither an ADD nor a DEL does.
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
        """Wait for the next notification; return whether it is about what is monitored. Raises OSError."""
        try:
            data = self._socket.recv(netlink.RECEIVE)
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # notifications were lost: anything may have changed
                return True
            raise
        return not self._table or any(
            self._is_our_table(data[start:end]) for _kind, _flags, _sequence, start, end in netlink.messages(data)
        )

    def _is_our_table(self, payload: bytes) -> bool:
        """Return whether a message is about the table; one datagram has many, so a filter cannot select them."""
        table = netlink.attributes(payload, NFGENMSG, len(payload)).get(NFT_TABLE_ATTRIBUTE, b"")
        return table.rstrip(b"\0") == self._table.encode()
