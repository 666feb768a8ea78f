"""Make and parse rtnetlink(7) messages about links (ip-link(8)); if_link.h has the numbers."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, field

from agent.kernel import netlink
from agent.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, NetlinkError, Request

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_PROTO_DOWN = 39
IFLA_EXT_MASK, SKIP_STATS = 29, 8  # RTEXT_FILTER_SKIP_STATS
IFLA_OPERSTATE, IF_OPER_UP = 16, b"\x06"
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_NET_NS_FD = 18, 20, 26, 28
IFLA_GROUP, IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 27, 37, 46
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_PROP_LIST, IFLA_ALT_IFNAME = 52, 53
IFLA_BR_STP_STATE, IFLA_BR_VLAN_FILTERING = 5, 7
IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES = 36, 37
VETH_INFO_PEER = 1
IFF_UP, IFF_NOARP = 0x1, 0x80
IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING, IPV4_DEVCONF_PROXY_ARP, IPV4_DEVCONF_RP_FILTER = 1, 1, 3, 8

IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as in a message RTM_NEWLINK."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: int
    """Index of the bridge of which it is a port; 0: none."""
    peer: int
    """Index of the other end (IFLA_LINK), in the other end's namespace for a veth; 0: none."""
    kind: str
    alias: str
    group: int = 0
    """A number that any link may have (IFLA_GROUP)."""
    netnsid: int | None = None
    """The number of the namespace of `peer` in this one; None: `peer` is in this namespace."""
    running: bool = False
    """Whether it sends packets (IFLA_OPERSTATE up), which is some time after both ends are up."""
    altnames: tuple[str, ...] = ()
    """Its alternative names (ip-link(8), property)."""
    nf_call: bool | None = None
    """Whether a bridge sends packets through iptables and ip6tables; None: not a bridge, or an old kernel."""
    families: bytes = field(default=b"", compare=False, repr=False)
    """Its settings of IPv4 and IPv6 (IFLA_AF_SPEC): see `link_setup`."""
    port: bytes = field(default=b"", compare=False, repr=False)
    """Its flags as a bridge's port (IFLA_INFO_SLAVE_DATA)."""
    data: bytes = field(default=b"", compare=False, repr=False)
    """Attributes of its kind (IFLA_INFO_DATA)."""
    held_down: bool = False
    """Whether a program holds its carrier down (ip-link(8), protodown)."""
    arp: bool = True
    """Whether it uses ARP (no IFF_NOARP)."""


