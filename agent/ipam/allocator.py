"""Choose addresses, the least recently used first. It uses no clock, disk or kernel."""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.ip import Address, Subnet

RANGES_KEPT = 64
REMEMBERED = 4096  # released addresses whose time of release is kept; without a limit a /64 would keep all


class ExhaustedError(Exception):
    """No address is free; `wait` is the seconds until one has cooled, None if none is cooling."""

    version = 4
    """The IP version of the address, if addresses of several versions were requested."""

    def __init__(self, wait: float | None) -> None:
        super().__init__("no free address")
        self.wait = wait


class UnavailableError(Exception):
    """The requested address is in use, reserved or not in the range."""


class InUseError(UnavailableError):
    """A pod of this node has the address."""


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses of `block` from `first` to `last`, without those in `gaps`."""

    block: Subnet
    first: int
    last: int
    gaps: tuple[tuple[int, int], ...] = field(default=(), hash=False)  # may be long, and seldom makes a difference
    """The first and last number of each part that no pod gets, ascending and without overlap."""

    @property
    def size(self) -> int:
        """The number of addresses that pods can have."""
        return max(0, self.last - self.first + 1 - sum(high - low + 1 for low, high in self.gaps))

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        within = address.version == self.block.version and self.first <= number <= self.last
        return within and self.past_gap(number) == number

    def past_gap(self, number: int) -> int:
        """Return the number, or the first one after the gap that it is in."""
        position = bisect.bisect_left(self.gaps, (number + 1, 0)) - 1
        return max(number, self.gaps[position][1] + 1) if position >= 0 else number

    def at(self, number: int) -> Address:
        """Return the address whose value is `number`."""
        return ipaddress.IPv4Address(number) if self.block.version == 4 else ipaddress.IPv6Address(number)


def gateway(block: Subnet) -> Address:
    """Return the bridge's own address in a block: the one after the network's address."""
    return block.network_address + (block.num_addresses > 1)  # a block of one address has no other


def usable(
    block: Subnet, start: Address | None = None, end: Address | None = None, excluded: Iterable[Subnet] = ()
) -> Range:
    """Return the range for pods in a block that is routed to its node: from `start` to `end`, and not excluded."""
    first, last = int(block.network_address) + 2, int(block.broadcast_address)
    if block.version == 4:  # the last address of an IPv6 block is an ordinary one (RFC 4291, 2.6.1)
        last -= 1
    return _narrowed(Range(block, first, last), start, end, excluded)


def shared(block: Subnet, start: Address | None, end: Address | None, excluded: Iterable[Subnet]) -> Range:
    """Return the range for pods in a subnet that they share with others: there each address is an ordinary one."""
    whole = Range(block, int(block.network_address), int(block.broadcast_address))
    return _narrowed(whole, start, end, excluded)


def _narrowed(whole: Range, start: Address | None, end: Address | None, excluded: Iterable[Subnet]) -> Range:
    first, last, version = whole.first, whole.last, whole.block.version
    if start and start.version == version:
        first = max(first, int(start))
    if end and end.version == version:
        last = min(last, int(end))
    gaps = spans(subnet for subnet in excluded if subnet.version == version)
    clipped = ((max(low, first), min(high, last)) for low, high in gaps)
    return Range(whole.block, first, last, tuple((low, high) for low, high in clipped if low <= high))


def spans(subnets: Iterable[Subnet]) -> list[tuple[int, int]]:
    """Return first and last number of each part that subnets of one IP version cover, ascending and apart."""
    found: list[tuple[int, int]] = []
    for low, high in sorted((int(s.network_address), int(s.broadcast_address)) for s in subnets):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


class Allocator:
    """Knows the addresses in use, and when others were released. The same calls give the same answers."""

    def __init__(self, cool_down: float, remembered: int = REMEMBERED) -> None:
        """`remembered`: how many released addresses keep their time of release, besides those that still cool."""
        self._cool_down = cool_down
        self._remembered = remembered
        self._forgotten = False
        """Whether releases were forgotten: these addresses count as never used, but come after all others."""
        self._used: set[Address] = set()
        self._released: dict[Address, float] = {}  # oldest first
        self._quarantined: dict[Address, float] = {}  # until when
        self._fresh: dict[Range, int] = {}  # all addresses below this number were used before
        self._reserved: frozenset[Address] = frozenset()

    @property
    def used(self) -> frozenset[Address]:
        """Return all addresses in use."""
        return frozenset(self._used)

    @property
    def released(self) -> Mapping[Address, float]:
        """Return when each free address that was ever used was released, the oldest first."""
        return self._released

    def restore(self, used: Iterable[Address], released: Sequence[tuple[Address, float]]) -> None:
        """Start with the state of an earlier run: addresses in use, and addresses with their time of release."""
        self._used = set(used)
        for address, when in sorted(released, key=lambda entry: entry[1]):
            if address not in self._used:
                self._released.pop(address, None)
                self._released[address] = when

    def hold(self, addresses: Iterable[Address]) -> None:
        """Count these addresses as in use."""
        for address in addresses:
            self._mark(address)

    def set_reserved(self, addresses: frozenset[Address], now: float) -> None:
        """Reserve these addresses; those that are no longer reserved cool from `now` on."""
        for address in self._reserved - addresses - self._used - self._released.keys():
            self._released[address] = now
        self._reserved = addresses

    def any_reserved(self, addresses: Iterable[Address]) -> bool:
        """Return whether any of these addresses is reserved."""
        return any(address in self._reserved for address in addresses)

    def take(self, ranges: Sequence[Range], now: float) -> Address:
        """Take an address that was never used, else the one released first. Raises ExhaustedError."""
        address = self._never_used(ranges)
        if address is None and self._forgotten:
            self._fresh.clear()  # search from the beginning, where forgotten addresses are
            self._forgotten = False
            address = self._never_used(ranges)
        if address is not None:
            return self._mark(address)
        for address, when in self._released.items():
            if self._may_give(address, now) and any(address in candidates for candidates in ranges):
                left = self._cool_down - (now - when)
                if left > 0 and now >= when:  # a clock set back must not lock addresses up
                    raise ExhaustedError(left)
                return self._mark(address)
        raise ExhaustedError(None)

    def take_this(self, address: Address, ranges: Sequence[Range], *, reserved: bool = False) -> Address:
        """Take this very address, also one that is cooling. Raises UnavailableError.

        A reserved address is taken only if `reserved` says that the pod may have reserved ones.
        """
        if not any(address in candidates for candidates in ranges):
            allowed = ", ".join(f"{r.at(r.first)}-{r.at(r.last)}" for r in ranges if r.size) or "none"
            raise UnavailableError(f"{address} is not an address for pods of this node; those are {allowed}")
        if address in self._used:
            raise InUseError(f"{address} is in use")
        if address in self._reserved and not reserved:
            raise UnavailableError(f"{address} is reserved (kubectl get ipreservations)")
        return self._mark(address)

    def release(self, address: Address, now: float) -> None:
        """Release an address; it cools from `now` on."""
        if address in self._used:
            self._used.remove(address)
            self._released.pop(address, None)
            self._released[address] = now
            self._forget(now)

    def quarantine(self, address: Address, now: float, until: float) -> None:
        """Assign a free address that another machine uses only to a pod that requests it, until `until`."""
        self._quarantined = {other: end for other, end in self._quarantined.items() if end > now}
        if address not in self._used:
            self._quarantined[address] = until

    def counts(self, candidates: Range, now: float) -> tuple[int, int, int]:
        """Return how many addresses of a range are in use or reserved, cooling or quarantined, and free."""
        used = sum(address in candidates for address in self._used | self._reserved)
        cooling = sum(
            address in candidates
            and address not in self._reserved
            and (now - when < self._cool_down or self._quarantined.get(address, now) > now)
            for address, when in self._released.items()
        )
        return used, cooling, candidates.size - used - cooling

    def _forget(self, now: float) -> None:
        """Forget the oldest releases beyond the limit, but none that still cools or is quarantined."""
        while len(self._released) > self._remembered:
            oldest, when = next(iter(self._released.items()))
            if now < when + self._cool_down or self._quarantined.get(oldest, now) > now:
                return
            del self._released[oldest]
            self._forgotten = True

    def _never_used(self, ranges: Sequence[Range]) -> Address | None:
        for candidates in ranges:
            number = self._next_fresh(candidates)
            if number is not None:
                return candidates.at(number)
        return None

    def _next_fresh(self, candidates: Range) -> int | None:
        number = self._fresh.get(candidates, candidates.first)
        while (number := candidates.past_gap(number)) <= candidates.last:
            address = candidates.at(number)
            if self._is_fresh(address):
                break
            number += 1
        if len(self._fresh) >= RANGES_KEPT:  # a lost entry only costs time
            self._fresh.clear()
        self._fresh[candidates] = number
        return number if number <= candidates.last else None

    def _may_give(self, address: Address, now: float) -> bool:
        """Return whether a pod that does not request this address may have it."""
        return address not in self._reserved and self._quarantined.get(address, now) <= now

    def _is_fresh(self, address: Address) -> bool:
        return not any(address in known for known in (self._used, self._released, self._reserved))

    def _mark(self, address: Address) -> Address:
        self._released.pop(address, None)
        self._quarantined.pop(address, None)
        self._used.add(address)
        return address
