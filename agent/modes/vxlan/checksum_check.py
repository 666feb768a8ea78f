"""Check whether a NIC corrupts checksums of packets in the tunnel, and turn its offload off if so.

A check is due when the tunnel's device is new. The result is kept in the device: one that has its checksum
offload turned off is not checked again.
"""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

from agent.ipam import allocator
from agent.kernel import ip_routes, netlink
from agent.model.marks import ROUTE_PROTOCOL
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.vxlan import checksum_probe
from agent.modes.vxlan.marks import VXLAN_DEVICE
from agent.runtime.controller import Controller, Schedule

SCHEDULE = Schedule(resync=5.0, first=1.0, backoff=(2.0, 300.0))  # the backoff is for as long as no peer answers
PEERS = 3  # at a time: some may be down

log = logging.getLogger(__name__)


class ChecksumCheck(Controller):
    """Sends nothing once a peer has answered, until the device is created again."""

    def __init__(self, problems: PartProblems, route_protocol: int = ROUTE_PROTOCOL) -> None:
        super().__init__(SCHEDULE, problems.report_error)
        self._problems = problems
        self._route_protocol = route_protocol
        self._settled = 0
        """The index of the device that needs no check any more."""

    def once(self) -> bool:
        """Check the device if it is new; return False when no peer answers."""
        try:
            return self._check()
        except OSError as error:  # the device was deleted meanwhile, or netlink failed: the next round finds out
            log.debug("checksum check of %s: %s", VXLAN_DEVICE, error)
            return True

    def _check(self) -> bool:
        """Check the device if it is new; return False when no peer answers. Raises OSError."""
        try:
            index = socket.if_nametoindex(VXLAN_DEVICE)
        except OSError:
            return self._settle(0)
        if index == self._settled:
            return True
        if not checksum_probe.checksums(VXLAN_DEVICE):
            return self._settle(index, _off())
        for peer in _peers(index, self._route_protocol):
            found = checksum_probe.corrupted(peer)
            if found is not None:
                return self._settle(index, _repair(peer) if found else None)
        return False

    def _settle(self, index: int, problem: Problem | None = None) -> bool:
        self._settled = index
        self._problems.publish({VXLAN_DEVICE: problem} if problem else {})
        return True


def _peers(index: int, route_protocol: int) -> Iterator[IPv4Address]:
    """Yield the addresses that some peers have in the tunnel."""
    blocks = [
        route.dst
        for route in ip_routes.routes(netlink.host(), 4, route_protocol)
        if route.index == index and not route.metric and isinstance(route.dst, IPv4Network)
    ]
    for block in random.sample(blocks, min(PEERS, len(blocks))):
        yield IPv4Address(int(allocator.gateway(block)))


def _repair(peer: IPv4Address) -> Problem | None:
    """Let the CPU make the checksums, if that helps."""
    checksum_probe.leave_checksums(VXLAN_DEVICE, below=False)
    if checksum_probe.corrupted(peer) is False:
        return _off()
    checksum_probe.leave_checksums(VXLAN_DEVICE, below=True)
    what = f"datagrams arrive at {peer} only without a checksum, and not for an offload of this node"
    return Problem(f"device {VXLAN_DEVICE}", what, "look at the peer's NIC and what is between")


def _off() -> Problem:
    what = "the NIC corrupts checksums of packets in the tunnel, so the CPU makes them"
    remedy = f"update the NIC's driver, and have it tested again: ip link delete {VXLAN_DEVICE}"
    return Problem(f"device {VXLAN_DEVICE}", what, remedy)
