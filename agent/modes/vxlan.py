"""vxlan: pods with a /32 each; eBPF programs carry packets between them, on a node and through a tunnel.

With the backend `kernel`, the stack and the kernel's own vxlan do.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from agent.datapath import bpf, links, overlay, rtnl, tc, tunnel
from agent.datapath.bpf import Loaded
from agent.datapath.overlay import Endpoint
from agent.datapath.rtnl import Link
from agent.datapath.state import TUNNEL, NodeState, Overlay, Route
from agent.ipam import allocator
from agent.ipam.attachment import Attachment
from agent.model import EBPF, KERNEL, VXLAN, Address
from agent.modes import ways, wiring
from agent.modes.base import AddressTakenError, CheckError, NodeNotReadyError, View, Wired
from agent.modes.ways import Owners
from agent.netconf import ExtraRoute

OVERHEAD = 50  # bytes of outer Ethernet (the inner one), IPv4, UDP and VXLAN headers
# Of a node's own blocks, what is no pod's goes into the tunnel's device, to be dropped and counted there; but a
# bridge of another mode has a route for the same block, and comes first.
LAST = 4096


class Vxlan:
    """The mode `vxlan`."""

    def desired(self, view: View) -> NodeState:
        """A tunnel, a route into it for each block of the cluster, and the node of each block."""
        owners = ways.owners(view)
        if not owners.node:
            return NodeState(problems=owners.problems)
        return NodeState(
            overlay=Overlay(
                TUNNEL,
                view.network.vni,
                view.network.port,
                view.network.mtu or ways.underlay_mtu(view) - OVERHEAD,
                owners.node,
                frozenset(IPv4Address(int(allocator.gateway(block))) for block in owners.own),
                frozenset([*owners.here.items(), *owners.by(VXLAN).items()]),
                _senders(view),
                view.network.vxlan_backend,
            ),
            routes=_routes(view, owners) | owners.plain,
            # nodes are no exception: a network may drop what nodes send from pods' addresses
            masquerade=ways.masquerade(view, nodes=False),
            forwarding=frozenset({4}),
            problems=owners.problems,
            crossing=ways.crossing(view, TUNNEL),
        )

    def wire(self, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]) -> Wired:
        """A veth pair with programs at the host's end, known to them, and routes and neighbours at both ends."""
        nl, (loaded, device) = links.host(), _ready(attachment)
        address, mtu, host_mac = (
            wiring.routed_address(attachment),
            attachment.network.mtu or device.mtu,
            wiring.host_mac(attachment),
        )
        if loaded:
            _check_free(loaded, address, host_mac)
        nl.request(wiring.create_veth(attachment, netns_fd, mtu))
        port = wiring.host_end(attachment)
        if loaded:
            tc.attach(nl, port.index, tunnel.pod_programs(loaded))
            overlay.put_pod(loaded.maps, address, Endpoint(port.index, attachment.mac, host_mac))
        nl.request(
            rtnl.set_up(attachment.link, wiring.alias(attachment)),
            rtnl.add_neighbour(port.index, address, attachment.mac),
            rtnl.add_route(wiring.host_route(address, port.index)),
        )
        return wiring.routed(attachment, mtu, wiring.wire_routed_end(netns_fd, attachment, routes))

    def check(self, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Device, both ends, programs and what they know, addresses and routes are as `wire` made them."""
        try:
            loaded, _device = _ready(attachment)
        except NodeNotReadyError as error:
            raise CheckError(str(error)) from error
        wiring.check_up("device", TUNNEL)
        port = wiring.check_up("host link", attachment.link)
        if loaded:
            _check_programs(loaded, attachment, port.index)
        wiring.check_routed(attachment, wired, port, netns_fd)

    def unwire(self, attachment: Attachment) -> None:
        """Forget the pod and delete the host's end; all else goes with it."""
        known = bpf.maps()
        for lease in attachment.leases:
            if known and isinstance(lease.address, IPv4Address):
                overlay.remove_pod(known, lease.address, wiring.host_mac(attachment))
        links.delete(links.host(), attachment.link)


def _ready(attachment: Attachment) -> tuple[Loaded | None, Link]:
    """Programs, for the backend that has some, and device, which the node path makes.

    Those of an earlier agent do while the datastore is away.
    """
    device = wiring.needed("device", TUNNEL)
    if attachment.network.vxlan_backend != EBPF:
        return None, device
    loaded = bpf.current() or bpf.adopt()
    if loaded is None:
        raise NodeNotReadyError("the eBPF programs are not loaded")
    return loaded, device


def _check_free(loaded: Loaded, address: IPv4Address, host_mac: str) -> None:
    """Raises AddressTakenError where the programs know another pod with the address, whose link is there."""
    known = overlay.pod(loaded.maps, address)
    if known is None or known.host_mac == host_mac:
        return
    there = rtnl.link_at(links.host(), known.device)
    if there and there.mac == known.host_mac:
        raise AddressTakenError(address, there.name)


def _check_programs(loaded: Loaded, attachment: Attachment, index: int) -> None:
    for hook, program in tunnel.pod_programs(loaded).items():
        if not tc.attached(links.host(), index, hook):
            raise CheckError(f"host link {attachment.link} lacks the program {program.name}")
    address = wiring.routed_address(attachment)
    if overlay.pod(loaded.maps, address) != Endpoint(index, attachment.mac, wiring.host_mac(attachment)):
        raise CheckError(f"the programs don't know {address} as that of {attachment.link}")


def _routes(view: View, owners: Owners) -> frozenset[Route]:
    """Blocks that are in the tunnel; to the kernel each node is a next hop of its own there."""
    plain = view.network.vxlan_backend == KERNEL
    peers = (Route(b, node if plain else None, TUNNEL) for b, node in owners.by(VXLAN).items())
    return frozenset((*peers, *(Route(block, None, TUNNEL, LAST) for block in owners.own)))


def _senders(view: View) -> frozenset[IPv4Address]:
    addresses: list[Address] = [a for node in view.snapshot.nodes.values() for a in node.addresses]
    return frozenset(a for a in addresses if isinstance(a, IPv4Address))