def mac_bytes(mac: str) -> bytes:
    """Return `0a:58:0a:f4:01:05` as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def create_veth(  # noqa: PLR0913 - both ends have a name and a MAC
    name: str, mac: str, peer: str, peer_mac: str, *, peer_netns: int, master: int, mtu: int
) -> Request:
    """Return the request for a veth pair: `name` here in the bridge `master`, `peer` in another namespace.

    The peer is created in its namespace, not moved: moving a link waits for an RCU grace period.
    """
    # one queue, not one for each possible CPU: each queue costs two kobjects and their uevents
    queues = netlink.u32(IFLA_NUM_TX_QUEUES, 1) + netlink.u32(IFLA_NUM_RX_QUEUES, 1)
    other = (
        IFINFO.pack(0, 0, 0, 0, 0)
        + queues
        + netlink.text(IFLA_IFNAME, peer)
        + netlink.attribute(IFLA_ADDRESS, mac_bytes(peer_mac))
        + netlink.u32(IFLA_MTU, mtu)
        + netlink.u32(IFLA_NET_NS_FD, peer_netns)
    )
    info = netlink.text(IFLA_INFO_KIND, "veth") + netlink.attribute(
        IFLA_INFO_DATA, netlink.attribute(VETH_INFO_PEER, other)
    )
    payload = (
        IFINFO.pack(0, 0, 0, 0, 0)
        + queues
        + netlink.text(IFLA_IFNAME, name)
        + netlink.attribute(IFLA_ADDRESS, mac_bytes(mac))
        + netlink.u32(IFLA_MTU, mtu)
        + netlink.u32(IFLA_MASTER, master)
        + netlink.attribute(IFLA_LINKINFO, info)
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"create veth pair {name} - {peer}")


def create(kind: str, attributes: bytes, data: bytes, what: str, flags: int = 0) -> Request:
    """Return the request for a link of a kind, with its attributes and those of its kind; EEXIST if it exists."""
    info = netlink.text(IFLA_INFO_KIND, kind) + (netlink.attribute(IFLA_INFO_DATA, data) if data else b"")
    payload = IFINFO.pack(0, 0, 0, flags, flags) + attributes + netlink.attribute(IFLA_LINKINFO, info)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"create {what}")


def link_up(index: int) -> Request:
    """Return the request to set a link up."""
    return Request(RTM_SETLINK, 0, IFINFO.pack(0, 0, index, IFF_UP, IFF_UP), f"set link {index} up")


def delete_link(index: int, netnsid: int | None = None) -> Request:
    """Return the request to delete a link, here or in the namespace `netnsid`; a veth pair loses both ends."""
    payload = IFINFO.pack(0, 0, index, 0, 0) + _target(netnsid)
    return Request(RTM_DELLINK, 0, payload, f"delete link {index}")


def link(nl: Netlink, name: str, netnsid: int | None = None) -> Link | None:
    """Return the link of a name, here or in the namespace `netnsid`, or None. Raises NetlinkError."""
    payload = IFINFO.pack(0, 0, 0, 0, 0) + netlink.text(IFLA_IFNAME, name) + netlink.u32(IFLA_EXT_MASK, SKIP_STATS)
    request = Request(RTM_GETLINK, 0, payload + _target(netnsid), f"get link {name}")
    try:
        return _link(nl.get(request))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def link_at(nl: Netlink, index: int) -> Link | None:
    """Return the link of an index, or None. Raises NetlinkError."""
    payload = IFINFO.pack(0, 0, index, 0, 0) + netlink.u32(IFLA_EXT_MASK, SKIP_STATS)
    try:
        return _link(nl.get(Request(RTM_GETLINK, 0, payload, f"get link {index}")))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def links(nl: Netlink, netnsid: int | None = None) -> list[Link]:
    """Return all links, here or in the namespace `netnsid`. Raises NetlinkError."""
    request = Request(RTM_GETLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + _target(netnsid), "list links")
    return [_link(payload) for payload in nl.dump(request)]


def _link(payload: bytes) -> Link:
    _family, _type, index, flags, _change = IFINFO.unpack_from(payload)
    found = netlink.attributes(payload, IFINFO.size, len(payload))
    info = netlink.attributes(nested := found.get(IFLA_LINKINFO, b""), 0, len(nested))
    names = found.get(IFLA_PROP_LIST, b"")
    return Link(
        index=index,
        name=_text(found.get(IFLA_IFNAME)),
        up=bool(flags & IFF_UP),
        mtu=netlink.number(found.get(IFLA_MTU)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        master=netlink.number(found.get(IFLA_MASTER)),
        peer=netlink.number(found.get(IFLA_LINK)),
        kind=_text(info.get(IFLA_INFO_KIND)),
        alias=_text(found.get(IFLA_IFALIAS)),
        group=netlink.number(found.get(IFLA_GROUP)),
        netnsid=netlink.number(found[IFLA_LINK_NETNSID]) if IFLA_LINK_NETNSID in found else None,
        running=found.get(IFLA_OPERSTATE) == IF_OPER_UP,
        altnames=tuple(map(_text, netlink.listed(names))) if names else (),
        nf_call=_nf_call(info.get(IFLA_INFO_DATA, b"")) if info.get(IFLA_INFO_KIND) == b"bridge\0" else None,
        families=found.get(IFLA_AF_SPEC, b""),
        port=info.get(IFLA_INFO_SLAVE_DATA, b""),
        data=info.get(IFLA_INFO_DATA, b""),
        held_down=any(found.get(IFLA_PROTO_DOWN, b"")),
        arp=not flags & IFF_NOARP,
    )


def _nf_call(data: bytes) -> bool | None:
    found = netlink.attributes(data, 0, len(data))
    switches = [found.get(number) for number in (IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES)]
    return None if None in switches else all(switch == b"\1" for switch in switches)


def _target(netnsid: int | None) -> bytes:
    return b"" if netnsid is None else netlink.u32(IFLA_TARGET_NETNSID, netnsid)


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")
