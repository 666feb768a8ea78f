"""The content of the maps of the program pod_guard, as frozen values. The layouts are those of ebpf/guard.h."""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from agent.ip import Address
from agent.kernel import tc, tcx
from agent.kernel.bpf import map_entries
from agent.kernel.bpf.loader import Family, Loaded, Loader
from agent.kernel.bpf.map_entries import Count
from agent.kernel.bpf.syscall import BpfError, Map, Program
from agent.kernel.ip_links import mac_bytes
from agent.kernel.netlink import Netlink
from agent.kernel.tc import Hook

GUARD = Family("guard-", ("pod_guard",), ("guard_config", "guard_ports", "guard_addresses", "guard_counters"))
REASONS = (
    "drop_malformed",
    "drop_not_ip",
    "drop_spoofed_ip",
    "drop_spoofed_mac",
    "drop_pod_tunnel",
    "drop_pod_router",
    "drop_failed",
)
UNCHECKED = 1
PORTS = 2  # of tunnels that the program knows
WITHOUT = 'or do without the check of pods\' sources: "spoofCheck": false in the netconf'

_KEY = struct.Struct("=I")
_CONFIG = struct.Struct("=HH")
_PORT = struct.Struct("=8s6sH")
_ADDRESS = struct.Struct("=8s16s")


@dataclass(frozen=True, slots=True)
class GuardedPort:
    """The owner of a port: the pod and one of its interfaces."""

    container_id: str
    mac: str
    addresses: tuple[Address, ...]
    checked: bool = True
    """Whether only packets of the pod's own addresses and MAC pass."""

    @property
    def keys(self) -> frozenset[bytes]:
        """The keys of its entries in the map of addresses."""
        return frozenset(_ADDRESS.pack(_pod(self.container_id), _packed(address)) for address in self.addresses)

    @property
    def entry(self) -> bytes:
        """The value of its entry in the map of ports."""
        return _PORT.pack(_pod(self.container_id), mac_bytes(self.mac), 0 if self.checked else UNCHECKED)


def _pod(container_id: str) -> bytes:
    return hashlib.sha256(container_id.encode()).digest()[:8]


def _packed(address: Address) -> bytes:
    return address.packed if isinstance(address, IPv6Address) else b"\0" * 10 + b"\xff\xff" + address.packed


def loaded(bpf: Loader) -> Loaded:
    """Return program and maps, loaded by the first that needs them. Raises BpfError."""
    try:
        return bpf.ensure(GUARD)
    except BpfError as error:
        what = f"the program pod_guard can't be loaded: {error}".replace("\n", "; ")
        raise BpfError(error.errno or 0, f"{what}; {error.remedy}; {WITHOUT}") from error


def _programs(held: Loaded) -> dict[Hook, Program]:
    return {"ingress": held.programs["pod_guard"]}


def attach(nl: Netlink, held: Loaded, index: int, *, limited: bool) -> None:
    """Put the program at a port, where the plugin bandwidth leaves room: its qdisc excludes a clsact.

    `limited`: it has yet to come. Raises OSError.
    """
    if not limited and (tc.attach(nl, index, _programs(held)) or not tc.is_taken(nl, index)):
        return
    if tcx.known():
        tcx.ensure(index, _programs(held))
    else:
        what = "the plugin bandwidth limits what this pod sends, which needs Linux 6.6 beside pod_guard"
        raise BpfError(errno.EOPNOTSUPP, f"{what}; leave egress limits out, {WITHOUT}")


def is_attached(nl: Netlink, held: Loaded, index: int) -> bool:
    """Return whether the program is at a port, not behind another; False if the port is gone. Raises OSError."""
    program = held.programs["pod_guard"]
    try:
        if tc.attached(nl, index, "ingress") == program.id and not tc.is_taken(nl, index):
            return True
        return tcx.has(index, "ingress", program)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise


def put(maps: Mapping[str, Map], index: int, guarded: GuardedPort) -> None:
    """Make known who the port of that index is of. Raises BpfError."""
    for key in guarded.keys:
        maps["guard_addresses"].put(key, _KEY.pack(1))
    maps["guard_ports"].put(_KEY.pack(index), guarded.entry)


def knows(maps: Mapping[str, Map], index: int, guarded: GuardedPort) -> bool:
    """Return whether the maps name the pod as the owner of the port of that index. Raises BpfError."""
    return maps["guard_ports"].get(_KEY.pack(index)) == guarded.entry and all(
        maps["guard_addresses"].get(key) for key in guarded.keys
    )


def addresses(maps: Mapping[str, Map]) -> dict[int, frozenset[Address]]:
    """Return the addresses of the pod that each port is of, by the port's index. Raises BpfError."""
    by_pod: dict[bytes, set[Address]] = {}
    for key in maps["guard_addresses"].items():
        pod, packed = _ADDRESS.unpack(key)
        address = IPv6Address(packed)
        by_pod.setdefault(pod, set()).add(address.ipv4_mapped or address)
    ports = maps["guard_ports"].items().items()
    return {_KEY.unpack(key)[0]: frozenset(by_pod.get(_PORT.unpack(entry)[0], ())) for key, entry in ports}


def remove(maps: Mapping[str, Map], index: int, guarded: GuardedPort) -> None:
    """Forget a port; index 0: only its addresses. Raises BpfError."""
    for key in guarded.keys:
        maps["guard_addresses"].remove(key)
    if index:
        maps["guard_ports"].remove(_KEY.pack(index))


@dataclass(frozen=True, slots=True)
class GuardEntries:
    """All that the maps have: keys of ports with their entries, and keys of addresses."""

    ports: Mapping[bytes, bytes]
    addresses: frozenset[bytes]


def known(maps: Mapping[str, Map]) -> GuardEntries:
    """Return all that the maps have. Raises BpfError."""
    return GuardEntries(maps["guard_ports"].items(), frozenset(maps["guard_addresses"].items()))


def tidy(
    maps: Mapping[str, Map], earlier: GuardEntries, indexes: Iterable[int], guarded: Iterable[GuardedPort]
) -> int:
    """Remove what was known earlier and is no link's or pod's now; how many entries. Raises BpfError.

    A pod that has a link keeps its addresses, also one whose attachment can't be read.
    """
    present = {_KEY.pack(index) for index in indexes}
    ports = [key for key in earlier.ports if key not in present]
    alive = {_PORT.unpack(entry)[0] for key, entry in earlier.ports.items() if key in present}
    wanted = frozenset(key for one in guarded for key in one.keys)
    addresses = [key for key in earlier.addresses - wanted if _ADDRESS.unpack(key)[0] not in alive]
    maps["guard_ports"].remove_all(ports)
    maps["guard_addresses"].remove_all(addresses)
    return len(ports) + len(addresses)


def set_tunnels(maps: Mapping[str, Map], ports: Sequence[int]) -> bool:
    """Name the UDP ports of tunnels, PORTS at most; whether they were others. Raises BpfError."""
    value = _CONFIG.pack(*(socket.htons(port) for port in (*ports, *[0] * PORTS)[:PORTS]))
    if maps["guard_config"].get(_KEY.pack(0)) == value:
        return False
    maps["guard_config"].put(_KEY.pack(0), value)
    return True


def counters(maps: Mapping[str, Map]) -> dict[str, Count]:
    """Return what was dropped since the maps were made, by reason. Raises BpfError."""
    return map_entries.counts(maps["guard_counters"], REASONS)


def no_counters() -> dict[str, Count]:
    """Return what is counted where there are no maps: nothing."""
    return map_entries.no_counts(REASONS)
