"""The node's side of a pod's link as one value: `wire` makes it, CHECK compares it, the node path repairs it.

It consists of aspects. Each answers two questions: how does the kernel differ, and what makes it as it should be?
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from agent.datapath import bpf, fdb, guard, hardening, linksetup, neighbours, overlay, rtnl, tc, tunnel
from agent.datapath.bpf import Loaded
from agent.datapath.bpfcall import BpfError
from agent.datapath.guard import Guarded
from agent.datapath.linksetup import Setup
from agent.datapath.netlink import Netlink, Request
from agent.datapath.overlay import Endpoint
from agent.datapath.rtnl import KernelRoute, Link
from agent.datapath.state import LINK_PREFIX
from agent.model import ROUTE_PROTOCOL, Address


@dataclass
class _Marks:
    """By what this process knows its routes."""

    protocol: int = ROUTE_PROTOCOL


_marks = _Marks()


def use(route_protocol: int) -> None:
    """Say which protocol number routes to pods have."""
    _marks.protocol = route_protocol


@dataclass(frozen=True, slots=True)
class PodAddress:
    """An address that the node reaches by a pod's link: by a route to it alone and a permanent neighbour."""

    address: IPv4Address
    mac: str
    """The pod's."""
    source: Address | None = None
    """The node's own address on packets to it; None: the kernel chooses."""


@dataclass(frozen=True, slots=True)
class PodPort:
    """All that the node's side of a pod's link consists of; a mode computes it from the attachment alone."""

    link: str
    """Name of the host end."""
    alias: str
    mac: str
    mtu: int | None = None
    """Bytes; None: as it was made."""
    bridge: str = ""
    """The bridge that it is a port of; empty: none."""
    flags: tuple[tuple[int, int], ...] = ()
    """Flags of the bridge's port by their IFLA_BRPORT_ numbers."""
    ipv4: tuple[tuple[int, int], ...] = ()
    """Switches of ipv4/conf by their IPV4_DEVCONF_ numbers."""
    pod: PodAddress | None = None
    programs: bool = False
    """Whether the eBPF programs of vxlan carry the pod's packets, and know where it is."""
    guard: Guarded | None = None
    """As whom the pod may speak; None: the programs of vxlan see to it."""
    limited: bool = False
    """Whether the plugin `bandwidth` is about to limit what the pod sends."""
    station: str = ""
    """The MAC that is behind this port of a bridge for good; empty: the bridge learns them."""
    proxy: tuple[str, Address] | None = None
    """An interface of the node that answers ARP for an address of the pod."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the kernel has for all pods, read by a few dumps; maps and programs are read when asked for."""

    nl: Netlink
    links: Mapping[str, Link]
    routes: frozenset[KernelRoute]
    """Those with our protocol number."""
    earlier: Callable[[], frozenset[KernelRoute]]
    """Read those by pods' links that have any protocol number, once, when something is not as it should be."""
    permanent: Mapping[tuple[int, Address], str]
    proxies: frozenset[tuple[int, Address]]
    stations: set[tuple[int, str]]
    """Ports of bridges and the MACs that are behind them for good."""
    pods: Mapping[IPv4Address, Endpoint]
    """What the eBPF programs know."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a port is made: its link as it is now, and what else there is."""

    nl: Netlink
    link: Link
    indexes: Mapping[str, int]
    """Other interfaces of the node by name."""
    earlier: Callable[[], frozenset[KernelRoute]] = frozenset
    """Read routes by pods' links that an earlier version made, with another protocol number."""

    def index(self, name: str) -> int:
        """Return the index of another interface. Raises OSError ENODEV where it is not there."""
        if name not in self.indexes:
            raise OSError(errno.ENODEV, f"{name}: {os.strerror(errno.ENODEV)}")
        return self.indexes[name]


@dataclass(frozen=True, slots=True)
class Aspect:
    """A part of a port. Both functions do nothing for a port without that part. They raise OSError."""

    differs: Callable[[PodPort, Link, Seen], str]
    """Say how the kernel differs, empty where it does not."""
    make: Callable[[PodPort, Place], list[Request]]
    """Return the requests that make it as it should be; what is no request is done at once."""


