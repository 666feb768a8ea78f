"""vxlan: pods with a /32 each; eBPF programs carry packets between them, on a node and through a tunnel.

With the backend `kernel`, the stack and the kernel's own vxlan do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from agent.ipam import allocator
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.blocks import is_single
from agent.kernel import ip_links, netlink
from agent.kernel.bpf.map_entries import Count
from agent.kernel.ip_links import Link
from agent.model.network import ExtraRoute, ModeOptions, Network
from agent.modes import masquerade, mode_choice, peer_routes, routable_blocks, underlay, veth
from agent.modes.base import (
    AddressTakenError,
    AgentContext,
    CheckError,
    ConfFields,
    Mode,
    ModeContext,
    ModeParts,
    NodeNotReadyError,
    Wired,
)
from agent.modes.packet_monitor import PacketMonitor
from agent.modes.peer_routes import BlockEndpoints
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan import pod_programs
from agent.modes.vxlan.checksum_check import ChecksumCheck
from agent.modes.vxlan.device import VxlanDevice
from agent.modes.vxlan.marks import VXLAN_DEVICE
from agent.modes.vxlan.options import EBPF, KERNEL, VXLAN, VxlanOptions
from agent.modes.vxlan.state import VxlanState
from agent.objects.base import NodeObject
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import PodPort
from agent.objects.state import NodeState, Route

OVERHEAD = 50  # bytes of outer Ethernet (the inner one), IPv4, UDP and VXLAN headers
# Of a node's own blocks, what is no pod's goes into the tunnel's device, to be dropped and counted there; but a
# bridge of another mode has a route for the same block, and comes first.
LAST = 4096


class Vxlan(Mode):
    """The mode `vxlan`."""

    options = VxlanOptions
    tunnels = True

    def device(self, network: Network) -> str:
        """Return the tunnel's device, which a node has once."""
        return VXLAN_DEVICE

    def packet_counts(self, host: HostKernel) -> Mapping[str, Count]:
        """Return what became of packets in the programs, by reason; nothing happened where there are none."""
        maps = host.bpf.maps(vxlan_maps.FAMILY)
        return vxlan_maps.counters(maps) if maps else vxlan_maps.no_counters()

    def packet_monitor(self, run_dir: Path, options: Mapping[str, type[ModeOptions]]) -> PacketMonitor:
        """Return the drops and flows that the programs report. Raises OSError where there are no programs."""
        from agent.modes.vxlan.drop_monitor import DropMonitor  # noqa: PLC0415 - no agent needs it

        return DropMonitor(run_dir, options)

    def parts(self, agent: AgentContext) -> ModeParts:
        """Return the check of checksums in the tunnel."""
        check = ChecksumCheck(agent.board.part("selftest"), agent.conf.route_protocol)
        return ModeParts(threads=lambda _view: {"selftest": check})

    def parse_options(self, given: ConfFields) -> VxlanOptions:
        """Return the options that a netconf gives. Raises CniError 7."""
        return VxlanOptions.parse(given.top)

    def node_objects(self) -> tuple[NodeObject, ...]:
        """Return the tunnel's device."""
        return (VxlanDevice(),)

    def desired(self, view: ModeContext) -> NodeState:
        """A tunnel, a route into it for each block of the cluster, and the node of each block."""
        settled = routable_blocks.settle(view)
        view = settled.view
        endpoints, options = peer_routes.block_endpoints(view), VxlanOptions.of(view.network)
        problems = endpoints.problems | settled.problems
        if not endpoints.own_endpoint:
            return NodeState(problems=problems, refused=settled.refused)
        tunnel = VxlanState(
            VXLAN_DEVICE,
            options.vni,
            options.port,
            view.network.mtu or underlay.mtu(view) - OVERHEAD,
            endpoints.own_endpoint,
            frozenset(IPv4Address(int(allocator.gateway(block))) for block in endpoints.own),
            frozenset([*endpoints.here.items(), *endpoints.by(VXLAN).items()]),
            underlay.tunnel_peers(view),
            options.vxlan_backend,
            _settled(view, endpoints),
        )
        return NodeState(
            sections=frozenset({tunnel}),
            routes=_routes(view, endpoints) | endpoints.plain,
            # nodes are no exception: a network may drop what nodes send from pods' addresses
            masquerade=masquerade.desired(view, nodes=False),
            forwarding=frozenset({4}),
            problems=problems,
            refused=settled.refused,
            loose_rp_filter_on=mode_choice.loose_rp_filter_on(view, VXLAN_DEVICE),
            guards=frozenset(
                {(VXLAN_DEVICE, view.network.spoof_check)} if options.vxlan_backend == KERNEL else ()
            ),
        )

    def port(self, attachment: Attachment) -> PodPort:
        """A link with a route to the pod, and with the backend `ebpf` the programs, which know the pod."""
        programs = VxlanOptions.of(attachment.network).vxlan_backend == EBPF
        port = veth.routed_port(attachment)
        return replace(port, guard=None, aspects=pod_programs.ASPECTS) if programs else port

    def wire(
        self, host: HostKernel, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]
    ) -> Wired:
        """A veth pair with programs at the host's end, known to them, and routes and neighbours at both ends."""
        port, device = self.port(attachment), _ready(host, attachment)
        mtu = attachment.network.mtu or device.mtu
        if VxlanOptions.of(attachment.network).vxlan_backend == EBPF:
            _check_free(host, veth.routed_address(attachment), port.mac)
        netlink.host().request(veth.create_veth(attachment, netns_fd, mtu))
        veth.make_port(host, port)
        return veth.routed(attachment, mtu, veth.wire_routed_end(host, netns_fd, attachment, routes))

    def check(self, host: HostKernel, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Device, both ends, programs and what they know, addresses and routes are as `wire` made them."""
        try:
            _ready(host, attachment)
        except NodeNotReadyError as error:
            raise CheckError(str(error)) from error
        veth.check_up("device", VXLAN_DEVICE)
        port = veth.check_port(host, self.port(attachment))
        veth.check_routed(attachment, wired, port, netns_fd)

    def forget_link(self, host: HostKernel, index: int) -> None:
        """Forget the pods that the programs know at this link. Raises OSError."""
        if known := host.bpf.maps(vxlan_maps.FAMILY):
            vxlan_maps.remove_pods_at(known, index)

    def unwire(self, host: HostKernel, attachment: Attachment) -> None:
        """Forget the pod and delete the host's end; all else goes with it."""
        known = host.bpf.maps(vxlan_maps.FAMILY)
        for lease in attachment.leases:
            if known and isinstance(lease.address, IPv4Address):
                vxlan_maps.remove_pod(known, lease.address, veth.host_mac(attachment))
        veth.remove_port(host, attachment)


def _ready(host: HostKernel, attachment: Attachment) -> Link:
    """The device, once there are the programs too, for the backend that has some: the node path makes them.

    Those of an earlier agent do while the datastore is away.
    """
    device = veth.needed("device", VXLAN_DEVICE)
    if VxlanOptions.of(attachment.network).vxlan_backend != EBPF:
        return device
    if not host.bpf.adopt(vxlan_maps.FAMILY):
        raise NodeNotReadyError("the eBPF programs are not loaded")
    return device


def _check_free(host: HostKernel, address: IPv4Address, host_mac: str) -> None:
    """Raises AddressTakenError where the programs know another pod with the address, whose link is there."""
    held = host.bpf.maps(vxlan_maps.FAMILY)
    known = vxlan_maps.pod(held, address) if held else None
    if known is None or known.host_mac == host_mac:
        return
    there = ip_links.link_at(netlink.host(), known.device)
    if there and there.mac == known.host_mac:
        raise AddressTakenError(address, there.name)


def _routes(view: ModeContext, endpoints: BlockEndpoints) -> frozenset[Route]:
    """Blocks that are in the tunnel; to the kernel each node is a next hop of its own there."""
    plain = VxlanOptions.of(view.network).vxlan_backend == KERNEL
    peers = (
        Route(b, node if plain else None, VXLAN_DEVICE, tunnel=True) for b, node in endpoints.by(VXLAN).items()
    )
    return frozenset((*peers, *(Route(block, None, VXLAN_DEVICE, LAST, tunnel=True) for block in endpoints.own)))


def _settled(view: ModeContext, endpoints: BlockEndpoints) -> frozenset[tuple[IPv4Address, IPv4Address]]:
    """Nodes that send by vxlan from no other node's blocks: each of their addresses, and the one they have here.

    A node without a tunnel may have off-block pods: `endpoints` has only their addresses. It may send packets
    of these by its tunnel a moment before this node learns that it has one.
    """
    known = underlay.chosen(view)
    elsewhere = (block for block, mode in endpoints.mode_by_block.items() if mode != VXLAN and is_single(block))
    plain = {endpoints.blocks[block] for block in elsewhere}
    return frozenset(
        (address, end)
        for name, node in view.snapshot.nodes.items()
        if isinstance(end := known.of(name, 4), IPv4Address) and end not in plain
        for address in node.addresses
        if isinstance(address, IPv4Address) and address not in known.contested
    )
