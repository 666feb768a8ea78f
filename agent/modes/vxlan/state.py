"""The state that the mode vxlan wants of a node, beside what all modes may want."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from agent.model.problem import Problem
from agent.modes.vxlan.options import EBPF
from agent.objects.state import Section


@dataclass(frozen=True, slots=True)
class VxlanState(Section):
    """A vxlan device, and what its programs know of the cluster. IPv4 only."""

    device: str
    vni: int
    port: int
    """UDP port of the tunnel."""
    mtu: int
    """Bytes of an inner packet."""
    node: IPv4Address
    """The address of this node's end of the tunnel."""
    addresses: frozenset[IPv4Address] = frozenset()
    """The addresses of the device, with which the node itself speaks to pods of other nodes."""
    blocks: frozenset[tuple[IPv4Network, IPv4Address]] = frozenset()
    """Blocks of pods and the addresses of their nodes, this node's included."""
    nodes: frozenset[IPv4Address] = frozenset()
    """Addresses that tunnels may come from."""
    backend: str = EBPF
    ends: frozenset[tuple[IPv4Address, IPv4Address]] = frozenset()
    """Nodes that send from their own blocks only: each of their addresses, and the one that `blocks` has."""

    @property
    def open(self) -> frozenset[IPv4Address]:
        """The nodes that may send from any block."""
        return self.nodes - dict(self.ends).keys()

    @property
    def devices(self) -> frozenset[str]:
        """The vxlan device."""
        return frozenset({self.device})

    @property
    def devices_to_pods(self) -> frozenset[str]:
        """The vxlan device: the node itself is a pod to other nodes, too."""
        return frozenset({self.device})

    @property
    def tunnel_ports(self) -> tuple[int, ...]:
        """The device's port."""
        return (self.port,)

    def join(self, other: VxlanState) -> tuple[VxlanState, frozenset[Problem]]:
        """Return one tunnel for both networks, as a node has only one, and why the other's is refused."""
        if (self.vni, self.port) != (other.vni, other.port):
            what = f"vni {other.vni}, port {other.port}, where another has vni {self.vni}, port {self.port}"
            remedy = "give all networks of mode vxlan the same vni and port"
            return self, frozenset({Problem("networks of mode vxlan", f"one of them has {what}", remedy)})
        both = replace(
            self,
            mtu=min(self.mtu, other.mtu),
            addresses=self.addresses | other.addresses,
            blocks=self.blocks | other.blocks,
            nodes=self.nodes | other.nodes,
            ends=frozenset(pair for pair in self.ends | other.ends if pair[0] not in self.open | other.open),
            # pods of the backend kernel need no programs, so they work on a tunnel that has some
            backend=EBPF if EBPF in (self.backend, other.backend) else self.backend,
        )
        return both, frozenset()
