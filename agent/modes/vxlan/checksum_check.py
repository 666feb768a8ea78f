"""A test of the tunnel against peers whenever its device is new: a NIC that corrupts checksums is done without.

What was found is kept where it counts, in the device: one that has its checksums off is not tested again.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from agent.ipam import allocator
from agent.kernel import ip_routes, netlink
from agent.model.marks import ROUTE_PROTOCOL, VXLAN_DEVICE
from agent.model.problem import Problem
from agent.modes.vxlan import offload
from agent.runtime.observable import Observable

LOOK_AGAIN, LONGEST = 5.0, 300.0  # seconds; the second while no peer answers
PEERS = 3  # at a time: some may be down

log = logging.getLogger(__name__)


class ChecksumCheck:
    """Sends nothing once a peer has answered, until the device is made anew."""

    def __init__(self, route_protocol: int = ROUTE_PROTOCOL) -> None:
        self._route_protocol = route_protocol
        self.problems: Observable[Mapping[str, Problem]] = Observable({})
        self._settled = 0
        """Index of the device of which all is known."""

    def run(self, stop: threading.Event) -> None:
        """Test whenever there is something to test, until `stop` is set."""
        pause = 1.0
        while not stop.wait(pause):
            try:
                pause = LOOK_AGAIN if self.once() else min(2 * pause, LONGEST)
            except OSError as error:  # the device went meanwhile, or netlink failed: the next look tells
                log.debug("self-test of %s: %s", VXLAN_DEVICE, error)
                pause = LOOK_AGAIN

    def once(self) -> bool:
        """One look at the device; False when there is something to test, and no peer answers. Raises OSError."""
        try:
            index = socket.if_nametoindex(VXLAN_DEVICE)
        except OSError:
            return self._settle(0)
        if index == self._settled:
            return True
        if not offload.checksums(VXLAN_DEVICE):
            return self._settle(index, _off())
        for peer in _peers(index, self._route_protocol):
            found = offload.corrupted(peer)
            if found is not None:
                return self._settle(index, _mend(peer) if found else None)
        return False

    def _settle(self, index: int, problem: Problem | None = None) -> bool:
        self._settled = index
        self.problems.publish({VXLAN_DEVICE: problem} if problem else {})
        return True


def _peers(index: int, route_protocol: int) -> Iterator[IPv4Address]:
    """Addresses of some peers' ends of the tunnel."""
    blocks = [
        route.dst
        for route in ip_routes.routes(netlink.host(), 4, route_protocol)
        if route.index == index and not route.metric and isinstance(route.dst, IPv4Network)
    ]
    for block in random.sample(blocks, min(PEERS, len(blocks))):
        yield IPv4Address(int(allocator.gateway(block)))


def _mend(peer: IPv4Address) -> Problem | None:
    """Make checksums here, if that helps."""
    offload.leave_checksums(VXLAN_DEVICE, below=False)
    if offload.corrupted(peer) is False:
        return _off()
    offload.leave_checksums(VXLAN_DEVICE, below=True)
    what = f"datagrams arrive at {peer} only without a checksum, and not for an offload of this node"
    return Problem(f"device {VXLAN_DEVICE}", what, "look at the peer's NIC and what is between")


def _off() -> Problem:
    what = "the NIC corrupts checksums of packets in the tunnel, so the CPU makes them"
    remedy = f"update the NIC's driver, and have it tested again: ip link delete {VXLAN_DEVICE}"
    return Problem(f"device {VXLAN_DEVICE}", what, remedy)
