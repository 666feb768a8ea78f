"""The choice of addresses: no clock, no disk, no kernel. The address least recently used comes first."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.model import Address, Subnet


class ExhaustedError(Exception):
    """No address is free now; `wait` is the seconds until one has cooled, None when none is cooling."""

    def __init__(self, wait: float | None) -> None:
        super().__init__("no free address")
        self.wait = wait


class UnavailableError(Exception):
    """The very address that was asked for is in use, reserved or not in the range."""


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses of `block` from `first` to `last`, without those that are `excluded`."""

    block: Subnet
    first: int
    last: int
    excluded: frozenset[Address] = frozenset()

    @property
    def size(self) -> int:
        """How many addresses pods can have."""
        return max(0, self.last - self.first + 1 - len(self.excluded))

    def __contains__(self, address: Address) -> bool:
        within = address.version == self.block.version and self.first <= int(address) <= self.last
        return within and address not in self.excluded

    def at(self, number: int) -> Address:
        """The address whose value is `number`."""
        return ipaddress.IPv4Address(number) if self.block.version == 4 else ipaddress.IPv6Address(number)


def gateway(block: Subnet) -> Address:
    """The bridge's own address in a block: the first after the network's."""
    return block.network_address + 1


def usable(block: Subnet, start: Address | None = None, end: Address | None = None) -> Range:
    """What pods may have of a block, narrowed to [start, end] where the netconf says so."""
    first, last = int(block.network_address) + 2, int(block.broadcast_address)
    if block.version == 4:  # the last address of an IPv6 block is an ordinary one (RFC 4291, 2.6.1)
        last -= 1
    if start and start.version == block.version:
        first = max(first, int(start))
    if end and end.version == block.version:
        last = min(last, int(end))
    return Range(block, first, last)


def shared(block: Subnet, start: Address | None, end: Address | None, reserved: frozenset[Address]) -> Range:
    """What pods may have of a block on a subnet that they share with others: all but what is reserved."""
    first, last = int(block.network_address), int(block.broadcast_address)
    if start and start.version == block.version:
        first = max(first, int(start))
    if end and end.version == block.version:
        last = min(last, int(end))
    excluded = (a for a in reserved if a.version == block.version and first <= int(a) <= last)
    return Range(block, first, last, frozenset(excluded))


class Allocator:
    """Which addresses are in use and when the others were last: the same calls give the same answers."""

    def __init__(self, cool_down: float) -> None:
        self._cool_down = cool_down
        self._used: set[Address] = set()
        self._released: dict[Address, float] = {}  # oldest first
        self._fresh: dict[Range, int] = {}  # below it, none was never used
        self._withheld: frozenset[Address] = frozenset()

    @property
    def used(self) -> frozenset[Address]:
        """All addresses in use."""
        return frozenset(self._used)

    @property
    def released(self) -> Mapping[Address, float]:
        """When each free address that was ever used was released, the oldest first."""
        return self._released

    def restore(self, used: Iterable[Address], released: Sequence[tuple[Address, float]]) -> None:
        """Begin with what an earlier run knew: addresses in use, and (address, time of release)."""
        self._used = set(used)
        for address, when in sorted(released, key=lambda entry: entry[1]):
            if address not in self._used:
                self._released.pop(address, None)
                self._released[address] = when

    def withhold(self, addresses: frozenset[Address], now: float) -> None:
        """Give none of these to anybody who doesn't ask for it; those that no longer are cool from `now` on."""
        for address in self._withheld - addresses - self._used - self._released.keys():
            self._released[address] = now
        self._withheld = addresses

    def take(self, ranges: Sequence[Range], now: float) -> Address:
        """The address of these ranges that was used longest ago, or never; raises ExhaustedError."""
        for candidates in ranges:
            number = self._next_fresh(candidates)
            if number is not None:
                return self._mark(candidates.at(number))
        for address, when in self._released.items():
            if address not in self._withheld and any(address in candidates for candidates in ranges):
                left = self._cool_down - (now - when)
                if left > 0 and now >= when:  # a clock set back must not lock addresses up
                    raise ExhaustedError(left)
                return self._mark(address)
        raise ExhaustedError(None)

    def take_this(self, address: Address, ranges: Sequence[Range], *, withheld: bool = False) -> Address:
        """This very address, even one that is cooling (who asks for it knows); raises UnavailableError.

        One that is withheld only where `withheld` says that it is for who asks.
        """
        if not any(address in candidates for candidates in ranges):
            allowed = ", ".join(f"{r.at(r.first)}-{r.at(r.last)}" for r in ranges if r.size) or "none"
            raise UnavailableError(f"{address} is not an address for pods of this node; those are {allowed}")
        if address in self._used:
            raise UnavailableError(f"{address} is in use")
        if address in self._withheld and not withheld:
            raise UnavailableError(f"{address} is reserved (kubectl get ipreservations)")
        return self._mark(address)

    def release(self, address: Address, now: float) -> None:
        """Give an address back; it cools from `now` on."""
        if address in self._used:
            self._used.remove(address)
            self._released.pop(address, None)
            self._released[address] = now

    def counts(self, candidates: Range, now: float) -> tuple[int, int, int]:
        """How many addresses of a range are in use or withheld, cooling, and free."""
        used = sum(address in candidates for address in self._used | self._withheld)
        cooling = sum(
            a in candidates and a not in self._withheld and now - t < self._cool_down
            for a, t in self._released.items()
        )
        return used, cooling, candidates.size - used - cooling

    def _next_fresh(self, candidates: Range) -> int | None:
        number = self._fresh.get(candidates, candidates.first)
        while number <= candidates.last:
            address = candidates.at(number)
            if address in candidates and self._is_fresh(address):
                break
            number += 1
        self._fresh[candidates] = number
        return number if number <= candidates.last else None

    def _is_fresh(self, address: Address) -> bool:
        return not any(address in known for known in (self._used, self._released, self._withheld))

    def _mark(self, address: Address) -> Address:
        self._released.pop(address, None)
        self._used.add(address)
        return address
