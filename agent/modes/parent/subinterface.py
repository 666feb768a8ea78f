"""The common part of macvlan and ipvlan: a subinterface of the node's interface, and a veth pair to the node.

A parent does not speak to its own subinterfaces, so pods reach their node by the veth pair, and Services by the
node. The veth pair's host end is what marks the attachment, as in other modes: it is there before the subinterface
and until after it, and by it the node knows the pod's namespace.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import ClassVar

from agent.errors import invalid_config
from agent.ip import Address, Subnet
from agent.ipam import blocks
from agent.ipam.attachments.attachment import Attachment
from agent.kernel import ip_addresses, ip_links, ip_routes, neighbours, netlink, netns, subinterfaces
from agent.kernel.ip_links import Link
from agent.kernel.ip_routes import KernelRoute
from agent.kernel.netlink import Netlink
from agent.kernel.subinterfaces import Subinterface
from agent.model.marks import mac_for
from agent.model.network import ExtraRoute, ModeOptions, Network, ParentLink
from agent.model.problem import Problem
from agent.modes import underlay, veth
from agent.modes.base import CheckError, ConfFields, Mode, ModeContext, NodeNotReadyError, Wired
from agent.modes.parent.options import PASSTHRU, ParentOptions
from agent.modes.parent.parent_links import ParentLinks
from agent.modes.veth import GATEWAY
from agent.objects import host_end
from agent.objects.base import NodeObject
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import PodPort
from agent.objects.state import LocalAddress, Masquerade, NodeSnat, NodeState

DEFAULT = ipaddress.IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class PodRoute:
    """A route of the pod: by the veth pair if its gateway is GATEWAY, else by the subinterface."""

    dst: Subnet
    gateway: Address | None


class SubinterfaceMode(Mode):
    """A mode whose pods have a subinterface of the kind `kind`."""

    kind: str
    options: ClassVar[type[ParentOptions]]

    def parse_options(self, given: ConfFields) -> ParentOptions:
        """Return the options that a netconf gives. Raises CniError 7."""
        return self.options.parse(given.top, given.ipam)

    def exclusive_fields(self, options: ModeOptions) -> Mapping[str, object]:
        """Return what the netconf sets: all of it is about a parent, which other modes do not have."""
        return options.given() if isinstance(options, ParentOptions) else {}

    def complete_options(self, network: Network, given: ConfFields) -> ParentOptions:
        """Return the options with the defaults of linkMode and viaHost. Raises CniError 7."""
        return self.options.of(network).complete(network, given.top)

    def node_objects(self) -> tuple[NodeObject, ...]:
        """Return the look at the parents."""
        return (ParentLinks(),)

    def desired(self, view: ModeContext) -> NodeState:
        """Return the parent of the subinterfaces, and the source address of pods' packets that go by their node.

        The parent stays as it is.
        """
        found = find_uplink(view)
        if isinstance(found, Problem):  # also before there are blocks: none is of use then
            return NodeState(problems=frozenset({found}))
        if not view.blocks:
            return NodeState()
        assert view.network.subnet  # noqa: S101 - the netconf of these modes has one
        snat = NodeSnat(view.network.subnet, found.hosts[0], view.network.masquerade)
        return NodeState(
            masquerade=Masquerade(node_snats=frozenset({snat})),
            forwarding=frozenset({4}),
            uplinks=frozenset({found}),
            guards=frozenset({(found.device, view.network.spoof_check)}),
            problems=frozenset(_contradictions(view)),
        )

    def mac(self, attachment: Attachment) -> str | None:
        """The MAC that the subinterface is to have; None: the kernel's choice."""
        raise NotImplementedError

    def interface(self, attachment: Attachment) -> ipaddress.IPv4Interface:
        """The subinterface's address, within its subnet."""
        subnet = attachment.network.subnet
        return ipaddress.IPv4Interface((_address(attachment), subnet.prefixlen if subnet else 32))

    def default(self, attachment: Attachment) -> PodRoute:
        """The pod's default route: by the subnet's router, or by the node where there is none."""
        return PodRoute(DEFAULT, _uplink(attachment).gateway or GATEWAY)

    def port(self, attachment: Attachment) -> PodPort:
        """A link with the node's route to the pod, whose subinterface is not reached from the parent."""
        return veth.routed_port(attachment, _uplink(attachment).hosts[0])

    def wire(
        self, host: HostKernel, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]
    ) -> Wired:
        """The veth pair first, with the node's route to the pod; then the subinterface, and the pod's routes."""
        nl, uplink = netlink.host(), _uplink(attachment)
        parent = veth.needed("interface", uplink.device)
        network, host_mac = attachment.network, veth.host_mac(attachment)
        mtu, name = network.mtu or parent.mtu, attachment.link
        nl.request(veth.create_veth(attachment, netns_fd, mtu, peer=name))
        veth.make_port(host, self.port(attachment), parent)
        nl.request(
            subinterfaces.create(
                Subinterface(
                    _first_name(attachment),
                    self.kind,
                    link_mode(network),
                    parent.index,
                    netns_fd,
                    self.mac(attachment),
                    mtu,
                    host_end.group(name),
                )
            ),
        )
        with veth.pod_netlink(host, netns_fd, attachment, name, _first_name(attachment)) as inside:
            mac, in_force = self._configure(inside, attachment, host_mac, routes)
        gateway = {"gateway": str(uplink.gateway)} if uplink.gateway else {}
        return Wired(
            interfaces=[
                {"name": name, "mac": host_mac, "mtu": mtu},
                {"name": attachment.ifname, "mac": mac, "mtu": mtu, "sandbox": attachment.netns},
            ],
            ips=[{"address": str(self.interface(attachment)), **gateway, "interface": 1}],
            routes=[
                {"dst": str(each.dst), **({"gw": str(each.gateway)} if each.gateway else {})} for each in in_force
            ],
        )

    def check(self, host: HostKernel, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Parent, veth pair, subinterface, addresses and routes are as `wire` made them."""
        parent = veth.check_up("interface", _uplink(attachment).device)
        veth.check_port(host, self.port(attachment))
        with netns.netlink_in(netns_fd) as inside:
            self._check_pod(inside, attachment, wired, parent)

    def unwire(self, host: HostKernel, attachment: Attachment) -> None:
        """Delete the subinterface and the veth pair; their addresses and routes go with them."""
        veth.remove_port(host, attachment, partial(host_end.detach, host.reaper))

    def _configure(
        self, inside: Netlink, attachment: Attachment, host_mac: str, routes: tuple[ExtraRoute, ...]
    ) -> tuple[str, list[PodRoute]]:
        """The subinterface's MAC, and the pod's routes that are in force."""
        link, veth = ip_links.link(inside, _first_name(attachment)), ip_links.link(inside, attachment.link)
        if link is None or veth is None:
            raise NodeNotReadyError(f"{attachment.ifname} has vanished from the pod")
        interface = self.interface(attachment)
        extra, others, services = self._ways(attachment, routes)
        must = [
            ip_links.link_up(1),  # lo: else a pod can't reach its own address
            subinterfaces.rename(link.index, attachment.ifname),
            subinterfaces.set_announcements(link.index),
            ip_addresses.add_address(link.index, interface.ip, interface.network.prefixlen),
            ip_links.link_up(link.index),  # with its address, which it announces now
            ip_links.link_up(veth.index),
            neighbours.add(veth.index, GATEWAY, host_mac),
            *(ip_routes.add_route(_route(each, interface.ip, link, veth)) for each in extra),
        ]

        def add(more: list[PodRoute]) -> list[PodRoute]:
            """Add the routes, and return those in force. A route of an earlier interface of the pod stays."""
            errors = inside.batch([ip_routes.add_route(_route(each, interface.ip, link, veth)) for each in more])
            for error in errors:
                if error and error.errno != errno.EEXIST:
                    raise error
            return [each for each, error in zip(more, errors, strict=True) if error is None]

        inside.request(*must)
        kept = add(others)
        if any(each.dst == DEFAULT for each in (*extra, *kept, *services)):
            kept += add(services)  # else an earlier interface of the pod leads there already
        return link.mac, extra + kept

    def _ways(
        self, attachment: Attachment, routes: tuple[ExtraRoute, ...]
    ) -> tuple[list[PodRoute], list[PodRoute], list[PodRoute]]:
        """Routes that the netconf demands, others to the pod's world, and those to what only the node leads to."""
        default, uplink = self.default(attachment), _uplink(attachment)
        extra = [PodRoute(r.dst, r.gateway or default.gateway) for r in routes if r.dst.version == 4]
        by_host = [ipaddress.ip_network(address) for address in uplink.hosts]
        others = [PodRoute(dst, GATEWAY) for dst in by_host]
        services = [PodRoute(dst, GATEWAY) for dst in uplink.via_host]
        named = {each.dst for each in (*extra, *services)}
        return extra, [*others, *([] if default.dst in named else [default])], services

    def _check_pod(self, inside: Netlink, attachment: Attachment, wired: Wired, parent: Link) -> None:
        name, interface = attachment.ifname, self.interface(attachment)
        link, veth = ip_links.link(inside, name), ip_links.link(inside, attachment.link)
        if link is None or not link.up:
            raise CheckError(f"{name} in the pod is {'down' if link else 'missing'}")
        if (link.kind, link.group, link.peer) != (self.kind, host_end.group(attachment.link), parent.index):
            raise CheckError(f"{name} in the pod is not the {self.kind} of {parent.name} that was made for it")
        if link.mac != wired["interfaces"][-1]["mac"]:
            raise CheckError(f"{name} in the pod has MAC {link.mac}, not {wired['interfaces'][-1]['mac']}")
        if veth is None or not veth.up:
            raise CheckError(f"{attachment.link} in the pod is {'down' if veth else 'missing'}")
        if interface not in {a.interface for a in ip_addresses.addresses(inside, link.index)}:
            raise CheckError(f"{name} in the pod lacks address {interface}")
        present = set(ip_routes.routes(inside, 4))
        for route in wired["routes"]:
            gateway = ipaddress.ip_address(route["gw"]) if "gw" in route else None
            wanted = PodRoute(ipaddress.ip_network(route["dst"]), gateway)
            if _route(wanted, interface.ip, link, veth) not in present:
                raise CheckError(f"the pod lacks route {wanted.dst} via {wanted.gateway}")


def link_mode(network: Network) -> str:
    """Return how subinterfaces of the network's parent see each other."""
    return ParentOptions.of(network).link_mode


def only_parents(attachment: Attachment) -> None:
    """Check that no other MAC was asked for where the pod has its parent's in any case. Raises CniError 7."""
    if attachment.mac != mac_for(attachment.leases[0].address):
        what = f"none: with linkMode {link_mode(attachment.network)} a pod has its parent's"
        raise invalid_config("mac", attachment.mac, f"{what}; use macvlan in another linkMode")


def find_uplink(view: ModeContext) -> ParentLink | Problem:
    """The parent, by name or as what holds the node's address, and what pods must know of this node."""
    network, where = view.network, f"node {view.node}"
    me = view.snapshot.nodes.get(view.node)
    ipv4 = [local for local in view.local if local.interface.version == 4]
    mine = [local for local in ipv4 if me and local.interface.ip in me.addresses]
    if not mine:
        return Problem(where, "none of its interfaces holds an IPv4 InternalIP", "fix the Node, or --node")
    by_end = underlay.own(view, underlay.chosen(view))[1] or mine[0]
    mine.sort(key=lambda local: local != by_end)
    known = ParentOptions.of(network)
    device = known.master or by_end.device
    on_parent = [local for local in ipv4 if local.device == device]
    if wrong := _unfit(view, device, on_parent):
        return wrong
    source = next((local for local in mine if local.device == device), mine[0])
    near = (local.interface.ip for local in ipv4 if blocks.contains(network.subnet, local.interface.ip))
    hosts: tuple[Address, ...] = tuple(dict.fromkeys((source.interface.ip, *near)))
    routers = (known.gateway, *_pools_routers(view).values(), *(local.gateway for local in on_parent))
    gateway = next((router for router in routers if blocks.contains(network.subnet, router)), None)
    return ParentLink(device, hosts, gateway, _via_host(view), _reserved(view, hosts, gateway))


def _unfit(view: ModeContext, device: str, on_parent: list[LocalAddress]) -> Problem | None:
    """Return why pods of the network can't depend on this parent; None: they can."""
    network, where = view.network, f"network {view.network.name}"
    if link_mode(network) == PASSTHRU and on_parent:
        return Problem(where, f"{device} has addresses of the node, which passthru would cut off", "name another")
    if network.shared and on_parent and not any(_within(network.subnet, local) for local in on_parent):
        held = ", ".join(str(local.interface) for local in on_parent)
        here = [local.device for local in view.local if _within(network.subnet, local)]
        others = f"but of {', '.join(here)}" if here else "nor of any interface of this node"
        what = f"subnet {network.subnet} is not that of {device} ({held}), {others}"
        files = f"manifests/overlays/{network.mode}: conflist.yaml, and ippool.yaml for the IPPool"
        return Problem(where, what, f"set `subnet` to the parent's ({files}), or `master` to another parent")
    return None


def _within(subnet: Subnet | None, local: LocalAddress) -> bool:
    parent = local.interface.network
    return isinstance(subnet, IPv4Network) and isinstance(parent, IPv4Network) and subnet.subnet_of(parent)


def _pools_routers(view: ModeContext) -> dict[str, Address]:
    """Return the routers that the pools of a shared subnet name, by pool, in the order in which they count."""
    subnet, pools = view.network.subnet, blocks.pools(view.snapshot, view.network)
    named = ((pool.name, pool.gateway) for pool in pools if view.network.shared)
    return {name: router for name, router in named if router and blocks.contains(subnet, router)}


def _contradictions(view: ModeContext) -> Iterator[Problem]:
    """Pools of one subnet that name different routers, where the netconf does not decide."""
    named = _pools_routers(view)
    if ParentOptions.of(view.network).gateway is None and len({*named.values()}) > 1:
        what = "they name different gateways of one subnet: " + ", ".join(f"{p}: {r}" for p, r in named.items())
        remedy = (
            f"pods use {next(iter(named.values()))}; name one in all pools, or by `ipam.gateway` in the netconf"
        )
        yield Problem(f"IPPools of network {view.network.name}", what, remedy)


def _via_host(view: ModeContext) -> tuple[Subnet, ...]:
    """Return the netconf's subnets and all pools of pods: the node knows other modes' pods, the router doesn't."""
    snapshot = view.snapshot
    pools = (pool.cidr for pool in snapshot.pools.values() if not blocks.is_shared(pool, snapshot))
    others = [cidr for cidr in pools if not view.network.subnet or not blocks.overlaps(cidr, view.network.subnet)]
    wanted = (
        cidr for cidr in (*ParentOptions.of(view.network).via_host, *others) if isinstance(cidr, IPv4Network)
    )
    return tuple(sorted(ipaddress.collapse_addresses(wanted)))


def _reserved(view: ModeContext, hosts: tuple[Address, ...], gateway: Address | None) -> frozenset[Address]:
    subnet = view.network.subnet
    known: set[Address] = {address for node in view.snapshot.nodes.values() for address in node.addresses}
    known.update((*hosts, *view.snapshot.host_networks.api_servers))
    if subnet:
        known |= {subnet.network_address, subnet.broadcast_address}
    if gateway:
        known.add(gateway)
    return frozenset(address for address in known if blocks.contains(subnet, address))


def _first_name(attachment: Attachment) -> str:
    """Linux before 6.13 looks for the new link's name here, though it is made in the pod: `eth0` would exist."""
    return f"new-{attachment.link[-11:]}"


def _uplink(attachment: Attachment) -> ParentLink:
    if attachment.uplink is None:
        raise NodeNotReadyError("the node's interface is not known yet")
    return attachment.uplink


def _address(attachment: Attachment) -> IPv4Address:
    for lease in attachment.leases:
        if isinstance(lease.address, IPv4Address):
            return lease.address
    raise NodeNotReadyError("the node has no IPv4 addresses for pods of this network")


def _route(route: PodRoute, address: Address, link: Link, veth: Link) -> KernelRoute:
    if route.gateway == GATEWAY:
        return KernelRoute(route.dst, route.gateway, veth.index, source=address, onlink=True)
    return KernelRoute(route.dst, route.gateway, link.index)
