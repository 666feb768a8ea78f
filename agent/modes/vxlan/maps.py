"""The content of the maps of the eBPF programs, as frozen values. The layouts are those of ebpf/maps.h."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from agent.kernel.bpf import map_entries
from agent.kernel.bpf.loader import Family
from agent.kernel.bpf.map_entries import Count
from agent.kernel.bpf.syscall import Map
from agent.kernel.ip_links import mac_bytes
from agent.modes.veth import GATEWAY

TUNNEL_MAC_PREFIX = "0e:76"  # of every vxlan device of ours; the node's address follows: ebpf/tunnel.h
UNKNOWN = 1  # in place of a node's address: it may send from any block
SAMPLE = 63  # one drop of 64 of a kind, on each CPU, is told in an event

FAMILY = Family(
    "programs-",
    ("veth_ingress", "veth_egress", "vxlan_ingress", "vxlan_egress"),
    ("config", "blocks", "nodes", "pods", "flows", "reason_counters", "events"),
    ("counters",),
)
REASONS = (
    "forwarded_local",
    "forwarded_remote",
    "to_stack",
    "from_stack",
    "answered_arp",
    "drop_malformed",
    "drop_not_ip",
    "drop_spoofed_ip",
    "drop_spoofed_mac",
    "drop_pod_tunnel",
    "drop_unknown_node",
    "drop_wrong_vni",
    "drop_no_pod",
    "drop_failed",
    "drop_spoofed_node",
)

_KEY = struct.Struct("=I")
_CONFIG = struct.Struct("=4s4sIIHHI")
_BLOCK = struct.Struct("=I4s")
_POD = struct.Struct("=I6s6s")


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration that all programs of a node go by."""

    node: IPv4Address
    vni: int
    port: int
    """UDP port of the tunnel."""
    device: int
    """Index of the vxlan device."""
    gateway: IPv4Address = GATEWAY
    """The gateway of every pod; the program veth_ingress answers for it."""
    sample: int = SAMPLE


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod of this node: the index of the host's end, its own MAC, and that of the host's end."""

    device: int
    mac: str
    host_mac: str


def tunnel_mac(node: IPv4Address) -> str:
    """The MAC of a node's vxlan device: known to all who know the node's address."""
    return f"{TUNNEL_MAC_PREFIX}:{node.packed.hex(':')}"


def configure(maps: Mapping[str, Map], config: Config) -> bool:
    """Set what the programs go by; whether it was another. Raises BpfError."""
    value = _CONFIG.pack(
        config.node.packed,
        config.gateway.packed,
        config.vni,
        config.device,
        socket.htons(config.port),
        0,
        config.sample,
    )
    if maps["config"].get(_KEY.pack(0)) == value:
        return False
    maps["config"].put(_KEY.pack(0), value)
    return True


def put_pod(maps: Mapping[str, Map], address: IPv4Address, pod: Endpoint) -> None:
    """Say where a pod is. Raises BpfError."""
    maps["pods"].put(address.packed, _POD.pack(pod.device, mac_bytes(pod.mac), mac_bytes(pod.host_mac)))


def pod(maps: Mapping[str, Map], address: IPv4Address) -> Endpoint | None:
    """Return where a pod is; None: nobody said so. Raises BpfError."""
    value = maps["pods"].get(address.packed)
    return _endpoint(value) if value else None


def pods(maps: Mapping[str, Map]) -> dict[IPv4Address, Endpoint]:
    """Return where all pods are, by their addresses. Raises BpfError."""
    return {IPv4Address(key): _endpoint(value) for key, value in maps["pods"].items().items()}


def remove_pod(maps: Mapping[str, Map], address: IPv4Address, host_mac: str | None = None) -> bool:
    """Forget a pod; False when it was not known. Raises BpfError.

    With `host_mac` only the pod whose host end has that MAC, which is its mark: another one may have the address.
    """
    if host_mac is not None and ((known := pod(maps, address)) is None or known.host_mac != host_mac):
        return False
    return maps["pods"].remove(address.packed)


def remove_pods_at(maps: Mapping[str, Map], device: int) -> None:
    """Forget the pods behind a device of this index. Raises BpfError."""
    maps["pods"].remove_all([a.packed for a, endpoint in pods(maps).items() if endpoint.device == device])


def put_nodes(
    maps: Mapping[str, Map],
    blocks: Mapping[IPv4Network, IPv4Address],
    nodes: Iterable[IPv4Address],
    ends: Mapping[IPv4Address, IPv4Address] | None = None,
) -> int:
    """Say which blocks nodes have; how many entries were set. Raises BpfError.

    A node is believed before packets are sent to it, and for as long as they are. `ends`: the address by which its
    blocks are known, for each address of a node that sends from no other node's blocks.
    """
    put = map_entries.put_changed
    return put(maps["nodes"], _senders(nodes, ends or {})) + put(maps["blocks"], _owners(blocks))


def remove_other_nodes(
    maps: Mapping[str, Map], blocks: Mapping[IPv4Network, IPv4Address], nodes: Iterable[IPv4Address]
) -> int:
    """Forget all other blocks and nodes; how many entries there were. Raises BpfError."""
    remove = map_entries.remove_others
    return remove(maps["blocks"], _owners(blocks)) + remove(maps["nodes"], _senders(nodes, {}))


def _senders(nodes: Iterable[IPv4Address], ends: Mapping[IPv4Address, IPv4Address]) -> dict[bytes, bytes]:
    return {a.packed: ends[a].packed if a in ends else _KEY.pack(UNKNOWN) for a in nodes}


def _owners(blocks: Mapping[IPv4Network, IPv4Address]) -> dict[bytes, bytes]:
    return {_BLOCK.pack(b.prefixlen, b.network_address.packed): node.packed for b, node in blocks.items()}


def counters(maps: Mapping[str, Map]) -> dict[str, Count]:
    """Return the counts of packets since the maps were made, by what became of them. Raises BpfError."""
    return map_entries.counts(maps["reason_counters"], REASONS)


def no_counters() -> dict[str, Count]:
    """Return the counts where there are no maps: nothing became of any packet."""
    return map_entries.no_counts(REASONS)


def _endpoint(value: bytes) -> Endpoint:
    device, mac, host_mac = _POD.unpack(value)
    return Endpoint(device, mac.hex(":"), host_mac.hex(":"))
