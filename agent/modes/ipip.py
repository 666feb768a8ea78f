"""ipip: pods with a /32 each, blocks by BGP, and packets between nodes inside of ipip ones where need be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from agent.datapath import links, rtnl
from agent.datapath import state as kernel
from agent.datapath.bird.values import Tunnel
from agent.datapath.rtnl import IPV4_DEVCONF_PROXY_ARP, Link
from agent.datapath.state import IPIP, LocalAddress, NodeState
from agent.ipam import allocator
from agent.ipam.attachments import Attachment
from agent.model import Node, Problem, Subnet
from agent.modes import bgp, common
from agent.modes.base import CheckError, NodeNotReadyError, View, Wired
from agent.modes.bgp import Encapsulate
from agent.netconf import ExtraRoute

OVERHEAD = 20  # bytes of the outer IPv4 header


class Ipip:
    """The mode `ipip`."""

    def desired(self, view: View) -> NodeState:
        """BIRD with a session to each node or reflector, and what puts outer headers on and takes them off."""
        own = [block for block in view.blocks if isinstance(block, IPv4Network)]
        problems = {_no_ipv6(f"block {block}") for block in view.blocks if block.version == 6}
        here = _here(view)
        if not own or not here:
            missing = {_no_address(view.node)} if own else set()
            return NodeState(problems=frozenset(problems | missing))
        guests = [guest for guest in view.guests if isinstance(guest, IPv4Network)]
        owners = dict.fromkeys([*own, *guests], here.node)
        for found in common.peers(view):
            owner = found if isinstance(found, Problem) else _owner(*found)
            if isinstance(owner, Problem):
                problems.add(owner)
            else:
                owners[owner[0]] = owner[1]
        ipip = here.ipip(frozenset(owners.items()), own)
        source = min(ipip.addresses, default=None)
        plan = bgp.plan(view, view.bgp, here.tunnel, here.encapsulate, source)
        return NodeState(
            ipip=ipip,
            # while the node's address is on no interface, BIRD goes on as it did
            bird=plan.config if here.local else None,
            # nodes are an exception only where packets of pods may be seen between them
            masquerade=common.masquerade(view, nodes=here.encapsulate is Encapsulate.NEVER),
            forwarding=frozenset({4}),
            problems=frozenset(problems | plan.problems | here.problems()),
        )

    def wire(self, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]) -> Wired:
        """A veth pair whose host's end answers ARP for all, a host route, and a way by 169.254.1.1 in the pod."""
        nl = links.host()
        device = rtnl.link(nl, IPIP)
        if device is None:
            raise NodeNotReadyError(f"device {IPIP} is not there")
        mtu = attachment.network.mtu or device.mtu
        nl.request(
            rtnl.create_veth(
                attachment.link,
                common.host_mac(attachment),
                attachment.ifname,
                attachment.mac,
                peer_netns=netns_fd,
                master=0,
                mtu=mtu,
            ),
            rtnl.set_up(attachment.link, common.alias(attachment), {IPV4_DEVCONF_PROXY_ARP: 1}),
        )
        port = rtnl.link(nl, attachment.link)
        if port is None:
            raise NodeNotReadyError(f"{attachment.link} has vanished")
        address = common.routed_address(attachment)
        # a neighbour for good: the pod's MAC is known, and nobody waits for ARP
        nl.request(
            rtnl.add_neighbour(port.index, address, attachment.mac),
            rtnl.add_route(common.host_route(address, port.index)),
        )
        return common.routed(attachment, mtu, common.wire_routed_end(netns_fd, attachment, routes))

    def check(self, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Device, both ends of the veth pair, addresses and routes are as `wire` made them."""
        _is_up("device", IPIP)
        common.check_routed(attachment, wired, _is_up("host link", attachment.link), netns_fd)

    def unwire(self, attachment: Attachment) -> None:
        """Delete the host's end; all else goes with it."""
        links.delete(links.host(), attachment.link)


@dataclass(frozen=True, slots=True)
class _Here:
    """This node on the underlay, and how it encapsulates."""

    view: View
    node: IPv4Address
    local: LocalAddress | None
    """The interface that has the node's address, while there is one."""
    encapsulate: Encapsulate

    @property
    def device(self) -> bool:
        """Whether an ipip device does it."""
        return self.view.underlay.ipip and self.encapsulate is not Encapsulate.NEVER

    @property
    def far(self) -> dict[str, IPv4Address]:
        """The nodes of other subnets."""
        mine = self.local.interface.network if self.local else None
        return {name: a for name, a in self.peers.items() if mine is None or a not in mine}

    @property
    def peers(self) -> dict[str, IPv4Address]:
        """The addresses of other nodes."""
        nodes = (node for node in self.view.snapshot.nodes.values() if node.name != self.view.node)
        return {node.name: address for node in nodes if (address := _address(node))}

    @property
    def mtu(self) -> int:
        """Bytes of an inner packet."""
        overhead = 0 if self.encapsulate is Encapsulate.NEVER else OVERHEAD
        return self.view.network.mtu or common.underlay_mtu(self.view) - overhead

    @property
    def tunnel(self) -> Tunnel:
        """The way to other nodes: into the device, or to the underlay's next hop, where eBPF finds the packets."""
        if self.device or not self.local:
            return Tunnel(IPIP)
        # always a gateway of a kind, as near nodes are reached by themselves
        return Tunnel(self.local.device, self._gateway, self.mtu)

    @property
    def _gateway(self) -> IPv4Address | None:
        underlay = self.view.underlay
        return underlay.gateway if self.local and underlay.device == self.local.device else None

    def ipip(self, blocks: frozenset[tuple[IPv4Network, IPv4Address]], own: list[IPv4Network]) -> kernel.Ipip:
        """What there must be on this node."""
        nodes = frozenset({self.node, *self.peers.values()})
        state = kernel.Ipip(self.node, self.mtu, device=self.device, blocks=blocks, nodes=nodes)
        if self.encapsulate is Encapsulate.NEVER:
            return state
        through = self.peers if self.encapsulate is Encapsulate.ALWAYS else self.far
        return replace(
            state,
            underlay=None if self.device else self.local.device if self.local else "",
            addresses=frozenset(IPv4Address(int(allocator.gateway(block))) for block in own),
            tunnelled=frozenset(through.values()),
        )

    def problems(self) -> frozenset[Problem]:
        """Nodes that eBPF can't reach, as there is no way to them by the device where it is."""
        if self.device or not self.local or self._gateway or self.encapsulate is Encapsulate.NEVER:
            return frozenset()
        what = f"there is no gateway to it by {self.local.device}"
        remedy = "give this node a route to the other subnet, by the interface that has its InternalIP"
        return frozenset(Problem(f"node {name} ({address})", what, remedy) for name, address in self.far.items())


def _is_up(what: str, name: str) -> Link:
    found = rtnl.link(links.host(), name)
    if found is None or not found.up:
        raise CheckError(f"{what} {name} is {'down' if found else 'missing'}")
    return found


def _here(view: View) -> _Here | None:
    me = view.snapshot.nodes.get(view.node)
    address = _address(me) if me else None
    if not address:
        return None
    local = next((entry for entry in view.local if entry.interface.ip == address), None)
    return _Here(view, address, local, Encapsulate(view.network.encapsulate))


def _address(node: Node) -> IPv4Address | None:
    return next((address for address in node.addresses if isinstance(address, IPv4Address)), None)


def _owner(peer: Node, block: Subnet) -> tuple[IPv4Network, IPv4Address] | Problem:
    address = _address(peer)
    if not isinstance(block, IPv4Network):
        return _no_ipv6(f"block {block} of node {peer.name}")
    return (block, address) if address else _no_address(peer.name)


def _no_address(node: str) -> Problem:
    return Problem(f"node {node}", "has no IPv4 InternalIP", "kubelet's --node-ip sets it")


def _no_ipv6(where: str) -> Problem:
    return Problem(where, "is IPv6, which ipip does not carry", "use host-gw for IPv6")
