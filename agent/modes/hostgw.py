"""host-gw: a bridge on each node, a veth pair for each pod, and a route to each peer's block via that peer."""

from __future__ import annotations

import errno
import hashlib
import ipaddress
from collections.abc import Iterator

from agent.datapath import links, netns, rtnl
from agent.datapath.netlink import Netlink
from agent.datapath.rtnl import KernelRoute
from agent.datapath.state import ALIAS, Bridge, Masquerade, NodeState, Route
from agent.ipam import allocator, blocks
from agent.ipam.attachments import Attachment, mac_for
from agent.model import Node, Problem, Subnet
from agent.modes.base import CheckError, NodeNotReadyError, View, Wired
from agent.netconf import ExtraRoute

ALIAS_LIMIT = 255  # IFALIASZ - 1
DEFAULT = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


class HostGw:
    """The mode `host-gw`."""

    def desired(self, view: View) -> NodeState:
        """A bridge with the gateway of each own block, and `block via InternalIP` for each on-link peer."""
        network = view.network
        routes: set[Route] = set()
        problems: set[Problem] = set()
        for found in _peer_routes(view):
            if isinstance(found, Route):
                routes.add(found)
            else:
                problems.add(found)
        return NodeState(
            bridges=_bridge(view),
            routes=frozenset(routes),
            masquerade=_masquerade(view) if network.masquerade else Masquerade(),
            forwarding=frozenset(block.version for block in view.blocks),
            problems=frozenset(problems),
        )

    def wire(self, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]) -> Wired:
        """A veth pair from the bridge into the pod; the pod's end with address and default route."""
        network, nl = attachment.network, links.host()
        bridge = rtnl.link(nl, network.bridge)
        if bridge is None:
            raise NodeNotReadyError(f"bridge {network.bridge} is not there")
        mtu, host_mac = network.mtu or bridge.mtu, _host_mac(attachment)
        nl.request(
            rtnl.create_veth(
                attachment.link,
                host_mac,
                attachment.ifname,
                attachment.mac,
                peer_netns=netns_fd,
                master=bridge.index,
                mtu=mtu,
            ),
            rtnl.bridge_port(attachment.link, _alias(attachment), hairpin=network.hairpin),
        )
        with netns.netlink_in(netns_fd) as inside:
            made = _configure(inside, attachment, routes)
        return Wired(
            interfaces=[
                {"name": bridge.name, "mac": bridge.mac, "mtu": bridge.mtu},
                {"name": attachment.link, "mac": host_mac, "mtu": mtu},
                {"name": attachment.ifname, "mac": attachment.mac, "mtu": mtu, "sandbox": attachment.netns},
            ],
            ips=[
                {
                    "address": f"{lease.address}/{lease.block.prefixlen}",
                    "gateway": str(allocator.gateway(lease.block)),
                    "interface": 2,
                }
                for lease in attachment.leases
            ],
            routes=[{"dst": str(r.dst), "gw": str(r.gateway)} for r in made],
        )

    def check(self, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Bridge, both ends of the veth pair, addresses and routes are as `wire` made them."""
        nl = links.host()
        bridge, port = rtnl.link(nl, attachment.network.bridge), rtnl.link(nl, attachment.link)
        if bridge is None or not bridge.up:
            raise CheckError(f"bridge {attachment.network.bridge} is {'down' if bridge else 'missing'}")
        if port is None or not port.up:
            raise CheckError(f"host link {attachment.link} is {'down' if port else 'missing'}")
        if port.master != bridge.index:
            raise CheckError(f"host link {attachment.link} is no port of bridge {bridge.name}")
        held = {a.address for a in rtnl.addresses(nl, bridge.index)}
        for lease in attachment.leases:
            if allocator.gateway(lease.block) not in held:
                raise CheckError(f"bridge {bridge.name} lacks the gateway {allocator.gateway(lease.block)}")
        with netns.netlink_in(netns_fd) as inside:
            _check_pod(inside, attachment, wired, port.index)

    def unwire(self, attachment: Attachment) -> None:
        """Delete the host's end; the pod's end goes with it."""
        links.delete(links.host(), attachment.link)


def _bridge(view: View) -> frozenset[Bridge]:
    if not view.blocks:
        return frozenset()
    first = allocator.gateway(view.blocks[0])
    addresses = (ipaddress.ip_interface((allocator.gateway(b), b.prefixlen)) for b in view.blocks)
    mtu = view.network.mtu or _underlay_mtu(view)
    return frozenset({Bridge(view.network.bridge, mac_for(first), mtu, frozenset(addresses))})


def _underlay_mtu(view: View) -> int:
    """The MTU of the interface that holds the node's address, 1500 bytes where none does."""
    me = view.snapshot.nodes.get(view.node)
    mine = me.addresses if me else ()
    return next((local.mtu for local in view.local if local.interface.ip in mine), 1500)


def _masquerade(view: View) -> Masquerade:
    """From our pods to whatever is neither a pod nor a node."""
    snapshot = view.snapshot
    exempt: set[Subnet] = {pool.cidr for pool in snapshot.pools.values()}
    exempt |= {block.cidr for block in snapshot.blocks.values()}
    for node in snapshot.nodes.values():
        exempt.update(node.blocks)
        exempt.update(ipaddress.ip_network(address) for address in node.addresses)
    if view.network.subnet:
        exempt.add(view.network.subnet)
    return Masquerade(frozenset(view.blocks), frozenset(exempt))


def _peer_routes(view: View) -> Iterator[Route | Problem]:
    """A route for each block of each peer, or what hinders it; of two owners the first by name has it."""
    owner: dict[Subnet, str] = dict.fromkeys(view.blocks, view.node)
    for peer in sorted(view.snapshot.nodes.values(), key=lambda n: n.name):
        if peer.name == view.node:
            continue
        for block in _blocks_of(view, peer):
            if block in owner:
                yield Problem(
                    f"node {peer.name}",
                    f"block {block} is that of node {owner[block]} too",
                    "give each node podCIDRs of its own; no route is set for the second",
                )
                continue
            owner[block] = peer.name
            yield _peer_route(view, peer, block)


def _blocks_of(view: View, peer: Node) -> list[Subnet]:
    claimed = (b.cidr for b in view.snapshot.blocks.values() if b.node == peer.name)
    both = dict.fromkeys((*peer.blocks, *claimed))  # a block may be in its Node and claimed
    return [block for block in both if blocks.within(block, view.network.subnet)]


def _peer_route(view: View, peer: Node, block: Subnet) -> Route | Problem:
    where = f"node {peer.name}"
    for mine in view.blocks:
        if blocks.overlaps(block, mine):
            return Problem(where, f"block {block} overlaps this node's {mine}", "give it podCIDRs of its own")
    for local in view.local:
        if blocks.overlaps(block, local.interface.network):
            return Problem(
                where,
                f"block {block} overlaps {local.interface} of this node's {local.device}",
                "give it podCIDRs that no network of the nodes uses",
            )
    addresses = [a for a in peer.addresses if a.version == block.version]
    if not addresses:
        return Problem(where, f"has no IPv{block.version} InternalIP", "kubelet's --node-ip sets it")
    for address in addresses:
        for local in view.local:
            if address == local.interface.ip:
                return Problem(where, f"has this node's own address {address}", "give it one of its own")
            if address in local.interface.network:
                return Route(block, address, local.device)
    return Problem(
        where,
        f"{addresses[0]} is not on-link, so host-gw can't reach {block}",
        "put the nodes on one subnet, or use the mode vxlan or ipip",
    )


def _host_mac(attachment: Attachment) -> str:
    return f"ee:{hashlib.sha256(attachment.link.encode()).digest()[:5].hex(':')}"


def _alias(attachment: Attachment) -> str:
    """Tells a person which pod a link is of, and us that it is ours."""
    parts = (ALIAS, attachment.network.name, attachment.container_id, attachment.ifname, attachment.pod)
    return " ".join(parts).strip()[:ALIAS_LIMIT]


def _pod_routes(
    attachment: Attachment, extra: tuple[ExtraRoute, ...]
) -> tuple[list[ExtraRoute], list[ExtraRoute]]:
    """The pod's routes: those of the netconf, and the default ones that go without saying."""
    gateways = {lease.address.version: allocator.gateway(lease.block) for lease in attachment.leases}
    wanted = [
        ExtraRoute(route.dst, route.gateway or gateways[route.dst.version])
        for route in extra
        if route.dst.version in gateways
    ]
    named = {route.dst for route in wanted}
    return wanted, [ExtraRoute(DEFAULT[v], g) for v, g in gateways.items() if DEFAULT[v] not in named]


def _configure(inside: Netlink, attachment: Attachment, routes: tuple[ExtraRoute, ...]) -> list[ExtraRoute]:
    end = rtnl.link(inside, attachment.ifname)
    if end is None:
        raise NodeNotReadyError(f"{attachment.ifname} has vanished from the pod")
    wanted, default = _pod_routes(attachment, routes)
    steps = [
        rtnl.link_up(1),  # lo: else a pod can't reach its own address
        rtnl.link_up(end.index),
        *(rtnl.add_address(end.index, lease.address, lease.block.prefixlen) for lease in attachment.leases),
        *(rtnl.add_route(KernelRoute(r.dst, r.gateway, end.index)) for r in wanted + default),
    ]
    errors = inside.batch(steps)
    must, may = errors[: len(steps) - len(default)], errors[len(steps) - len(default) :]
    for error in must + [e for e in may if e and e.errno != errno.EEXIST]:
        if error:
            raise error
    # the default route of an earlier interface of the pod stays in force
    return wanted + [route for route, error in zip(default, may, strict=True) if error is None]


def _check_pod(inside: Netlink, attachment: Attachment, wired: Wired, peer: int) -> None:
    name = attachment.ifname
    end = rtnl.link(inside, name)
    if end is None or not end.up:
        raise CheckError(f"{name} in the pod is {'down' if end else 'missing'}")
    if end.mac != attachment.mac:
        raise CheckError(f"{name} in the pod has MAC {end.mac}, not {attachment.mac}")
    if end.peer != peer:
        raise CheckError(f"{name} in the pod is not the other end of {attachment.link}")
    held = {(a.address, a.prefix) for a in rtnl.addresses(inside, end.index)}
    for lease in attachment.leases:
        if (lease.address, lease.block.prefixlen) not in held:
            raise CheckError(f"{name} in the pod lacks address {lease.address}/{lease.block.prefixlen}")
    present = {route for version in (4, 6) for route in rtnl.routes(inside, version)}
    for route in wired["routes"]:
        wanted = KernelRoute(ipaddress.ip_network(route["dst"]), ipaddress.ip_address(route["gw"]), end.index)
        if wanted not in present:
            raise CheckError(f"the pod lacks route {wanted.dst} via {wanted.gateway}")
