"""The node's side of a pod's link as one value: `wire` makes it, CHECK compares it, the node path repairs it.

It consists of aspects. Each answers two questions: how does the kernel differ, and what makes it as it should be?
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network

from agent.ip import Address
from agent.kernel import fdb, hardening, ip_links, ip_routes, link_setup, neighbours
from agent.kernel.bpf.syscall import BpfError
from agent.kernel.ip_links import Link
from agent.kernel.ip_routes import KernelRoute
from agent.kernel.link_setup import Setup
from agent.kernel.netlink import Netlink, Request
from agent.model.marks import LINK_PREFIX
from agent.objects import pod_guard
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import Place, PodAddress, PodPort, PortAspect, PortsInKernel


def read(nl: Netlink, host: HostKernel) -> PortsInKernel:
    """Read what the kernel has for all pods. Raises OSError."""
    there = ip_links.links(nl)
    pods = {link.index for link in there if link.name.startswith(LINK_PREFIX)}
    routes = frozenset(route for version in (4, 6) for route in ip_routes.routes(nl, version, host.pod_routes))
    by_pods: dict[Address, tuple[KernelRoute, ...]] = {}
    for route in routes:
        if route.index in pods and route.dst.prefixlen == route.dst.max_prefixlen:
            address = route.dst.network_address
            by_pods[address] = (*by_pods.get(address, ()), route)
    return PortsInKernel(
        nl,
        host,
        {link.name: link for link in there},
        routes,
        functools.cache(lambda: frozenset(route for route in ip_routes.routes(nl, 4) if route.index in pods)),
        by_pods,
        neighbours.permanent(nl),
        frozenset(neighbours.proxies(nl)),
        fdb.stations(nl),
    )


def lacking(port: PodPort, link: Link, seen: PortsInKernel) -> list[str]:
    """Say how the kernel differs, aspect by aspect. Raises OSError."""
    return [how for aspect in _aspects(port) if (how := aspect.differs(port, link, seen))]


def differs(nl: Netlink, host: HostKernel, port: PodPort) -> str:
    """Say how the kernel differs from a port, empty where it does not. Raises OSError."""
    seen = read(nl, host)
    link = seen.links.get(port.link)
    if link is None:
        return f"host link {port.link} is missing"
    if not lacking(port, link, seen):
        return ""
    # a route of an earlier version is good until the node path takes it over
    return next(iter(lacking(port, link, replace(seen, routes=seen.routes | seen.earlier()))), "")


def make(port: PodPort, place: Place) -> None:
    """Make a port what it should be, in all aspects: a new MAC loses neighbours, a flap routes. Raises OSError."""
    place.nl.request(*[step for aspect in _aspects(port) for step in aspect.make(port, place)])


def _aspects(port: PodPort) -> tuple[PortAspect, ...]:
    return (*port.aspects, *ASPECTS)


def _guard_differs(port: PodPort, link: Link, seen: PortsInKernel) -> str:
    if port.guard is None:
        return ""
    try:
        held = pod_guard.loaded(seen.host.bpf)
    except BpfError as error:
        return f"host link {port.link} is not guarded: {error}" if port.guard.checked else ""
    if not pod_guard.is_attached(seen.nl, held, link.index):
        return f"host link {port.link} lacks the program pod_guard"
    return "" if pod_guard.knows(held.maps, link.index, port.guard) else f"pod_guard does not know {port.link}"


def _set_guard(port: PodPort, place: Place) -> list[Request]:
    """Set the guard. Without the check of sources a pod may do without the program, where there is none."""
    if port.guard is None:
        return []
    try:
        held = pod_guard.loaded(place.host.bpf)
        pod_guard.put(held.maps, place.link.index, port.guard)
        pod_guard.attach(place.nl, held, place.link.index, limited=port.limited)
    except BpfError:
        if port.guard.checked:
            raise
    return []


def _station_differs(port: PodPort, link: Link, seen: PortsInKernel) -> str:
    if not port.station or (link.index, port.station) in seen.stations:
        return ""
    return f"bridge {port.bridge} does not know {port.station} as that of {port.link}"


def _set_station(port: PodPort, place: Place) -> list[Request]:
    return [fdb.add_station(place.link.index, port.station)] if port.station else []


def _harden_differs(port: PodPort, link: Link, _seen: PortsInKernel) -> str:
    if port.bridge:  # a port takes no packets itself
        return ""
    return f"host link {port.link} has {name} on" if (name := hardening.differs(link)) else ""


def _harden(port: PodPort, place: Place) -> list[Request]:
    if not port.bridge:
        hardening.ipv6(place.host.sysctls, port.link)
    return []


def _link_differs(port: PodPort, link: Link, seen: PortsInKernel) -> str:
    master = seen.links.get(port.bridge)
    wrong = {
        f"is no port of bridge {port.bridge}": port.bridge and (not master or link.master != master.index),
        "is a port of another device": not port.bridge and link.master,
        f"has MTU {link.mtu}, not {port.mtu}": port.mtu not in (None, link.mtu),
        f"has MAC {link.mac}, not {port.mac}": link.mac != port.mac,
        f"has alias {link.alias!r}, not {port.alias!r}": link.alias != port.alias,
        "makes an IPv6 address of its own": not link_setup.is_quiet(link),
    }
    for number, value in port.ipv4:
        found = link_setup.ipv4(link, number)
        wrong[f"has switch {number} of ipv4/conf at {found}, not {value}"] = found != value
    return next((f"host link {port.link} {what}" for what, is_so in wrong.items() if is_so), "")


def _set_link(port: PodPort, place: Place) -> list[Request]:
    """Set up the link, except an MTU, MAC or master that it has: the kernel would tell everybody of a change."""
    link, master = place.link, place.index(port.bridge) if port.bridge else 0
    mtu, mac = None if link.mtu == port.mtu else port.mtu, None if link.mac == port.mac else port.mac
    setup = Setup(port.alias, mtu, mac, None if link.master == master else master, False, dict(port.ipv4))
    return [link_setup.configure(port.link, setup)]


def _flags_differ(port: PodPort, link: Link, _seen: PortsInKernel) -> str:
    for number, value in port.flags:
        if (found := link_setup.port_flag(link, number)) not in (value, None):  # None: the kernel lacks it
            return f"host link {port.link} has flag {number} of its bridge at {found}, not {value}"
    return ""


def _set_flags(port: PodPort, _place: Place) -> list[Request]:
    return [link_setup.bridge_port(port.link, dict(port.flags))] if port.flags else []


def _up_differs(port: PodPort, link: Link, _seen: PortsInKernel) -> str:
    return "" if link.up else f"host link {port.link} is down"


def _is_active(port: PodPort, link: Link) -> bool:
    """A port that has no carrier, as the pod set its own end down, forwards by itself when it has one again."""
    return bool(port.bridge and link.master and link.up and link.running)


def _state_differs(port: PodPort, link: Link, _seen: PortsInKernel) -> str:
    if not _is_active(port, link):
        return ""
    state = link_setup.port_flag(link, link_setup.IFLA_BRPORT_STATE)
    return "" if state == link_setup.FORWARDING else f"host link {port.link} does not forward (state {state})"


def _set_state(port: PodPort, place: Place) -> list[Request]:
    """One that has just been set up needs no such request, and is not ready for it."""
    is_active = _is_active(port, place.link)
    return [link_setup.port_state(port.link, link_setup.FORWARDING)] if is_active else []


def _neighbour_differs(port: PodPort, link: Link, seen: PortsInKernel) -> str:
    if port.pod is None or seen.permanent.get((link.index, port.pod.address)) == port.pod.mac:
        return ""
    return f"the node lacks the neighbour {port.pod.address} on {port.link}"


def _misled_differs(port: PodPort, _link: Link, seen: PortsInKernel) -> str:
    """Say how a bridge misleads the node: it learns where a pod is, unless it has a permanent entry."""
    bridge = seen.links.get(port.bridge)
    if bridge and (wrong := _misled(port, bridge.index, seen.permanent)):
        return f"bridge {port.bridge} has another MAC for {wrong[0]} permanently"
    return ""


def _misled(port: PodPort, bridge: int, permanent: Mapping[tuple[int, Address], str]) -> list[Address]:
    addresses = port.guard.addresses if port.guard else ()
    return [address for address in addresses if permanent.get((bridge, address), port.station) != port.station]


def _lead_back(port: PodPort, place: Place) -> list[Request]:
    if not port.bridge:
        return []
    index = place.index(port.bridge)
    return [neighbours.delete(index, address) for address in _misled(port, index, place.permanent)]


def _set_neighbour(port: PodPort, place: Place) -> list[Request]:
    return [neighbours.add(place.link.index, port.pod.address, port.pod.mac)] if port.pod else []


def _route(pod: PodAddress, link: Link) -> KernelRoute:
    return KernelRoute(IPv4Network(pod.address), None, link.index, source=pod.source)


def _strays(port: PodPort, link: Link, by_pods: Mapping[Address, tuple[KernelRoute, ...]]) -> list[KernelRoute]:
    """Return routes of our number to the pod by pods' links, but for the one that should be."""
    wanted = _route(port.pod, link) if port.pod else None
    addresses = {*(port.guard.addresses if port.guard else ()), *([port.pod.address] if port.pod else ())}
    return [route for address in addresses for route in by_pods.get(address, ()) if route != wanted]