def read(nl: Netlink) -> Seen:
    """Read what the kernel has for all pods. Raises OSError."""
    held, there = bpf.maps(), rtnl.links(nl)
    pods = {link.index for link in there if link.name.startswith(LINK_PREFIX)}
    return Seen(
        nl,
        {link.name: link for link in there},
        frozenset(rtnl.routes(nl, 4, _marks.protocol)),
        functools.cache(lambda: frozenset(route for route in rtnl.routes(nl, 4) if route.index in pods)),
        neighbours.permanent(nl),
        frozenset(neighbours.proxies(nl)),
        fdb.stations(nl),
        overlay.pods(held) if held else {},
    )


def lacking(port: PodPort, link: Link, seen: Seen) -> list[str]:
    """Say how the kernel differs, aspect by aspect. Raises OSError."""
    return [how for aspect in ASPECTS if (how := aspect.differs(port, link, seen))]


def differs(nl: Netlink, port: PodPort) -> str:
    """Say how the kernel differs from a port, empty where it does not. Raises OSError."""
    seen = read(nl)
    link = seen.links.get(port.link)
    if link is None:
        return f"host link {port.link} is missing"
    if not lacking(port, link, seen):
        return ""
    # a route of an earlier version is good until the node path takes it over
    return next(iter(lacking(port, link, replace(seen, routes=seen.routes | seen.earlier()))), "")


def make(port: PodPort, place: Place) -> None:
    """Make a port what it should be, in all aspects: a new MAC loses neighbours, a flap routes. Raises OSError."""
    place.nl.request(*[step for aspect in ASPECTS for step in aspect.make(port, place)])


def _loaded() -> Loaded:
    loaded = bpf.current()
    if loaded is None:
        raise OSError(errno.ENODEV, "the eBPF programs are not loaded")
    return loaded


def _programs_differ(port: PodPort, link: Link, seen: Seen) -> str:
    loaded = bpf.current()
    for hook, program in tunnel.pod_programs(loaded).items() if port.programs and loaded else ():
        if tc.attached(seen.nl, link.index, hook) != program.id:
            return f"host link {port.link} lacks the program {program.name}"
    return ""


def _attach_programs(port: PodPort, place: Place) -> list[Request]:
    if port.programs:
        tc.attach(place.nl, place.link.index, tunnel.pod_programs(_loaded()))
    return []


def _endpoint(port: PodPort, link: Link) -> tuple[IPv4Address, Endpoint] | None:
    if not port.programs or port.pod is None:
        return None
    return port.pod.address, Endpoint(link.index, port.pod.mac, port.mac)


def _entry_differs(port: PodPort, link: Link, seen: Seen) -> str:
    wanted = _endpoint(port, link)
    if wanted is None or seen.pods.get(wanted[0]) == wanted[1]:
        return ""
    return f"the programs don't know {wanted[0]} as that of {port.link}"


def _put_entry(port: PodPort, place: Place) -> list[Request]:
    if wanted := _endpoint(port, place.link):
        overlay.put_pod(_loaded().maps, *wanted)
    return []


def _guard_differs(port: PodPort, link: Link, seen: Seen) -> str:
    if port.guard is None:
        return ""
    try:
        held = guard.loaded()
    except BpfError as error:
        return f"host link {port.link} is not guarded: {error}" if port.guard.checked else ""
    if not guard.is_attached(seen.nl, held, link.index):
        return f"host link {port.link} lacks the program pod_guard"
    return "" if guard.knows(held.maps, link.index, port.guard) else f"pod_guard does not know {port.link}"


def _set_guard(port: PodPort, place: Place) -> list[Request]:
    """Without the check of sources a pod may do without the program, where there is none."""
    if port.guard is None:
        return []
    try:
        held = guard.loaded()
        guard.put(held.maps, place.link.index, port.guard)
        guard.attach(place.nl, held, place.link.index, limited=port.limited)
    except BpfError:
        if port.guard.checked:
            raise
    return []


def _station_differs(port: PodPort, link: Link, seen: Seen) -> str:
    if not port.station or (link.index, port.station) in seen.stations:
        return ""
    return f"bridge {port.bridge} does not know {port.station} as that of {port.link}"


def _set_station(port: PodPort, place: Place) -> list[Request]:
    return [fdb.add_station(place.link.index, port.station)] if port.station else []


def _harden_differs(port: PodPort, link: Link, _seen: Seen) -> str:
    if port.bridge:  # a port takes no packets itself
        return ""
    return f"host link {port.link} has {name} on" if (name := hardening.differs(link)) else ""


def _harden(port: PodPort, _place: Place) -> list[Request]:
    if not port.bridge:
        hardening.ipv6(port.link)
    return []


