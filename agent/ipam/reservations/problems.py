"""Problems of reservations, as each node sees them in a snapshot: pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from agent.ip import Address, Subnet, address_name
from agent.ipam import blocks
from agent.ipam.reservations import rules
from agent.ipam.reservations.rules import LocalPods
from agent.model.cluster import ALWAYS_KEPT, IPPool, IPReservation, Snapshot
from agent.model.network import Network
from agent.model.problem import Problem

_NAME = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
OWNER = re.compile(f"{_NAME}/([A-Za-z0-9]+/)?{_NAME}")
"""`namespace/pod` or `namespace/Kind/name`."""


def misplaced(snapshot: Snapshot, networks: Iterable[Network], node: str) -> Iterator[Problem]:
    """Yield problems of reserved addresses that are a block's own, on the pod's node and on the block's."""
    for network in networks if snapshot.reservations else ():
        for name, held in sorted(snapshot.reservations.items()):
            found = rules.misplaced(snapshot, network, held) if held.network in ("", network.name) else None
            if found and node in (held.node, found[1]):
                where = f"block {found[0]} of node {found[1]}"
                what = f"{held.address} is the network, gateway or broadcast address of {where}"
                remedy = f"delete pod {held.pod} on node {held.node}, and let it ask for another address"
                if held.ahead:
                    remedy = f"reserve another address: kubectl delete ipreservation {name}"
                yield Problem(f"IPReservation {name}", what, remedy)


def useless(snapshot: Snapshot, networks: Iterable[Network], node: str) -> Iterator[Problem]:
    """Yield problems of addresses that persons reserved and that no pod can have, each on one node only."""
    every = sorted(snapshot.reservations.values(), key=rules.numerically)
    ahead = [held for held in every if held.ahead]
    if not ahead:
        return
    places = _places(snapshot, networks)
    first = _come_back_to(every, {network.name for network in networks})
    for held in ahead:
        what = _why_useless(held, snapshot, places)
        other = held if what else first.setdefault((held.owner, held.network), held)
        if other != held and held.owner.count("/") == 1:
            what = f"pod {held.owner} has {other.address} reserved, too, and gets only that one"
        if what and node == rules.heir(snapshot, held):
            yield Problem(f"IPReservation {held.name}", what, f"kubectl delete ipreservation {held.name}")


def _why_useless(held: IPReservation, snapshot: Snapshot, places: Iterable[Subnet]) -> str:
    """Return why no pod can have an address that a person reserved; empty if one can."""
    if not OWNER.fullmatch(held.owner):
        return f"its owner {held.owner!r:.80} is neither namespace/pod nor namespace/Kind/name"
    if held.address.version != 4:
        return "it is an IPv6 address, and only IPv4 addresses are reserved for pods"
    if not (any(blocks.contains(place, held.address) for place in places) or rules.home(snapshot, held.address)):
        return f"{held.address} is in no IPPool, no node's block and no network's subnet"
    if pool := next((pool for pool in snapshot.pools.values() if _leaves_out(pool, held.address)), None):
        return f"IPPool {pool.name} leaves {held.address} out (start, end, exclude or gateway)"
    return ""


def _come_back_to(every: Iterable[IPReservation], networks: set[str]) -> dict[tuple[str, str], IPReservation]:
    """Return by owner and network the reservations of persons that pods have used, and get again.

    A reservation without a network is for the only network; if there are several, it may be for another one.
    """
    had = [held for held in every if held.keep == ALWAYS_KEPT and not held.ahead]
    found = {(held.owner, held.network): held for held in had}
    return {**{(held.owner, ""): held for held in had}, **found} if len(networks) == 1 else found


def _places(snapshot: Snapshot, networks: Iterable[Network]) -> list[Subnet]:
    """Return the subnets and pools where addresses of pods may be, besides nodes' blocks."""
    subnets = [network.subnet for network in networks if network.subnet]
    return [*subnets, *(pool.cidr for pool in snapshot.pools.values())]


def _leaves_out(pool: IPPool, address: Address) -> bool:
    inside = blocks.contains(pool.cidr, address)
    return inside and any(blocks.contains(subnet, address) for subnet in blocks.left_out(pool))


def disputes(snapshot: Snapshot, here: LocalPods) -> Iterator[Problem]:
    """Yield problems of addresses that pods here have and that are reserved for other pods."""
    mine = {claim.address: claim for claim in here.claims}
    for address in here.used.keys() - here.busy if snapshot.reservations else ():
        held = snapshot.reservations.get(address_name(address))
        claim = mine.get(address)
        if held is None or (claim and rules.is_for_pod(held, claim)):
            continue
        there = held.in_use and held.node != here.node
        if there or held.ahead or held.keep == ALWAYS_KEPT:
            has = f", and pod {held.pod} on node {held.node} has it, too" if there else ""
            what = f"{address} is reserved for {held.owner}, but {here.used[address]} on this node has it{has}"
            yield Problem(f"IPReservation {held.name}", what, "delete the pod here, or the reservation")
