"""The ipip programs of a node in a test: maps and pins of their own in one bpf file system."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from agent.kernel import ip_links, netns, tc
from agent.kernel.bpf.loader import BPFFS, Loader
from agent.modes.ipip import maps as ipip_maps
from agent.modes.ipip.state import IpipState
from tests.netns import frames
from tests.netns.frames import Ran
from tests.netns.node import OBJECTS, Pod

MTU = 1480


class Programs:
    """Both programs of one node."""

    def __init__(self, name: str) -> None:
        self.loaded = Loader(OBJECTS, BPFFS / name).load(ipip_maps.FAMILY)

    def configure(self, node: IPv4Address, blocks: Mapping[IPv4Network, tuple[IPv4Address, bool]]) -> None:
        """This node's address, and all nodes' blocks: whose, and whether packets there are encapsulated."""
        owners = frozenset((block, owner) for block, (owner, _) in blocks.items())
        nodes = frozenset(owner for owner, _ in blocks.values())
        tunnelled = frozenset(owner for owner, encapsulate in blocks.values() if encapsulate)
        ipip_maps.sync(self.loaded.maps, IpipState(node, MTU, blocks=owners, nodes=nodes, tunnelled=tunnelled))

    def attach(self, netns_of: Pod, device: str) -> None:
        """Put them at a device."""
        with netns.netlink_in(netns_of.fd) as nl:
            link = ip_links.link(nl, device)
            assert link
            programs = self.loaded.programs
            tc.attach(nl, link.index, {"ingress": programs["ipip_ingress"], "egress": programs["ipip_egress"]})

    def counted(self) -> dict[str, int]:
        """Packets by what became of them."""
        counts = ipip_maps.counters(self.loaded.maps)
        return {name: count.packets for name, count in counts.items() if count.packets}

    def run(self, program: str, frame: bytes) -> Ran:
        """Return what a program does with a frame."""
        return frames.run(self.loaded.programs[program], frame, 1)
