"""The status report of an agent, for `testcnictl status` and the page /status."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from agent.config import AgentConfig
from agent.ip import FAMILIES, Address, Subnet
from agent.ipam import blocks
from agent.ipam.allocator import Range
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel.bpf.map_entries import Count
from agent.model.cluster import Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from agent.modes.base import Mode
from agent.modes.registry import Modes
from agent.objects import pod_guard
from agent.objects.host_kernel import HostKernel


def report(  # noqa: PLR0913, PLR0917 - all parts that the report is about
    conf: AgentConfig,
    began: float,
    snapshot: Snapshot,
    status: NodeStatus,
    attachments: AttachmentStore,
    modes: Modes,
    host: HostKernel,
) -> dict[str, Any]:
    """Return node, networks with their addresses, and problems, as JSON; `began` is of time.monotonic."""
    return {
        "node": conf.node,
        "datastore": conf.datastore,
        "pid": os.getpid(),
        "uptimeSeconds": round(time.monotonic() - began, 1),
        "synced": status.synced,
        "nodes": len(snapshot.nodes),
        "routes": status.routes,
        "attachments": len(attachments.all()),
        "networks": [
            _network(network, modes.of(network), own, status, attachments)
            for network, own in status.blocks.items()
        ],
        "ebpf": _ebpf(modes, host),
        "problems": [
            {"where": problem.where, "what": problem.what, "remedy": problem.remedy} for problem in status.problems
        ],
    }


def _ebpf(modes: Modes, host: HostKernel) -> dict[str, Any] | None:
    """Return packets and bytes by reason: all 0 if no programs are in use, None if they cannot be read.

    Packets that pod_guard drops are added to those that programs of a mode drop for the same reason.
    """
    try:
        guarded = host.bpf.maps(pod_guard.GUARD)
        counted: dict[str, Count] = {}
        of_guard = pod_guard.counters(guarded) if guarded else pod_guard.no_counters()
        for counts in (*(mode.packet_counts(host) for mode in modes), of_guard):
            for reason, count in counts.items():
                known = counted.get(reason, Count(0, 0))
                counted[reason] = Count(known.packets + count.packets, known.bytes + count.bytes)
    except OSError:
        return None
    return {reason: {"packets": count.packets, "bytes": count.bytes} for reason, count in counted.items()}


def _network(
    network: Network, mode: Mode, own: tuple[Subnet, ...], status: NodeStatus, attachments: AttachmentStore
) -> dict[str, Any]:
    uplink, ranges = status.uplinks.get(network), blocks.prepared(status, network, own)
    outside = _outside(network, own, attachments)
    versions = {*status.families.get(network, (block.version for block in own)), *(a.version for a in outside)}
    return {
        "name": network.name,
        "mode": network.mode,
        "device": uplink.device if uplink else mode.device(network),
        **({"parent": uplink.device} if uplink else {}),
        **mode.report(network),
        "blocks": [str(block) for block in own],
        "addresses": {FAMILIES[v]: _addresses(ranges, v, attachments, outside) for v in sorted(versions)},
    }


def _addresses(
    ranges: Iterable[Range], version: int, attachments: AttachmentStore, outside: Iterable[Address]
) -> dict[str, int]:
    """Count the addresses of one IP version by state; 0 where there is neither block nor pod of it."""
    counts = [attachments.counts(candidates) for candidates in ranges if candidates.block.version == version]
    found = {state: sum(count[n] for count in counts) for n, state in enumerate(("used", "cooling", "free"))}
    return {**found, "used": found["used"] + sum(address.version == version for address in outside)}


def _outside(network: Network, own: tuple[Subnet, ...], attachments: AttachmentStore) -> tuple[Address, ...]:
    """Return the addresses of a network's pods that are in none of the node's blocks."""
    leases = (lease.address for a in attachments.all() if a.network == network for lease in a.leases)
    return tuple(address for address in leases if not any(address in block for block in own))
