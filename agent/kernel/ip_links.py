"""Links, addresses and routes as rtnetlink(7) messages, and what the kernel answers as frozen values."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass, field

from agent.ip import Address, Subnet
from agent.kernel import netlink
from agent.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, NetlinkError, Request

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

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
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_TARGET_NETNSID = 1, 2, 8, 10
IFA_F_NODAD, IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x02, 0x04, 0x08, 0x40
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
RTAX_MTU = 2
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTN_ANY, RTN_UNICAST, RTN_LOCAL, RTN_MULTICAST = 0, 1, 2, 5
OF_LOCAL_TABLE = (RTN_LOCAL, RTN_MULTICAST)
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST, RT_SCOPE_NOWHERE = 0, 253, 254, 255
RTPROT_BOOT, RTPROT_RA, RTNH_F_ONLINK = 3, 9, 4
IP6_RT_PRIO_USER = 1024  # the metric of an IPv6 route that was added without one
IFF_UP, IFF_NOARP = 0x1, 0x80
IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING, IPV4_DEVCONF_PROXY_ARP, IPV4_DEVCONF_RP_FILTER = 1, 1, 3, 8

IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags


def family(address: Address | Subnet) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


# Of a look-up: no route, one that says so, or no such IP version.
NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as RTM_NEWLINK tells it."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: int
    """Index of the bridge that it is a port of; 0: none."""
    peer: int
    """Index of the other end (IFLA_LINK), in the other end's namespace for a veth; 0: none."""
    kind: str
    alias: str
    group: int = 0
    """A number that any link may have (IFLA_GROUP); with slaves, the mark of their attachment."""
    netnsid: int | None = None
    """The number by which this namespace knows that of `peer`; None: `peer` is in this one."""
    running: bool = False
    """Whether it sends what it is given (IFLA_OPERSTATE), which comes some time after both ends are up."""
    altnames: tuple[str, ...] = ()
    """Other names of it (ip-link(8), property)."""
    nf_call: bool | None = None
    """Whether a bridge itself has packets pass iptables and ip6tables; None: no bridge, or no such kernel."""
    families: bytes = field(default=b"", compare=False, repr=False)
    """Its settings of IPv4 and IPv6 (IFLA_AF_SPEC): see `linksetup`."""
    port: bytes = field(default=b"", compare=False, repr=False)
    """Its flags as a bridge's port (IFLA_INFO_SLAVE_DATA)."""
    data: bytes = field(default=b"", compare=False, repr=False)
    """What its kind has (IFLA_INFO_DATA)."""
    held_down: bool = False
    """Whether somebody holds its carrier down (ip-link(8), protodown)."""
    arp: bool = True
    """Whether it asks and answers ARP (no IFF_NOARP)."""


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address on the interface of index `index`, with its prefix length."""

    index: int
    address: Address
    prefix: int
    tentative: bool = field(default=False, compare=False)
    """Whether the kernel still looks whether somebody else has it, or has found somebody (RFC 4862)."""

    @property
    def interface(self) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
        """The address with its network."""
        return ipaddress.ip_interface((self.address, self.prefix))


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route of the main table: `dst` via `gateway` (or on-link) out of the interface `index`.

    One that rejects packets, or divides them among several ways, has no interface (0).
    """

    dst: Subnet
    gateway: Address | None
    index: int
    metric: int = 0
    """Of routes for one destination, the one with the lowest is used."""
    source: Address | None = None
    """As whom the node itself speaks by it."""
    onlink: bool = False
    """The gateway need not be in a network of the interface."""
    mtu: int | None = None
    """Bytes of a packet that goes this way; None: the interface's own MTU."""
    kind: int = RTN_UNICAST
    """See rtnetlink(7); RTN_LOCAL, to an address of the node itself, and RTN_MULTICAST are of the local table."""

    @property
    def leads(self) -> bool:
        """Whether it leads out of one interface."""
        return self.kind == RTN_UNICAST and self.index > 0


def mac_bytes(mac: str) -> bytes:
    """`0a:58:0a:f4:01:05` as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def create_veth(  # noqa: PLR0913 - both ends have a name and a MAC
    name: str, mac: str, peer: str, peer_mac: str, *, peer_netns: int, master: int, mtu: int
) -> Request:
    """A veth pair: `name` here as port of the bridge `master`, `peer` at once in the namespace of an fd.

    Made there, not moved there: moving a link waits for an RCU grace period.
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
    """A link of a kind, with its own attributes and the `data` of its kind; EEXIST where it is."""
    info = netlink.text(IFLA_INFO_KIND, kind) + (netlink.attribute(IFLA_INFO_DATA, data) if data else b"")
    payload = IFINFO.pack(0, 0, 0, flags, flags) + attributes + netlink.attribute(IFLA_LINKINFO, info)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"create {what}")


