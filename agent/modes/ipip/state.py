"""The state that the mode ipip wants of a node beside what all modes may want; BIRD's part: bird/plan.BirdPlan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from agent.model.problem import Problem
from agent.modes.ipip.marks import IPIP_DEVICE
from agent.objects.state import AcceptedSources, Section

PROTOCOL = 4  # IP protocol of IPv4 in IPv4 (RFC 2003)


@dataclass(frozen=True, slots=True)
class IpipState(Section):
    """Packets between nodes inside of ipip ones, by an ipip device or by eBPF. IPv4 only."""

    node: IPv4Address
    """The address of this node's end of the tunnels."""
    mtu: int
    """Bytes of an inner packet."""
    device: bool = True
    """Whether there is an ipip device; else one that only holds the addresses."""
    underlay: str | None = None
    """The device where eBPF encapsulates; None: nowhere; "": unknown for now, so it stays where it is."""
    addresses: frozenset[IPv4Address] = frozenset()
    """The addresses with which the node itself speaks to pods of other nodes."""
    blocks: frozenset[tuple[IPv4Network, IPv4Address]] = frozenset()
    """Blocks of pods and the addresses of their nodes, this node's included."""
    nodes: frozenset[IPv4Address] = frozenset()
    """Addresses that tunnels may come from."""
    tunnelled: frozenset[IPv4Address] = frozenset()
    """The addresses of `nodes` to which packets go in tunnels."""

    @property
    def devices(self) -> frozenset[str]:
        """The ipip device, or the one that holds its addresses."""
        return frozenset({IPIP_DEVICE})

    @property
    def accepted_sources(self) -> AcceptedSources:
        """The nodes, where there is an ipip device: it accepts packets from any address."""
        return {PROTOCOL: self.nodes} if self.device else {}

    def join(self, other: IpipState) -> tuple[IpipState, frozenset[Problem]]:
        """Return one device for both networks, with a tunnel to each node that one of them wants one to."""
        both = replace(
            self,
            mtu=min(self.mtu, other.mtu),
            device=self.device or other.device,
            underlay=other.underlay if self.underlay is None else self.underlay,
            addresses=self.addresses | other.addresses,
            blocks=self.blocks | other.blocks,
            nodes=self.nodes | other.nodes,
            tunnelled=self.tunnelled | other.tunnelled,
        )
        return both, frozenset()
