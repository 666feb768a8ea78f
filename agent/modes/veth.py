"""A pod's veth pair, addresses and routes: what modes with one for each pod have in common."""

from __future__ import annotations

import errno
import hashlib
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from agent.ip import Address, Interface, Subnet
from agent.ipam.attachments.attachment import Attachment
from agent.kernel import (
    hardening,
    ip_addresses,
    ip_links,
    ip_routes,
    neighbours,
    netlink,
    netns,
    sysctl,
)
from agent.kernel.ip_links import IPV4_DEVCONF_FORWARDING, Link
from agent.kernel.ip_routes import KernelRoute
from agent.kernel.netlink import Netlink, Request
from agent.model.marks import ALIAS
from agent.model.network import ExtraRoute
from agent.modes.base import CheckError, NodeNotReadyError, Wired
from agent.objects import pod_guard, pod_port_setup
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_guard import GuardedPort
from agent.objects.pod_port import Place, PodAddress, PodPort

ALIAS_LIMIT = 255  # IFALIASZ - 1
GATEWAY = IPv4Address("169.254.1.1")  # of every pod with a /32; on no interface
DEFAULT: Mapping[int, Subnet] = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


def host_mac(attachment: Attachment) -> str:
    """The MAC of the host's end."""
    return f"ee:{hashlib.sha256(attachment.link.encode()).digest()[:5].hex(':')}"


def alias(attachment: Attachment) -> str:
    """Tells a person which pod a link is of, and us that it is ours."""
    parts = (ALIAS, attachment.network.name, attachment.container_id, attachment.ifname, attachment.pod)
    return " ".join(parts).strip()[:ALIAS_LIMIT]


def needed(what: str, name: str) -> Link:
    """A link of the node that a pod depends on. Raises NodeNotReadyError, OSError."""
    found = ip_links.link(netlink.host(), name)
    if found is None:
        raise NodeNotReadyError(f"{what} {name} is not there")
    return found


def check_up(what: str, name: str) -> Link:
    """A link of the node that is there and up. Raises CheckError, OSError."""
    found = ip_links.link(netlink.host(), name)
    if found is None or not found.up:
        raise CheckError(f"{what} {name} is {'down' if found else 'missing'}")
    return found


def create_veth(
    attachment: Attachment, netns_fd: int, mtu: int, *, master: int = 0, peer: str | None = None
) -> Request:
    """A veth pair from the node into the pod, where its end is `ifname`, or `peer`."""
    return ip_links.create_veth(
        attachment.link,
        host_mac(attachment),
        peer or attachment.ifname,
        attachment.mac,
        peer_netns=netns_fd,
        master=master,
        mtu=mtu,
    )


def port(attachment: Attachment) -> PodPort:
    """The node's side of a pod's link, as far as it is the same in all modes."""
    made = attachment.wired["interfaces"] if attachment.wired else ()
    mtu = next((i.get("mtu") for i in made if i.get("name") == attachment.link), None)
    versions = {lease.address.version for lease in attachment.leases}
    forwards = ((IPV4_DEVCONF_FORWARDING, 1),) if 4 in versions else ()
    return PodPort(
        attachment.link,
        alias(attachment),
        host_mac(attachment),
        mtu,
        ipv4=(*hardening.IPV4, *forwards),
        guard=guarded(attachment),
        limited=attachment.limited,
    )


def guarded(attachment: Attachment) -> GuardedPort:
    """Return the addresses and the MAC with which the pod may speak by this interface."""
    addresses = tuple(lease.address for lease in attachment.leases)
    return GuardedPort(attachment.container_id, attachment.mac, addresses, attachment.network.spoof_check)


def remove_port(
    host: HostKernel, attachment: Attachment, delete: Callable[[Netlink, str], bool] | None = None
) -> None:
    """Delete the host's end, by `delete` if it is given, and what pod_guard knows of it. Raises OSError."""
    nl, held = netlink.host(), host.bpf.maps(pod_guard.GUARD)
    port = ip_links.link(nl, attachment.link) if held else None
    (delete or host.reaper.delete)(nl, attachment.link)
    if held:
        pod_guard.remove(held, port.index if port else 0, guarded(attachment))