def link_up(index: int) -> Request:
    """Set an interface up."""
    return Request(RTM_SETLINK, 0, IFINFO.pack(0, 0, index, IFF_UP, IFF_UP), f"set link {index} up")


def delete_link(index: int, netnsid: int | None = None) -> Request:
    """Delete an interface, here or in the namespace of that number; a veth's other end goes with it."""
    payload = IFINFO.pack(0, 0, index, 0, 0) + _target(netnsid)
    return Request(RTM_DELLINK, 0, payload, f"delete link {index}")


def add_address(index: int, address: Address, prefix: int) -> Request:
    """Give an interface an address; an IPv6 one is usable at once (no duplicate address detection)."""
    payload = (
        IFADDR.pack(family(address), prefix, 0, RT_SCOPE_UNIVERSE, index)
        + netlink.attribute(IFA_LOCAL, address.packed)
        + netlink.attribute(IFA_ADDRESS, address.packed)
        + netlink.u32(IFA_FLAGS, IFA_F_NODAD)
    )
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload, f"add address {address}/{prefix}")


def delete_address(index: int, address: Address, prefix: int) -> Request:
    """Take an address from an interface."""
    payload = IFADDR.pack(family(address), prefix, 0, 0, index) + netlink.attribute(IFA_LOCAL, address.packed)
    return Request(RTM_DELADDR, 0, payload, f"delete address {address}/{prefix}")


def _route(kind: int, flags: int, route: KernelRoute, protocol: int) -> Request:
    hop = RTNH_F_ONLINK if route.onlink else 0
    table = RT_TABLE_LOCAL if route.kind in OF_LOCAL_TABLE else RT_TABLE_MAIN
    payload = RTMSG.pack(
        family(route.dst), route.dst.prefixlen, 0, 0, table, protocol, _scope(route), route.kind, hop
    ) + netlink.u32(RTA_OIF, route.index)
    if route.source:
        payload += netlink.attribute(RTA_PREFSRC, route.source.packed)
    if route.dst.prefixlen:
        payload += netlink.attribute(RTA_DST, route.dst.network_address.packed)
    if route.metric:
        payload += netlink.u32(RTA_PRIORITY, route.metric)
    if route.gateway:
        payload += netlink.attribute(RTA_GATEWAY, route.gateway.packed)
    if route.mtu:
        payload += netlink.attribute(RTA_METRICS, netlink.u32(RTAX_MTU, route.mtu))
    verb = "delete" if kind == RTM_DELROUTE else "add"
    return Request(kind, flags, payload, f"{verb} route {route.dst} via {route.gateway}")


def _scope(route: KernelRoute) -> int:
    if route.kind == RTN_LOCAL:
        return RT_SCOPE_HOST
    if not route.leads and route.kind != RTN_MULTICAST:
        return RT_SCOPE_NOWHERE  # of any, where it is deleted
    return RT_SCOPE_UNIVERSE if route.gateway or route.dst.version == 6 else RT_SCOPE_LINK


def add_route(route: KernelRoute, protocol: int = RTPROT_BOOT) -> Request:
    """Add a route; EEXIST when the main table has one for the same destination."""
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route, protocol)


def replace_route(route: KernelRoute, protocol: int) -> Request:
    """Change the route for a destination in one step, so that no packet finds none."""
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route, protocol)


def delete_route(route: KernelRoute, protocol: int) -> Request:
    """Delete exactly this route of this protocol; ESRCH when it is gone."""
    return _route(RTM_DELROUTE, 0, route, protocol)


def link(nl: Netlink, name: str, netnsid: int | None = None) -> Link | None:
    """The interface of that name, here or in the namespace of that number, or None."""
    payload = IFINFO.pack(0, 0, 0, 0, 0) + netlink.text(IFLA_IFNAME, name) + netlink.u32(IFLA_EXT_MASK, SKIP_STATS)
    request = Request(RTM_GETLINK, 0, payload + _target(netnsid), f"get link {name}")
    try:
        return _link(nl.get(request))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def link_at(nl: Netlink, index: int) -> Link | None:
    """The interface of that index, or None."""
    payload = IFINFO.pack(0, 0, index, 0, 0) + netlink.u32(IFLA_EXT_MASK, SKIP_STATS)
    try:
        return _link(nl.get(Request(RTM_GETLINK, 0, payload, f"get link {index}")))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def links(nl: Netlink, netnsid: int | None = None) -> list[Link]:
    """All interfaces, here or in the namespace of that number."""
    request = Request(RTM_GETLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + _target(netnsid), "list links")
    return [_link(payload) for payload in nl.dump(request)]


