"""ipvlan: pods share the MAC of the node's interface, for networks that allow a machine one only.

l2: pods answer ARP themselves. l3s: the node routes for them and answers ARP. l3: the node routes for them, and
nobody answers ARP, so they are on a subnet of their own, of which each node has a block, as in host-gw.
"""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import replace

from agent.ip import Address
from agent.ipam import blocks
from agent.ipam.attachments.attachment import Attachment
from agent.kernel import arp, ip_links, ip_routes, neighbours, netlink
from agent.model.marks import LINK_PREFIX
from agent.model.network import ExtraRoute
from agent.model.problem import Problem
from agent.modes import masquerade, peer_routes, routable_blocks
from agent.modes.base import ModeContext, Wired
from agent.modes.parent.options import IPVLAN, L3, IpvlanOptions
from agent.modes.parent.subinterface import DEFAULT, PodRoute, SubinterfaceMode, link_mode, only_parents
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import PodPort
from agent.objects.state import NodeState, Route

L3S = "l3s"


class Ipvlan(SubinterfaceMode):
    """The mode `ipvlan`."""

    kind = IPVLAN
    options = IpvlanOptions

    def desired(self, view: ModeContext) -> NodeState:
        """Return the state of a subinterface; for l3 also routes to peers' blocks, and masquerade, as host-gw."""
        state = super().desired(view)
        if link_mode(view.network) != L3 or not state.uplinks:
            return state
        # only single pods are routed here: no block leads packets of the nodes astray
        settled = (
            routable_blocks.settle(view) if not view.network.has_manual_range else routable_blocks.Settled(view)
        )
        problems = {_no_arp(view)} if _on_the_nodes_subnet(view) else set(settled.problems)
        routes: set[Route] = set()
        to = peer_routes.PeerPaths(view)
        for found in () if view.network.has_manual_range else peer_routes.peer_subnets(view):
            route = found if isinstance(found, Problem) else to.route(*found)
            if isinstance(route, Route):
                routes.add(route)
            else:
                problems.add(route)
        return replace(
            state,
            routes=frozenset(routes),
            masquerade=replace(masquerade.desired(view, nodes=True), node_snats=state.masquerade.node_snats),
            problems=frozenset(problems),
            refused=settled.refused,
        )

    def mac(self, attachment: Attachment) -> str | None:
        """Return None: the subinterface has the parent's MAC. Raises CniError 7 for one that was asked for."""
        only_parents(attachment)
        return None

    def interface(self, attachment: Attachment) -> ipaddress.IPv4Interface:
        """Return the subinterface's address within its subnet; in l3 as a /32, as nobody is on the pod's link."""
        whole = super().interface(attachment)
        return ipaddress.IPv4Interface((whole.ip, 32)) if link_mode(attachment.network) == L3 else whole

    def default(self, attachment: Attachment) -> PodRoute:
        """Return the default route; in l3 the subinterface itself leads into the node's routing."""
        return PodRoute(DEFAULT, None) if link_mode(attachment.network) == L3 else super().default(attachment)

    def port(self, attachment: Attachment) -> PodPort:
        """Return the port of any subinterface; for l3s the node answers ARP."""
        port = super().port(attachment)
        if link_mode(attachment.network) != L3S or not attachment.uplink:
            return port
        return replace(port, proxy=(attachment.uplink.device, attachment.leases[0].address))

    def wire(
        self, host: HostKernel, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]
    ) -> Wired:
        """Wire the pod as any subinterface; for l3s the node announces the pod."""
        wired = super().wire(host, attachment, netns_fd, routes)
        if link_mode(attachment.network) == L3S and attachment.uplink:
            nl, device = netlink.host(), attachment.uplink.device
            if parent := ip_links.link(nl, device):
                address = attachment.leases[0].address
                arp.announce(host.reaper, device, parent.mac, address)
        return wired

    def unwire(self, host: HostKernel, attachment: Attachment) -> None:
        """Take ARP away first, so that nobody is led to a pod that is gone; another pod's stays."""
        if link_mode(attachment.network) == L3S and attachment.uplink:
            nl = netlink.host()
            if parent := ip_links.link(nl, attachment.uplink.device):
                mine = (
                    lease.address for lease in attachment.leases if not _is_anothers(lease.address, attachment)
                )
                steps = [neighbours.delete_proxy(parent.index, address) for address in mine]
                for error in nl.batch(steps):
                    if error and error.errno != errno.ENOENT:
                        raise error
        super().unwire(host, attachment)


def _is_anothers(address: Address, attachment: Attachment) -> bool:
    """Return whether the node's route to the address leads to another pod: then an ADD of this one has failed."""
    hop = ip_routes.next_hop(netlink.host(), address)
    there = ip_links.link_at(netlink.host(), hop[0]) if hop else None
    return bool(there and there.name.startswith(LINK_PREFIX) and there.name != attachment.link)


def _on_the_nodes_subnet(view: ModeContext) -> bool:
    subnet = view.network.subnet
    return any(subnet and blocks.overlaps(subnet, local.interface.network) for local in view.local)


def _no_arp(view: ModeContext) -> Problem:
    return Problem(
        f"network {view.network.name}",
        f"in linkMode l3 nobody answers ARP for pods of {view.network.subnet}, the nodes' own subnet",
        "set linkMode to l2 or l3s, or give pods a subnet of their own",
    )