def _route_differs(port: PodPort, link: Link, seen: PortsInKernel) -> str:
    if port.pod and _route(port.pod, link) not in seen.routes:
        return f"the node lacks the route to {port.pod.address} by {port.link}"
    stray = next(iter(_strays(port, link, seen.by_pods)), None)
    return f"a route to {stray.dst} by another link or metric is in the way of {port.link}" if stray else ""


def _set_route(port: PodPort, place: Place) -> list[Request]:
    """One by this link, or of our number, is replaced in one step; any other that is in the way stays."""
    strays, protocol = _strays(port, place.link, place.by_pods), place.host.pod_routes
    if port.pod is None:
        return [ip_routes.delete_route(stray, protocol) for stray in strays]
    route = _route(port.pod, place.link)
    in_place = [known for known in strays if (known.dst, known.metric) == (route.dst, route.metric)]
    ours = bool(in_place) or any((k.dst, k.index) == (route.dst, route.index) for k in place.earlier())
    surplus = [ip_routes.delete_route(stray, protocol) for stray in strays if stray not in in_place]
    return [(ip_routes.replace_route if ours else ip_routes.add_route)(route, protocol), *surplus]


def _proxy_differs(port: PodPort, _link: Link, seen: PortsInKernel) -> str:
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
    PortAspect(_guard_differs, _set_guard),
    PortAspect(_harden_differs, _harden),
    PortAspect(_link_differs, _set_link),
    PortAspect(_station_differs, _set_station),
    PortAspect(_flags_differ, _set_flags),
    PortAspect(_up_differs, lambda _port, place: [ip_links.link_up(place.link.index)]),
    PortAspect(_state_differs, _set_state),
    PortAspect(_neighbour_differs, _set_neighbour),
    PortAspect(_misled_differs, _lead_back),
    PortAspect(_route_differs, _set_route),
    PortAspect(_proxy_differs, _set_proxy),
)
"""The aspects in the order in which they are made: a port's guards, then the port is up, then its route.

Those that a mode adds come before them.
"""
