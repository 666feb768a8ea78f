"""Compare and count the entries of eBPF maps, whatever their layout."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.kernel.bpf.syscall import Map

_KEY = struct.Struct("=I")
_COUNTER = struct.Struct("=QQ")


@dataclass(frozen=True, slots=True)
class Count:
    """Packets with the same outcome and their bytes, Ethernet headers included."""

    packets: int
    bytes: int


def put_changed(held: Map, wanted: Mapping[bytes, bytes]) -> int:
    """Write the wanted entries that a map lacks or has otherwise; return how many. Raises BpfError."""
    actual = held.items()
    new = {key: value for key, value in wanted.items() if actual.get(key) != value}
    held.put_all(new)
    return len(new)


def remove_others(held: Map, wanted: Mapping[bytes, bytes]) -> int:
    """Delete all entries of a map but the wanted ones; return how many. Raises BpfError."""
    old = [key for key in held.items() if key not in wanted]
    held.remove_all(old)
    return len(old)


def counts(held: Map, reasons: Iterable[str]) -> dict[str, Count]:
    """Return packets and bytes by reason, the sum over all CPUs. Raises BpfError."""
    found = {}
    for number, reason in enumerate(reasons):
        values = list(_COUNTER.iter_unpack(held.get(_KEY.pack(number)) or b""))
        found[reason] = Count(sum(value[0] for value in values), sum(value[1] for value in values))
    return found


def no_counts(reasons: Iterable[str]) -> dict[str, Count]:
    """Return what is counted where there are no maps: nothing."""
    return dict.fromkeys(reasons, Count(0, 0))
