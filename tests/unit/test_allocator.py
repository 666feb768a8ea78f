"""The allocator: no address twice, the one unused for longest first, and none before it has cooled."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.ip import Address
from agent.ipam.allocator import REMEMBERED, Allocator, ExhaustedError, UnavailableError, gateway, usable
from tests.support import ip
from tests.unit.properties import examples

BLOCK = ipaddress.ip_network("10.244.1.0/29")
RANGE = usable(BLOCK)
COOL = 10.0


def test_network_gateway_and_broadcast_are_reserved() -> None:
    assert gateway(BLOCK) == ip("10.244.1.1")
    assert gateway(ipaddress.ip_network("255.255.255.255/32")) == ip("255.255.255.255")
    assert [str(RANGE.at(n)) for n in range(RANGE.first, RANGE.last + 1)] == [f"10.244.1.{n}" for n in range(2, 7)]
    v6 = usable(ipaddress.ip_network("fd00::/125"))
    assert (str(v6.at(v6.first)), str(v6.at(v6.last)), v6.size) == ("fd00::2", "fd00::7", 6)
    assert usable(ipaddress.ip_network("10.0.0.0/31")).size == 0


def test_a_range_narrows_the_block() -> None:
    narrow = usable(BLOCK, ip("10.244.1.4"), ip("10.244.1.200"))
    assert (narrow.first, narrow.last) == (int(ip("10.244.1.4")), int(ip("10.244.1.6")))
    assert usable(BLOCK, ip("10.244.2.1"), ip("10.244.2.9")).size == 0
    assert usable(BLOCK, ip("10.244.1.0"), ip("10.244.1.7")) == RANGE


def test_what_is_withheld_is_in_no_range() -> None:
    barred = ("10.244.1.3/32", "10.244.0.0/30", "fd00::/64", "10.244.1.4/31")
    there = usable(BLOCK, None, None, map(ipaddress.ip_network, barred))
    assert there.gaps == ((int(ip("10.244.1.3")), int(ip("10.244.1.5"))),)
    assert [str(a) for a in BLOCK if a in there] == ["10.244.1.2", "10.244.1.6"]
    allocator = Allocator(COOL)
    assert [str(allocator.take([there], 0)) for _ in range(2)] == ["10.244.1.2", "10.244.1.6"]
    with pytest.raises(UnavailableError, match="not an address for pods"):
        allocator.take_this(ip("10.244.1.4"), [there])
    assert str(allocator.take([RANGE], 0)) == "10.244.1.3", "once it is no longer reserved, it is given"


def test_a_vast_gap_is_passed_at_once() -> None:
    there = usable(ipaddress.ip_network("fd00::/64"), None, None, [ipaddress.ip_network("fd00::/65")])
    assert str(Allocator(COOL).take([there], 0)) == "fd00::8000:0:0:0"


def test_pods_that_come_and_go_in_a_vast_block_leave_nothing_behind() -> None:
    """Each pod had another address of the node's /64, and all of them were remembered until the node's reboot."""
    allocator, there, now = Allocator(COOL), usable(ipaddress.ip_network("fd00::/64")), 0.0
    for _ in range(2 * REMEMBERED):
        address = allocator.take([there], now)
        allocator.release(address, now)
        now += 1
    assert len(allocator.released) == REMEMBERED
    assert address in allocator.released


def test_who_asks_for_what_is_set_aside_gets_it() -> None:
    allocator, address = Allocator(0), ip("10.244.1.2")
    assert allocator.take([RANGE], 0) == address
    allocator.release(address, 0)
    allocator.quarantine(address, 0, 50)
    others = [allocator.take([RANGE], 1) for _ in range(RANGE.size - 1)]
    assert address not in others
    with pytest.raises(ExhaustedError):
        allocator.take([RANGE], 49)
    assert allocator.take_this(address, [RANGE]) == address
    allocator.quarantine(address, 0, 50)
    assert address in allocator.used, "what somebody has is not taken from him"


def test_an_exhausted_range_says_when_the_next_address_has_cooled() -> None:
    allocator = Allocator(COOL)
    taken = [allocator.take([RANGE], 0) for _ in range(RANGE.size)]
    with pytest.raises(ExhaustedError) as caught:
        allocator.take([RANGE], 0)
    assert caught.value.wait is None
    allocator.release(taken[3], 100)
    with pytest.raises(ExhaustedError) as caught:
        allocator.take([RANGE], 104)
    assert caught.value.wait == 6
    assert allocator.take([RANGE], 110) == taken[3]


def test_a_clock_set_back_locks_nothing_up() -> None:
    allocator = Allocator(COOL)
    for _ in range(RANGE.size):
        allocator.take([RANGE], 1000)
    allocator.release(ip("10.244.1.2"), 1000)
    assert allocator.take([RANGE], 5) == ip("10.244.1.2")


def test_an_address_asked_for() -> None:
    allocator = Allocator(COOL)
    assert allocator.take_this(ip("10.244.1.5"), [RANGE]) == ip("10.244.1.5")
    for address, why in (
        ("10.244.1.5", "in use"),
        ("10.244.1.1", "not an address for pods"),
        ("10.9.9.9", "not an"),
    ):
        with pytest.raises(UnavailableError, match=why):
            allocator.take_this(ip(address), [RANGE])
    allocator.release(ip("10.244.1.5"), 0)
    assert allocator.take_this(ip("10.244.1.5"), [RANGE]), "who asks for it by name need not wait"


class Model(RuleBasedStateMachine):
    """Against the simplest thing that could be right: a list of addresses by the time of their last use."""

    remembered = REMEMBERED

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(COOL, self.remembered)
        self.now = 1000.0
        self.used: set[Address] = set()
        self.quarantined: dict[Address, float] = {}
        self.idle: list[tuple[float, Address]] = [
            (float("-inf"), RANGE.at(n)) for n in range(RANGE.first, RANGE.last + 1)
        ]

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        ready = [
            (when, a)
            for when, a in self.idle
            if self.now - when >= COOL and self.quarantined.get(a, 0) <= self.now
        ]
        if not ready:
            with pytest.raises(ExhaustedError):
                self.allocator.take([RANGE], self.now)
            return
        address = self.allocator.take([RANGE], self.now)
        oldest = min(when for when, _ in ready)
        assert (oldest, address) in ready
        self.idle.remove((oldest, address))
        self.used.add(address)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.used)))
        self.allocator.release(address, self.now)
        self.used.remove(address)
        self.idle.append((self.now, address))
        self.now += 0.001  # no two at one moment, so that the oldest is one

    @precondition(lambda self: self.used)
    @rule(data=st.data(), seconds=st.floats(1, 40))
    def quarantine(self, data: st.DataObject, seconds: float) -> None:
        address = data.draw(st.sampled_from(sorted(self.used)))
        self.allocator.release(address, self.now)
        self.allocator.quarantine(address, self.now, self.now + seconds)
        self.used.remove(address)
        self.idle.append((self.now, address))
        self.quarantined[address] = self.now + seconds
        self.now += 0.001

    @rule()
    def restart(self) -> None:
        fresh = Allocator(COOL, self.remembered)
        fresh.restore(self.allocator.used, list(self.allocator.released.items()))
        self.allocator = fresh
        self.quarantined = {}  # they are looked at again when they are given

    @invariant()
    def agrees(self) -> None:
        assert self.allocator.used == self.used
        used, cooling, free = self.allocator.counts(RANGE, self.now)
        assert (used, used + cooling + free) == (len(self.used), RANGE.size)
        ready = [a for when, a in self.idle if self.now - when >= COOL and self.quarantined.get(a, 0) <= self.now]
        assert free == len(ready)


class Forgetful(Model):
    """The same where little is remembered: none is given before it has cooled, and none is lost."""

    remembered = 2

    @rule()
    def take(self) -> None:
        ready = {a for when, a in self.idle if self.now - when >= COOL and self.quarantined.get(a, 0) <= self.now}
        if not ready:
            with pytest.raises(ExhaustedError):
                self.allocator.take([RANGE], self.now)
            return
        address = self.allocator.take([RANGE], self.now)
        assert address in ready
        self.idle = [(when, a) for when, a in self.idle if a != address]
        self.used.add(address)


Forgetful.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
TestForgetful = Forgetful.TestCase
Model.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
TestModel = Model.TestCase


def test_what_is_withheld_is_given_only_to_who_asks_for_it_as_its_own() -> None:
    allocator = Allocator(COOL)
    allocator.set_reserved(frozenset({ip("10.244.1.2"), ip("10.244.1.4")}), 0)
    assert [str(allocator.take([RANGE], 0)) for _ in range(3)] == ["10.244.1.3", "10.244.1.5", "10.244.1.6"]
    with pytest.raises(ExhaustedError) as caught:
        allocator.take([RANGE], 0)
    assert caught.value.wait is None
    with pytest.raises(UnavailableError, match="is reserved"):
        allocator.take_this(ip("10.244.1.2"), [RANGE])
    allocator.take_this(ip("10.244.1.2"), [RANGE], reserved=True)
    assert allocator.counts(RANGE, 0) == (5, 0, 0)
    allocator.release(ip("10.244.1.2"), 1)
    with pytest.raises(ExhaustedError) as caught:
        allocator.take([RANGE], 100)
    assert caught.value.wait is None


def test_what_is_no_longer_withheld_cools_and_then_comes_back() -> None:
    allocator = Allocator(COOL)
    allocator.set_reserved(frozenset({ip("10.244.1.2")}), 0)
    for _ in range(4):
        allocator.take([RANGE], 0)
    allocator.set_reserved(frozenset(), 5)
    with pytest.raises(ExhaustedError) as caught:
        allocator.take([RANGE], 6)
    assert caught.value.wait == COOL - 1
    assert allocator.take([RANGE], 5 + COOL) == ip("10.244.1.2")