def addresses(nl: Netlink, index: int = 0, netnsid: int | None = None) -> list[LinkAddress]:
    """The addresses of both families on one interface, or on all (0), here or in the namespace of that number."""
    target = b"" if netnsid is None else netlink.u32(IFA_TARGET_NETNSID, netnsid)
    request = Request(RTM_GETADDR, 0, IFADDR.pack(0, 0, 0, 0, index) + target, "list addresses")
    return [_address(payload) for payload in nl.dump(request)]


def routes(nl: Netlink, version: int, protocol: int = 0, kind: int = RTN_UNICAST) -> list[KernelRoute]:
    """The routes of a kind for IP `version`, of one protocol or of all (0).

    Those of the main table, but RTN_LOCAL and RTN_MULTICAST of the local one.
    """
    af = socket.AF_INET if version == 4 else socket.AF_INET6
    table = RT_TABLE_LOCAL if kind in OF_LOCAL_TABLE else RT_TABLE_MAIN
    header = RTMSG.pack(af, 0, 0, 0, table, protocol, 0, kind, 0)
    try:
        payloads = nl.dump(Request(RTM_GETROUTE, 0, header + netlink.u32(RTA_TABLE, table), "list routes"))
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # no such table, or no IPv6
            return []
        raise
    return [_kernel_route(payload) for payload in payloads]


def next_hop(nl: Netlink, address: Address) -> tuple[int, Address | None] | None:
    """By which interface, and which gateway if any, packets to an address go; None: there is no way."""
    header = RTMSG.pack(family(address), 8 * len(address.packed), 0, 0, 0, 0, 0, 0, 0)
    request = Request(
        RTM_GETROUTE, 0, header + netlink.attribute(RTA_DST, address.packed), f"get the route to {address}"
    )
    try:
        found = _kernel_route(nl.get(request))
    except NetlinkError as error:
        if error.errno in NO_WAY:
            return None
        raise
    return found.index, found.gateway


def _link(payload: bytes) -> Link:
    _family, _type, index, flags, _change = IFINFO.unpack_from(payload)
    found = netlink.attributes(payload, IFINFO.size, len(payload))
    info = netlink.attributes(nested := found.get(IFLA_LINKINFO, b""), 0, len(nested))
    names = found.get(IFLA_PROP_LIST, b"")
    return Link(
        index=index,
        name=_text(found.get(IFLA_IFNAME)),
        up=bool(flags & IFF_UP),
        mtu=_number(found.get(IFLA_MTU)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        master=_number(found.get(IFLA_MASTER)),
        peer=_number(found.get(IFLA_LINK)),
        kind=_text(info.get(IFLA_INFO_KIND)),
        alias=_text(found.get(IFLA_IFALIAS)),
        group=_number(found.get(IFLA_GROUP)),
        netnsid=_number(found[IFLA_LINK_NETNSID]) if IFLA_LINK_NETNSID in found else None,
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


def _address(payload: bytes) -> LinkAddress:
    _family, prefix, flags, _scope, index = IFADDR.unpack_from(payload)
    found = netlink.attributes(payload, IFADDR.size, len(payload))
    address = ipaddress.ip_address(found.get(IFA_LOCAL) or found[IFA_ADDRESS])
    unsure = IFA_F_TENTATIVE | IFA_F_OPTIMISTIC | IFA_F_DADFAILED if address.version == 6 else 0
    return LinkAddress(index, address, prefix, bool(flags & unsure))


def _kernel_route(payload: bytes) -> KernelRoute:
    af, prefix, *_, kind, flags = RTMSG.unpack_from(payload)
    found = netlink.attributes(payload, RTMSG.size, len(payload))
    zero = b"\0" * (4 if af == socket.AF_INET else 16)
    gateway = found.get(RTA_GATEWAY)
    metric = _number(found.get(RTA_PRIORITY))
    source = found.get(RTA_PREFSRC)
    metrics = found.get(RTA_METRICS, b"")
    return KernelRoute(
        dst=ipaddress.ip_network((found.get(RTA_DST, zero), prefix)),
        gateway=ipaddress.ip_address(gateway) if gateway else None,
        index=_number(found.get(RTA_OIF)),
        metric=0 if af == socket.AF_INET6 and metric == IP6_RT_PRIO_USER else metric,
        source=ipaddress.ip_address(source) if source else None,
        onlink=bool(flags & RTNH_F_ONLINK),
        mtu=_number(netlink.attributes(metrics, 0, len(metrics)).get(RTAX_MTU)) or None,
        kind=kind,
    )


def _target(netnsid: int | None) -> bytes:
    return b"" if netnsid is None else netlink.u32(IFLA_TARGET_NETNSID, netnsid)


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int:
    return int(struct.unpack_from("=I", value)[0]) if value else 0