def pod_netlink(host: HostKernel, netns_fd: int, attachment: Attachment, *ends: str) -> Netlink:
    """A socket in the pod's namespace, whose ends take nothing from routers from now on. Raises OSError.

    There may be no IPv6 on new interfaces: a runtime, or the node for all, has turned it off.
    """
    with netns.inside(netns_fd):
        if any(lease.address.version == 6 for lease in attachment.leases):
            sysctl.enable_ipv6(host.sysctls, ("lo", attachment.ifname))
        for end in ends:
            hardening.ipv4(host.sysctls, end)
            hardening.ipv6(host.sysctls, end)
        return Netlink()


def routed_port(attachment: Attachment, source: Address | None = None) -> PodPort:
    """The same for a pod that the node reaches by a route to its address. Raises NodeNotReadyError."""
    pod = PodAddress(routed_address(attachment), attachment.mac, source)
    return replace(port(attachment), pod=pod)


def make_port(host: HostKernel, port: PodPort, *others: Link) -> None:
    """Make the node's side of a pair that was just made; `others` are links of the node that it names.

    Raises NodeNotReadyError, OSError.
    """
    nl = netlink.host()
    link = ip_links.link(nl, port.link)
    if link is None:
        raise NodeNotReadyError(f"{port.link} has vanished")
    pod_port_setup.make(port, Place(nl, host, link, {other.name: other.index for other in others}))


def check_port(host: HostKernel, port: PodPort) -> Link:
    """The node's side of a pod's link is as it was made. Raises CheckError, OSError."""
    if how := pod_port_setup.differs(netlink.host(), host, port):
        raise CheckError(how)
    return check_up("host link", port.link)


def pod_end(inside: Netlink, attachment: Attachment) -> Link:
    """The pod's. Raises NodeNotReadyError, OSError."""
    end = ip_links.link(inside, attachment.ifname)
    if end is None:
        raise NodeNotReadyError(f"{attachment.ifname} has vanished from the pod")
    return end


def pod_routes(
    gateways: Mapping[int, Address], extra: tuple[ExtraRoute, ...]
) -> tuple[list[ExtraRoute], list[ExtraRoute]]:
    """The pod's routes by its gateway of each IP version: those of the netconf, and the default ones."""
    wanted = [
        ExtraRoute(route.dst, route.gateway or gateways[route.dst.version])
        for route in extra
        if route.dst.version in gateways
    ]
    named = {route.dst for route in wanted}
    return wanted, [ExtraRoute(DEFAULT[v], g) for v, g in gateways.items() if DEFAULT[v] not in named]


def configure(
    inside: Netlink,
    index: int,
    steps: list[Request],
    subnet: Subnet | None,
    routes: tuple[list[ExtraRoute], list[ExtraRoute]],
) -> list[ExtraRoute]:
    """Bring the pod's end up, take the steps and set `pod_routes`; those that are in force. Raises OSError."""
    wanted, default = routes
    must = [
        ip_links.link_up(1),  # lo: else a pod can't reach its own address
        ip_links.link_up(index),
        *steps,
        *(ip_routes.add_route(KernelRoute(r.dst, r.gateway, index)) for r in wanted),
    ]
    may = [ip_routes.add_route(KernelRoute(r.dst, r.gateway, index)) for r in default]
    errors = inside.batch(must + may)
    for number, error in enumerate(errors):
        if error and (number < len(must) or error.errno != errno.EEXIST):
            raise error
    kept, destinations = list(wanted), {route.dst for route in wanted}
    for route, error in zip(default, errors[len(must) :], strict=True):
        if error is None:
            kept.append(route)
        elif subnet and subnet.version == route.dst.version and subnet not in destinations:
            # an earlier interface of the pod has the default route: by this one its own network is reached
            own = ExtraRoute(subnet, route.gateway)
            (refused,) = inside.batch([ip_routes.add_route(KernelRoute(own.dst, own.gateway, index))])
            if refused is None:
                kept.append(own)
            elif refused.errno != errno.EEXIST:  # all of it is on-link
                raise refused
    return kept


