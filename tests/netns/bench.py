"""A node with two pods, for tests of the eBPF programs: packets by hand in, verdict, bytes and counters out."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network

from agent.kernel.bpf.loader import Loader
from agent.kernel.bpf.map_entries import Count
from agent.model.marks import BPF_PINS
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.maps import Config, Endpoint
from tests.netns import frames
from tests.netns.frames import Ran, ethernet
from tests.netns.node import OBJECTS, command, private_bpffs

A, B, HERE_NONE, VTEP = "10.244.1.2", "10.244.1.3", "10.244.1.99", "10.244.1.0"
FAR, FARTHER = "10.244.2.2", "10.244.3.3"
NODE, PEER, OUTSIDE, SERVICE = "172.18.0.2", "172.18.0.3", "203.0.113.1", "10.96.0.1"
MAC = {A: "0a:58:0a:f4:01:02", B: "0a:58:0a:f4:01:03"}
HOST = {A: "ee:00:00:00:00:0a", B: "ee:00:00:00:00:0b"}
TUNNEL = "0e:76:ac:12:00:03"  # of PEER
SENDER = "0a:76:78:6c:61:6e"
GATEWAY = "169.254.1.1"
NOBODY = "0.0.0.0"  # noqa: S104
OURS = 0x7E57C41
LSRR = bytes([131, 3, 4, 0])
MORE = 0x2000


class Bench:
    """The programs on a node with the pods A and B, with counters that begin at 0."""

    def __init__(self) -> None:
        private_bpffs()
        for pod in ("pod-a", "pod-b"):
            command("ip", "link", "add", pod, "type", "veth", "peer", "name", f"{pod}-end")
        command("ip", "link", "add", "vx", "mtu", "1450", "type", "vxlan", "external", "dstport", "8472")
        loaded = Loader(OBJECTS, BPF_PINS).load(vxlan_maps.FAMILY)
        self.programs, self.maps = loaded.programs, loaded.maps
        self.device = {A: socket.if_nametoindex("pod-a"), B: socket.if_nametoindex("pod-b")}
        self.vxlan = socket.if_nametoindex("vx")
        vxlan_maps.configure(self.maps, Config(IPv4Address(NODE), 7, 8472, self.vxlan, sample=0))
        for pod in (A, B):
            vxlan_maps.put_pod(self.maps, IPv4Address(pod), Endpoint(self.device[pod], MAC[pod], HOST[pod]))
        blocks = {"10.244.1.0/24": NODE, "10.244.2.0/24": PEER, "10.244.3.0/24": "172.18.0.4"}
        vxlan_maps.put_nodes(
            self.maps,
            {IPv4Network(block): IPv4Address(node) for block, node in blocks.items()},
            [IPv4Address(node) for node in blocks.values()],
        )
        self._before = vxlan_maps.counters(self.maps)

    def pod(self, packet: bytes, source: str = A, **more: int) -> Ran:
        """Pod `source` sends an IP packet."""
        return self.frame(ethernet(HOST[source], MAC[source], packet), source, **more)

    def frame(self, frame: bytes, source: str = A, **more: int) -> Ran:
        return frames.run(self.programs["veth_ingress"], frame, self.device[source], **more)

    def delivered(self, packet: bytes, to: str) -> Ran:
        """The stack sends an IP packet to a pod."""
        frame = ethernet(MAC[to], HOST[to], packet)
        return frames.run(self.programs["veth_egress"], frame, self.device[to])

    def tunnelled(self, packet: bytes, mark: int = 0) -> Ran:
        """The stack, or with our mark a pod, sends an IP packet to the vxlan device."""
        return frames.run(self.programs["vxlan_egress"], ethernet(TUNNEL, TUNNEL, packet), self.vxlan, mark=mark)

    def counted(self) -> dict[str, int]:
        """Return what the counters say of packets since the last call."""
        before, self._before = self._before, vxlan_maps.counters(self.maps)
        none = Count(0, 0)
        return {
            reason: more
            for reason, count in self._before.items()
            if (more := count.packets - before.get(reason, none).packets)
        }

    def flows(self) -> int:
        return len(self.maps["flows"].items())
