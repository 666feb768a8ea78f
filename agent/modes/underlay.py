"""This node on the network between the nodes: its own address there, and by which interface others are reached."""

from __future__ import annotations

from ipaddress import IPv4Address

from agent.ip import Address, Subnet
from agent.model.cluster import ENDS, AcceptedModes, Node
from agent.model.problem import Problem
from agent.modes import node_endpoints
from agent.modes.base import ModeContext
from agent.modes.node_endpoints import NodeEndpoints
from agent.objects.state import LocalAddress


def chosen(view: ModeContext) -> NodeEndpoints:
    """Return the address of each node of the cluster to which packets for it go."""
    return view.ends if view.ends is not None else node_endpoints.choose(view.snapshot.nodes)


def own(view: ModeContext, known: NodeEndpoints, version: int = 4) -> tuple[Address | None, LocalAddress | None]:
    """This node's end and the interface that has it; None for it while none of its InternalIPs is on one."""
    me = view.snapshot.nodes.get(view.node)
    return end(me, view.local, known, version) if me else (None, None)


def end(
    me: Node, local: tuple[LocalAddress, ...], known: NodeEndpoints, version: int = 4
) -> tuple[Address | None, LocalAddress | None]:
    """The end of a node that has these addresses, and the interface of it.

    What others choose, else its first InternalIP that is its own and on an interface, else any that is on one.
    """
    on = {entry.interface.ip: entry for entry in reversed(local)}
    common = known.of(me.name, version)
    mine = [address for address in me.addresses if address.version == version]
    order = [*([common] if common else ()), *(a for a in mine if a not in known.contested), *mine]
    found = next((address for address in order if address in on), None)
    return (found, on[found]) if found else (common, None)


def home(view: ModeContext, known: NodeEndpoints) -> LocalAddress | None:
    """The interface of the node's end, the first by the order of its InternalIPs."""
    me = view.snapshot.nodes.get(view.node)
    versions = dict.fromkeys(address.version for address in me.addresses) if me else ()
    found = (own(view, known, version)[1] for version in versions)
    return next((local for local in found if local), None)


def mtu(view: ModeContext) -> int:
    """The MTU of the interface that holds the node's address, 1500 bytes where none does."""
    local = home(view, chosen(view))
    return local.mtu if local else 1500


def tunnel_peers(view: ModeContext) -> frozenset[IPv4Address]:
    """Return where tunnels may come from: any InternalIP, as nodes that know less or more may choose another."""
    addresses = (address for node in view.snapshot.nodes.values() for address in node.addresses)
    return frozenset(address for address in addresses if isinstance(address, IPv4Address))


def announcement(me: Node | None, local: tuple[LocalAddress, ...], known: NodeEndpoints) -> AcceptedModes:
    """Return what peers have to be told of this node's addresses: its end, where they would choose another.

    So they may, whatever they do now, where it is among the addresses of another node, too.
    """
    said: list[str] = []
    for version in (4, 6) if me else ():
        assert me  # noqa: S101 - else there are no versions
        alone = [a for a in me.addresses if a.version == version and a not in known.contested]
        mine, there = end(me, local, known, version)
        if there and mine not in alone[:1]:
            said.append(str(mine))
    return ((ENDS, tuple(said)),) if said else ()


class Near:
    """The interface by which this node reaches an address on-link, as the kernel chooses: the longest prefix.

    Of interfaces in the same network the one with the node's InternalIP comes first.
    """

    def __init__(self, view: ModeContext, known: NodeEndpoints) -> None:
        mine = {address for version in (4, 6) if (address := own(view, known, version)[0])}
        devices = {local.device for local in view.local if local.interface.ip in mine}
        order = sorted(
            (local for local in view.local if not local.behind),
            key=lambda local: (-local.interface.network.prefixlen, local.device not in devices),
        )
        self.addresses = frozenset(local.interface.ip for local in view.local)
        self._networks = [_entry(local) for local in order]

    def local(self, address: Address) -> LocalAddress | None:
        """The interface; None: the address is not on-link."""
        version, number = address.version, int(address)
        for of, network, mask, local in self._networks:
            if number & mask == network and of == version:
                return local
        return None


def no_address(node: str, version: int = 4) -> Problem:
    """A node that can't be reached as it has no address."""
    return Problem(f"node {node}", f"has no IPv{version} InternalIP", "kubelet's --node-ip sets it")


def _entry(local: LocalAddress) -> tuple[int, int, int, LocalAddress]:
    network: Subnet = local.interface.network
    return network.version, int(network.network_address), int(network.netmask), local