def routed_address(attachment: Attachment) -> IPv4Address:
    """The address of a pod that has a /32. Raises NodeNotReadyError."""
    for lease in attachment.leases:
        if isinstance(lease.address, IPv4Address):
            return lease.address
    raise NodeNotReadyError(f"the node has no IPv4 block, and {attachment.network.mode} carries nothing else")


def host_route(address: IPv4Address, index: int) -> KernelRoute:
    """A /32 that is on a link."""
    return KernelRoute(IPv4Network(address), None, index)


def lone_gateway(inside: Netlink, index: int, mac: str) -> list[Request]:
    """The gateway of a pod with a /32, which is on no interface: a permanent neighbour. Raises OSError."""
    gateway = host_route(GATEWAY, index)
    if any(route.dst == gateway.dst for route in ip_routes.routes(inside, 4)):  # of an earlier interface
        gateway = replace(gateway, metric=index)
    return [neighbours.add(index, GATEWAY, mac), ip_routes.add_route(gateway)]


def wire_routed_end(
    host: HostKernel, netns_fd: int, attachment: Attachment, routes: tuple[ExtraRoute, ...]
) -> list[ExtraRoute]:
    """The pod's end with a /32 and one neighbour, the node at 169.254.1.1; its routes. Raises OSError."""
    with pod_netlink(host, netns_fd, attachment, attachment.ifname) as inside:
        end = pod_end(inside, attachment)
        steps = [
            ip_addresses.add_address(end.index, routed_address(attachment), 32),
            *lone_gateway(inside, end.index, host_mac(attachment)),
        ]
        by_gateway = tuple(ExtraRoute(route.dst) for route in routes)  # there is no other neighbour
        by_host = pod_routes({4: GATEWAY}, by_gateway)
        return configure(inside, end.index, steps, attachment.network.subnet, by_host)


def routed(attachment: Attachment, mtu: int, made: list[ExtraRoute]) -> Wired:
    """Return the answer of ADD for a pod with a /32."""
    return Wired(
        interfaces=[
            {"name": attachment.link, "mac": host_mac(attachment), "mtu": mtu},
            {"name": attachment.ifname, "mac": attachment.mac, "mtu": mtu, "sandbox": attachment.netns},
        ],
        ips=[{"address": f"{routed_address(attachment)}/32", "gateway": str(GATEWAY), "interface": 1}],
        routes=[{"dst": str(r.dst), "gw": str(r.gateway)} for r in made],
    )


def check_routed(attachment: Attachment, wired: Wired, port: Link, netns_fd: int) -> None:
    """The end of a pod with a /32 is as it was made. Raises CheckError."""
    address = routed_address(attachment)
    with netns.netlink_in(netns_fd) as inside:
        check_pod(inside, attachment, wired, port.index, (ipaddress.ip_interface((address, 32)),))


def check_pod(
    inside: Netlink, attachment: Attachment, wired: Wired, peer: int, addresses: tuple[Interface, ...]
) -> None:
    """The pod's end is as it was made: MAC, other end, addresses, routes. Raises CheckError."""
    name = attachment.ifname
    end = ip_links.link(inside, name)
    if end is None or not end.up:
        raise CheckError(f"{name} in the pod is {'down' if end else 'missing'}")
    if end.mac != attachment.mac:
        raise CheckError(f"{name} in the pod has MAC {end.mac}, not {attachment.mac}")
    if end.peer != peer:
        raise CheckError(f"{name} in the pod is not the other end of {attachment.link}")
    held = {a.interface for a in ip_addresses.addresses(inside, end.index)}
    for address in addresses:
        if address not in held:
            raise CheckError(f"{name} in the pod lacks address {address}")
    present = {route for version in (4, 6) for route in ip_routes.routes(inside, version)}
    for route in wired["routes"]:
        wanted = KernelRoute(ipaddress.ip_network(route["dst"]), ipaddress.ip_address(route["gw"]), end.index)
        if wanted not in present:
            raise CheckError(f"the pod lacks route {wanted.dst} via {wanted.gateway}")
