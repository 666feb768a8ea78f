"""The content of the maps of the ipip programs, as frozen values. The layouts are those of ebpf/ipip.h."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from agent.kernel.bpf import map_entries
from agent.kernel.bpf.loader import Family
from agent.kernel.bpf.map_entries import Count
from agent.kernel.bpf.syscall import Map
from agent.modes.ipip.state import IpipState

FAMILY = Family(
    "ipip-", ("ipip_ingress", "ipip_egress"), ("ipip_node", "ipip_blocks", "ipip_nodes", "ipip_counters")
)
STRANGER = "drop_unknown_node"
REASONS = ("sent", "received", STRANGER, "drop_spoofed", "drop_malformed", "drop_failed")

_NUMBER = struct.Struct("=I")
_KEY = struct.Struct("=I4s")  # bits of the prefix, address
_BLOCK = struct.Struct("=4sI")  # node, whether packets there are encapsulated


def sync(maps: Mapping[str, Map], wanted: IpipState) -> tuple[int, int]:
    """Make what the programs go by what is wanted; how many entries were set and deleted. Raises BpfError.

    A node is believed before packets are sent to it, and for as long as they are; this node's address, without
    which the programs do nothing, comes last.
    """
    nodes = {address.packed: _NUMBER.pack(address in wanted.tunnelled) for address in wanted.nodes}
    blocks = {
        _KEY.pack(block.prefixlen, block.network_address.packed): _BLOCK.pack(
            owner.packed, owner in wanted.tunnelled
        )
        for block, owner in wanted.blocks
    }
    put = map_entries.put_changed(maps["ipip_nodes"], nodes) + map_entries.put_changed(maps["ipip_blocks"], blocks)
    removed = map_entries.remove_others(maps["ipip_blocks"], blocks) + map_entries.remove_others(
        maps["ipip_nodes"], nodes
    )
    own = wanted.node.packed
    if maps["ipip_node"].get(_NUMBER.pack(0)) != own:
        maps["ipip_node"].put(_NUMBER.pack(0), own)
        put += 1
    return put, removed


def counters(maps: Mapping[str, Map]) -> dict[str, Count]:
    """Return the counts of packets since the maps were made, by what became of them. Raises BpfError."""
    return map_entries.counts(maps["ipip_counters"], REASONS)
