"""Pods whose address is no longer in a block of their node: find them, and report them.

A Node that is created again may get another podCIDR, and a person may delete an IPBlock, while pods run on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from agent.cluster.store import Datastore, NotFoundError, StoreError
from agent.ip import Address, Subnet, address_name
from agent.ipam.attachments.attachment import Attachment
from agent.model.cluster import MOMENT, IPReservation, ObjectMetadata, Snapshot
from agent.model.node_status import PodEvent, ReportEvent
from agent.model.problem import Problem
from agent.runtime.pace import Pace

SETTLED = 5.0  # seconds: a deleted block may be claimed again at once
EVENTS = 20, 2.5  # at once, then one in so many seconds: fewer than node_events.py takes
NAMED = 5  # pods in the text of a problem
REASON = "AddressOutsideBlocks"


@dataclass(frozen=True, slots=True)
class OffBlockAddress:
    """An address of a pod of this node that is in none of its blocks."""

    address: Address
    pod: str
    """`namespace/name`, or what the runtime calls the container."""
    named: bool
    """Whether it is a pod that Kubernetes knows."""
    shared: bool
    """Whether the pod is on a subnet that it shares with others, so that it needs no route."""

    @property
    def remedy(self) -> str:
        """Return how to have the pod created again."""
        namespace, _, name = self.pod.partition("/")
        return f"kubectl delete pod -n {namespace} {name}" if self.named else f"delete container {self.pod}"


class OffBlockPods:
    """Finds off-block pods, and writes one Event about each. For one thread."""

    def __init__(
        self, node: str, store: Datastore, report_event: ReportEvent, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`report_event` takes Events about pods; `clock` is in seconds."""
        self._node = node
        self._store = store
        self._report_event = report_event
        self._clock = clock
        self._since: dict[Address, float] = {}
        self._reported: set[Address] = set()
        self._pace = Pace(*EVENTS)
        self._had: frozenset[Subnet] = frozenset()
        """Blocks that this node had at an earlier update."""
        self._found: Mapping[Address, OffBlockAddress] = {}

    def update(self, snapshot: Snapshot, pods: tuple[Attachment, ...]) -> frozenset[Address]:
        """Find off-block pods, and return their addresses.

        While this node has no Node object, none is added.
        """
        now, blocks = self._clock(), _blocks(snapshot, self._node)
        every = {one.address: one for one in _outside(pods, blocks)}
        there = self._node in snapshot.nodes
        self._since = {
            address: self._since.get(address, now) for address in every if there or address in self._since
        }
        self._found = {
            address: one
            for address, one in every.items()
            if address in self._found or (there and now - self._since[address] >= self._wait(address, blocks))
        }
        self._reported &= self._found.keys()
        self._had |= frozenset(blocks)
        return frozenset(self._found)

    def _wait(self, address: Address, blocks: tuple[Subnet, ...]) -> float:
        """Return for how many seconds an address may be in no block before its pod counts as off-block."""
        if all(block.version != address.version for block in blocks):
            return MOMENT  # the Node was created again, and has no podCIDR yet
        # else it may be in a block that was just claimed, and that no snapshot shows yet
        return 0.0 if any(address in block for block in self._had) else SETTLED

    def problems(self, snapshot: Snapshot) -> Iterator[Problem]:
        """Yield the problems with off-block pods."""
        lone = [one for one in self._found.values() if not one.shared]
        if lone:
            named = sorted({one.pod for one in lone})
            more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
            what = f"addresses of pods are in none of its blocks: {', '.join(named[:NAMED])}{more}"
            remedy = (
                "delete these pods, so that they are created again; until then other nodes have a route to each"
            )
            yield Problem(f"node {self._node}", what, remedy)
        for one in self._found.values():
            if why := self._cut_off(one, snapshot.reservations.get(address_name(one.address))):
                what = f"its address {one.address} is in none of this node's blocks, and {why}"
                yield Problem(f"pod {one.pod}", what, one.remedy)

    def report(self, snapshot: Snapshot) -> None:
        """Write one Event about each off-block pod: it should be created again."""
        blocks = ", ".join(map(str, _blocks(snapshot, self._node))) or "none"
        for address, one in self._found.items():
            if address in self._reported or one.shared or not one.named:
                continue
            if self._clock() - self._since[address] < SETTLED or not self._pace.spend():
                continue
            self._reported.add(address)
            if (uid := self._uid(one.pod)) is None:
                continue
            why = self._cut_off(one, snapshot.reservations.get(address_name(address)))
            reached = f"other nodes do not reach it: {why}" if why else "other nodes have a route to it until then"
            what = f"its address {address} is in none of the blocks of node {self._node} ({blocks}) any more"
            message = f"{what}, so the pod should be created again: {one.remedy}; {reached}"
            self._report_event(PodEvent(one.pod, uid, REASON, message, once=str(address)))

    def _cut_off(self, one: OffBlockAddress, held: IPReservation | None) -> str:
        """Return why other nodes have no route to the address; empty if they have one or will have it soon."""
        if held is None:
            return ""  # it will be reserved soon; a datastore that fails is a problem of its own
        if (held.pod, held.node) != (one.pod, self._node):
            return f"it is reserved for {held.owner} (IPReservation {held.name})"
        if held.refused:
            return held.refused
        return f"node {held.asks}, whose block it is in, has not agreed" if held.asks else ""

    def _uid(self, pod: str) -> str | None:
        """Return the pod's UID, by which kubectl finds its Events; empty if unknown, None if the pod is gone."""
        try:
            found = self._store.get("Pod", pod)
        except NotFoundError:
            return None
        except StoreError:
            return ""
        return found.uid if isinstance(found, ObjectMetadata) else ""


def _blocks(snapshot: Snapshot, node: str) -> tuple[Subnet, ...]:
    """Return all blocks of a node, for all networks: its peers have a route to each."""
    me = snapshot.nodes.get(node)
    claimed = (block.cidr for block in snapshot.blocks.values() if block.node == node)
    return tuple(dict.fromkeys((*(me.blocks if me else ()), *claimed)))


def _outside(pods: tuple[Attachment, ...], blocks: tuple[Subnet, ...]) -> Iterator[OffBlockAddress]:
    for pod in pods:
        if pod.wired is None or pod.network.has_manual_range:  # its ADD is at work, or a person divides the subnet
            continue
        for lease in pod.leases:
            if lease.address not in pod.reserved and not any(lease.address in block for block in blocks):
                named = "/" in pod.pod
                yield OffBlockAddress(lease.address, pod.pod or pod.container_id, named, pod.network.shared)