def _link_differs(port: PodPort, link: Link, seen: Seen) -> str:
    master = seen.links.get(port.bridge)
    wrong = {
        f"is no port of bridge {port.bridge}": port.bridge and (not master or link.master != master.index),
        f"has MTU {link.mtu}, not {port.mtu}": port.mtu not in (None, link.mtu),
        f"has MAC {link.mac}, not {port.mac}": link.mac != port.mac,
        f"has alias {link.alias!r}, not {port.alias!r}": link.alias != port.alias,
        "makes an IPv6 address of its own": not linksetup.is_quiet(link),
    }
    for number, value in port.ipv4:
        found = linksetup.ipv4(link, number)
        wrong[f"has switch {number} of ipv4/conf at {found}, not {value}"] = found != value
    return next((f"host link {port.link} {what}" for what, is_so in wrong.items() if is_so), "")


def _set_link(port: PodPort, place: Place) -> list[Request]:
    """What it was made with is not set again: the kernel would tell everybody of a change."""
    link, master = place.link, place.index(port.bridge) if port.bridge else None
    mtu, mac = None if link.mtu == port.mtu else port.mtu, None if link.mac == port.mac else port.mac
    setup = Setup(port.alias, mtu, mac, None if link.master == master else master, False, dict(port.ipv4))
    return [linksetup.configure(port.link, setup)]


def _flags_differ(port: PodPort, link: Link, _seen: Seen) -> str:
    for number, value in port.flags:
        if (found := linksetup.port_flag(link, number)) != value:
            return f"host link {port.link} has flag {number} of its bridge at {found}, not {value}"
    return ""


def _set_flags(port: PodPort, _place: Place) -> list[Request]:
    return [linksetup.bridge_port(port.link, dict(port.flags))] if port.flags else []


def _up_differs(port: PodPort, link: Link, _seen: Seen) -> str:
    return "" if link.up else f"host link {port.link} is down"


def _neighbour_differs(port: PodPort, link: Link, seen: Seen) -> str:
    if port.pod is None or seen.permanent.get((link.index, port.pod.address)) == port.pod.mac:
        return ""
    return f"the node lacks the neighbour {port.pod.address} on {port.link}"


def _set_neighbour(port: PodPort, place: Place) -> list[Request]:
    return [neighbours.add(place.link.index, port.pod.address, port.pod.mac)] if port.pod else []


def _route(pod: PodAddress, link: Link) -> KernelRoute:
    return KernelRoute(IPv4Network(pod.address), None, link.index, source=pod.source)


def _route_differs(port: PodPort, link: Link, seen: Seen) -> str:
    if port.pod is None or _route(port.pod, link) in seen.routes:
        return ""
    return f"the node lacks the route to {port.pod.address} by {port.link}"


def _set_route(port: PodPort, place: Place) -> list[Request]:
    """One by this link is replaced in one step, as of an earlier version; any other that is in the way stays."""
    if port.pod is None:
        return []
    route = _route(port.pod, place.link)
    ours = any((known.dst, known.index) == (route.dst, route.index) for known in place.earlier())
    return [(rtnl.replace_route if ours else rtnl.add_route)(route, _marks.protocol)]


def _proxy_differs(port: PodPort, _link: Link, seen: Seen) -> str:
    if port.proxy is None:
        return ""
    device, address = port.proxy
    parent = seen.links.get(device)
    if parent and (parent.index, address) in seen.proxies:
        return ""
    return f"{device} does not answer ARP for {address}"


def _set_proxy(port: PodPort, place: Place) -> list[Request]:
    return [neighbours.add_proxy(place.index(port.proxy[0]), port.proxy[1])] if port.proxy else []


ASPECTS = (
    Aspect(_programs_differ, _attach_programs),
    Aspect(_entry_differs, _put_entry),
    Aspect(_guard_differs, _set_guard),
    Aspect(_harden_differs, _harden),
    Aspect(_link_differs, _set_link),
    Aspect(_station_differs, _set_station),
    Aspect(_flags_differ, _set_flags),
    Aspect(_up_differs, lambda _port, place: [rtnl.link_up(place.link.index)]),
    Aspect(_neighbour_differs, _set_neighbour),
    Aspect(_route_differs, _set_route),
    Aspect(_proxy_differs, _set_proxy),
)
"""In the order in which they are made: all that guards a port before it is up, and it is up before its route."""
