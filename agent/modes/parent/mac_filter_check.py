"""A test whether the segment carries frames of MACs that it did not give us, as macvlan needs it.

Clouds, hypervisors, wireless networks and guarded switch ports let a machine have one MAC and drop others without
a word. So a neighbour is asked by ARP twice: from the parent's own MAC, and from one that is like a pod's.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from agent.ip import Address
from agent.ipam import blocks
from agent.kernel import arp
from agent.kernel.link_operations import Reaper
from agent.model.marks import mac_for
from agent.model.network import Network, ParentLink
from agent.model.node_view import NodeView
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.parent.options import MACVLAN, PASSTHRU, ParentOptions
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.controller import Controller, Schedule

SCHEDULE = Schedule(resync=2.0)  # between two looks for parents that are to be checked
WELL_FOR, AGAIN, LONGEST = 300.0, 30.0, 300.0  # seconds to the next test: all well, not so, no neighbour answers
PEERS = 3  # at a time: some may be down

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Due:
    """The time of a parent's next test (time.monotonic), and a pause in seconds.

    Each test without an answer doubles the pause.
    """

    at: float = 0.0
    pause: float = SCHEDULE.resync


class MacFilterCheck(Controller):
    """Tests the parents of macvlan's subinterfaces, and tells which of them stand alone with their MAC."""

    def __init__(
        self, view: NodeView, problems: PartProblems, reaper: Reaper, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        super().__init__(SCHEDULE, problems.report_error, clock=clock)
        self._problems = problems
        self._view = view
        self._reaper = reaper
        self._due: dict[str, Due] = {}

    def once(self) -> bool:
        """Check each parent that is due."""
        now = self._clock.now()
        parents = {
            uplink.device: (network, uplink)
            for network, uplink in self._view.status.get().uplinks.items()
            if network.mode == MACVLAN and ParentOptions.of(network).link_mode != PASSTHRU
        }
        self._due = {device: self._due.get(device, Due()) for device in parents}
        self._problems.update(lambda known: {device: p for device, p in known.items() if device in parents})
        for device, (network, uplink) in parents.items():
            if self._due[device].at <= now:
                self._due[device] = self._tested(network, uplink, now)
        return True

    def _tested(self, network: Network, uplink: ParentLink, now: float) -> Due:
        try:
            problem, found = judge(self._reaper, uplink, self._targets(network, uplink))
        except OSError as error:  # the parent is down or gone: the reconciler tells
            log.info("test of %s: %s", uplink.device, error)
            problem, found = None, False
        if not found:
            pause = min(2 * self._due[uplink.device].pause, LONGEST)
            return Due(now + pause, pause)
        others = {device: p for device, p in self._problems.get().items() if device != uplink.device}
        self._problems.publish({**others, uplink.device: problem} if problem else others)
        return Due(now + (AGAIN if problem else WELL_FOR))

    def _targets(self, network: Network, uplink: ParentLink) -> Iterator[Address]:
        """The router, else some of the other nodes."""
        if uplink.gateway:
            yield uplink.gateway
        nodes = [node for node in self._view.snapshot.get().nodes.values() if node.name != self._view.node]
        near = [a for node in nodes for a in node.addresses if blocks.contains(network.subnet, a)]
        yield from random.sample(near, min(PEERS, len(near)))


def judge(reaper: Reaper, uplink: ParentLink, targets: Iterator[Address]) -> tuple[Problem | None, bool]:
    """Return what is wrong with the segment, and whether that is known (a target answers). Raises OSError."""
    mac = mac_for(uplink.hosts[0])  # in the order of pods' MACs, and no pod's
    ask = partial(arp.who_has, reaper, uplink.device)
    for target in targets:
        if not ask(target):
            continue
        if ask(target, mac=mac):
            return None, True
        if ask(target) and not arp.who_has(reaper, uplink.device, target, mac=mac):  # no mere loss
            return _alone(uplink, target, mac), True
    return None, False


def _alone(uplink: ParentLink, target: Address, mac: str) -> Problem:
    return Problem(
        f"interface {uplink.device}",
        f"{target} answers its own MAC but not {mac}: something between drops MACs that it does not know, and so "
        "what pods of macvlan send or get",
        "let switch and hypervisor pass any MAC (promiscuous mode, forged transmits), or use the mode ipvlan",
    )
