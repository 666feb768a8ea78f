"""ipip: pods with a /32 each, blocks by BGP, and packets between nodes inside of ipip ones where needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from agent.ipam import allocator
from agent.ipam.attachments.attachment import Attachment
from agent.kernel import netlink
from agent.kernel.ip_links import IPV4_DEVCONF_PROXY_ARP
from agent.model.network import ExtraRoute, Network
from agent.model.problem import Problem
from agent.modes import masquerade, mode_choice, peer_routes, routable_blocks, underlay, veth
from agent.modes.base import AgentContext, ConfFields, Mode, ModeContext, ModeParts, Wired
from agent.modes.ipip import agent_options, bgp, metrics
from agent.modes.ipip.agent_options import AGENT_OPTIONS
from agent.modes.ipip.bgp import Encapsulate
from agent.modes.ipip.bird.daemon import Files
from agent.modes.ipip.bird.node_object import Bird
from agent.modes.ipip.bird.options import OptionsFile
from agent.modes.ipip.bird.supervisor import Supervisor, retire
from agent.modes.ipip.bird.types import METRIC, BirdError, BirdTimes, Tunnel
from agent.modes.ipip.device import IpipDevice
from agent.modes.ipip.marks import IPIP_DEVICE
from agent.modes.ipip.options import IPIP, IpipOptions
from agent.modes.ipip.state import IpipState
from agent.modes.peer_routes import BlockEndpoints
from agent.modes.underlay import Near
from agent.objects.base import NodeObject
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import PodPort
from agent.objects.state import LocalAddress, NodeState, Route
from agent.runtime.threads import Part

OVERHEAD = 20  # bytes of the outer IPv4 header
SPARE = METRIC + 1  # metric of routes that stand in for BIRD's


class Ipip(Mode):
    """The mode `ipip`."""

    options = IpipOptions
    agent_options = AGENT_OPTIONS
    tunnels = True
    needs_underlay = True

    def device(self, network: Network) -> str:
        """Return the tunnels' device, which a node has once."""
        return IPIP_DEVICE

    def parts(self, agent: AgentContext) -> ModeParts:
        """Return BIRD with its options file, and the tunnels' device."""
        conf, board = agent.conf, agent.board
        bird = Supervisor(conf.run_dir / "bird", board.part("bird"), times=BirdTimes(retire=conf.grace.daemon))
        file, note = agent_options.bgp_file(conf), conf.run_dir / "bgp-options"
        options = OptionsFile(file, board.part("bgp-options").report_error, note)
        device = IpipDevice(agent_options.encapsulator(conf))
        polled: dict[str, Part] = {"bgp-options": options} if file else {}
        return ModeParts(
            objects=(device, Bird(bird.want, options)),
            threads=lambda _view: {"bird": bird, **polled},
            wake_on=(options.said,),
            report=lambda: {"bgp": metrics.bgp(bird.status.get())},
            summary=lambda: metrics.summary(bird.status.get()),
            metrics=lambda: metrics.families(bird.status.get(), partial(device.counted, agent.host)),
        )

    def uninstall(self, run_dir: Path) -> Iterator[str]:
        """End BIRD and remove its routes. Raises OSError, also where something else holds BIRD's socket."""
        try:
            ran, routes = retire(Files(run_dir / "bird"))
        except BirdError as error:
            raise OSError(str(error)) from error
        if ran or routes:
            yield f"BIRD, {routes} routes of it"

    def parse_options(self, given: ConfFields) -> IpipOptions:
        """Return the options that a netconf gives. Raises CniError 7."""
        return IpipOptions.parse(given.top)

    def node_objects(self) -> tuple[NodeObject, ...]:
        """Return the tunnels' device."""
        return (IpipDevice(),)

    def desired(self, view: ModeContext) -> NodeState:
        """BIRD with a session to each node or reflector, and what puts outer headers on and takes them off."""
        settled = routable_blocks.settle(view)
        view = settled.view
        endpoints = peer_routes.block_endpoints(view)
        problems = endpoints.problems | settled.problems
        if not endpoints.own_endpoint:
            return NodeState(problems=problems, refused=settled.refused)
        here = _here(view, endpoints.own_endpoint)
        ipip = here.ipip(endpoints)
        source = min(ipip.addresses, default=None)
        plan = bgp.plan(view, here.tunnel, here.encapsulate, source)
        # while the node's address is on no interface, BIRD goes on as it did
        bird = {plan.bird} if plan.bird and here.local else set()
        return NodeState(
            sections=frozenset({ipip, *bird}),
            # nodes are an exception only where packets of pods may be seen between them
            masquerade=masquerade.desired(view, nodes=here.encapsulate is Encapsulate.NEVER),
            routes=endpoints.plain | (here.spare(endpoints) if mode_choice.is_migrating(view) else frozenset()),
            loose_rp_filter_on=mode_choice.loose_rp_filter_on(view, IPIP_DEVICE),
            guards=frozenset({(IPIP_DEVICE, view.network.spoof_check)}),
            forwarding=frozenset({4}),
            problems=problems | plan.problems | here.problems(),
            refused=settled.refused,
        )

    def port(self, attachment: Attachment) -> PodPort:
        """A link that answers ARP for all, with a route to the pod."""
        port = veth.routed_port(attachment)
        return replace(port, ipv4=(*port.ipv4, (IPV4_DEVCONF_PROXY_ARP, 1)))

    def wire(
        self, host: HostKernel, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]
    ) -> Wired:
        """A veth pair whose host's end answers ARP for all, a host route, and a way by 169.254.1.1 in the pod."""
        port = self.port(attachment)
        mtu = attachment.network.mtu or veth.needed("device", IPIP_DEVICE).mtu
        netlink.host().request(veth.create_veth(attachment, netns_fd, mtu))
        veth.make_port(host, port)
        return veth.routed(attachment, mtu, veth.wire_routed_end(host, netns_fd, attachment, routes))

    def check(self, host: HostKernel, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Device, both ends of the veth pair, addresses and routes are as `wire` made them."""
        veth.check_up("device", IPIP_DEVICE)
        veth.check_routed(attachment, wired, veth.check_port(host, self.port(attachment)), netns_fd)

    def unwire(self, host: HostKernel, attachment: Attachment) -> None:
        """Delete the host's end; all else goes with it."""
        veth.remove_port(host, attachment)


@dataclass(frozen=True, slots=True)
class _Here:
    """This node on the underlay, and how it encapsulates."""

    view: ModeContext
    node: IPv4Address
    local: LocalAddress | None
    """The interface that has the node's address, while there is one."""
    encapsulate: Encapsulate
    peers: Mapping[str, IPv4Address]
    """The ends of other nodes, by name."""
    near: Near

    @property
    def device(self) -> bool:
        """Whether an ipip device does it."""
        return self.view.underlay.by_device and self.encapsulate is not Encapsulate.NEVER

    @property
    def far(self) -> dict[str, IPv4Address]:
        """The nodes of other subnets."""
        mine = self.local.interface.network if self.local else None
        return {name: a for name, a in self.peers.items() if mine is None or a not in mine}

    @property
    def through(self) -> dict[str, IPv4Address]:
        """The nodes that packets go to in tunnels."""
        nodes: Mapping[str, IPv4Address] = {} if self.encapsulate is Encapsulate.NEVER else self.far
        nodes = self.peers if self.encapsulate is Encapsulate.ALWAYS else nodes
        known = self.view.snapshot.nodes
        return {
            name: address
            for name, address in nodes.items()
            if mode_choice.mode_to_peer(self.view, known[name]) == IPIP
        }

    @property
    def mtu(self) -> int:
        """Bytes of an inner packet."""
        overhead = 0 if self.encapsulate is Encapsulate.NEVER else OVERHEAD
        return self.view.network.mtu or underlay.mtu(self.view) - overhead

    @property
    def tunnel(self) -> Tunnel:
        """The way to other nodes: into the device, or to the underlay's next hop, where eBPF finds the packets."""
        if self.device or not self.local:
            return Tunnel(IPIP_DEVICE)
        # a gateway or none: near nodes are reached without one
        return Tunnel(self.local.device, self._gateway, self.mtu)

    @property
    def _gateway(self) -> IPv4Address | None:
        underlay = self.view.underlay
        return underlay.gateway if self.local and underlay.device == self.local.device else None

    def ipip(self, endpoints: BlockEndpoints) -> IpipState:
        """Return the state of the mode ipip that there must be on this node."""
        nodes = underlay.tunnel_peers(self.view) | {self.node}
        blocks = frozenset(endpoints.blocks.items())
        state = IpipState(self.node, self.mtu, device=self.device, blocks=blocks, nodes=nodes)
        if self.encapsulate is Encapsulate.NEVER:
            return state
        return replace(
            state,
            underlay=None if self.device else self.local.device if self.local else "",
            addresses=frozenset(IPv4Address(int(allocator.gateway(block))) for block in endpoints.own),
            tunnelled=frozenset(self.through.values()),
        )

    def spare(self, endpoints: BlockEndpoints) -> frozenset[Route]:
        """The routes that BIRD makes, for as long as it has not: while modes change, sessions begin."""
        if not self.local:
            return frozenset()
        tunnelled, near = set(self.through.values()), set(self.peers.values()) - set(self.far.values())
        routes = set()
        for block, node in endpoints.by(IPIP).items():
            if node in tunnelled and self.device:
                routes.add(Route(block, node, IPIP_DEVICE, SPARE, tunnel=True))
            elif gateway := node if node in near else self._gateway:
                mtu, by = self.mtu if node in tunnelled else None, self.near.local(gateway) or self.local
                routes.add(Route(block, gateway, by.device, SPARE, mtu))
        return frozenset(routes)

    def problems(self) -> frozenset[Problem]:
        """Nodes that eBPF can't reach, as there is no way to them by the device where it is."""
        if self.device or not self.local or self._gateway or self.encapsulate is Encapsulate.NEVER:
            return frozenset()
        what = f"there is no gateway to it by {self.local.device}"
        remedy = "give this node a route to the other subnet, by the interface that has its InternalIP"
        return frozenset(Problem(f"node {name} ({address})", what, remedy) for name, address in self.far.items())


def _here(view: ModeContext, address: IPv4Address) -> _Here:
    known = underlay.chosen(view)
    to = peer_routes.PeerPaths(view, known)
    others = (node for node in view.snapshot.nodes.values() if node.name != view.node)
    ends = {node.name: end for node in others if not isinstance(end := to.end(node), Problem)}
    local, near = underlay.own(view, known)[1], underlay.Near(view, known)
    return _Here(view, address, local, Encapsulate(IpipOptions.of(view.network).encapsulate), ends, near)
