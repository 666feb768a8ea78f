"""Which pod may have a reserved address, which node has to agree, and what a node does about its own. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from agent.cluster.object_fields import rfc3339
from agent.ip import Address, Subnet, address_name
from agent.ipam import block_index, blocks
from agent.model.cluster import ALWAYS_KEPT, WHILE_POD, IPPool, IPReservation, Snapshot
from agent.model.network import Network
from agent.model.problem import Problem


@dataclass(frozen=True, slots=True)
class Claim:
    """An address that a pod has, or wants, as a reserved one."""

    address: Address
    owner: str
    pod: str
    node: str
    network: str
    keep: str = ""
    """WHILE_POD: nobody asked for it to stay, and it is reserved only while it is in none of the node's blocks."""


@dataclass(frozen=True, slots=True)
class LocalPods:
    """What a node knows of its own pods."""

    node: str
    used: Mapping[Address, str] = field(default_factory=dict)
    """Their addresses, and whose they are."""
    claims: frozenset[Claim] = frozenset()
    """Those of the addresses that are reserved, or that have to be while they are outside."""
    busy: Set[Address] = frozenset()
    """What an ADD is at work on: left alone."""
    outside: Set[Address] = frozenset()
    """Those of the addresses that are in none of the node's blocks, though nobody asked for that."""


@dataclass(frozen=True, slots=True)
class Delete:
    """A reservation to delete, as nobody needs it any more."""

    reservation: IPReservation


@dataclass(frozen=True, slots=True)
class Update:
    """A reservation to update."""

    reservation: IPReservation


Step = Delete | Update

_NAME = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
OWNER = re.compile(f"{_NAME}/([A-Za-z0-9]+/)?{_NAME}")
"""`namespace/pod` or `namespace/Kind/name`."""


class RefusedError(Exception):
    """Another owner has the address; says which one, since when, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def claimed(held: IPReservation | None, claim: Claim, asks: str, now: datetime, keep: timedelta) -> IPReservation:
    """Return the reservation as it is once the claim is made; `held` is what there is. Raises RefusedError.

    A pod of the same name may take it over, as two pods never have one name at a time; another pod of the same
    owner when it was given back; anybody when it has also been kept for its time.
    """
    mine = IPReservation(
        claim.address,
        claim.owner,
        claim.pod,
        claim.node,
        claim.network,
        now.replace(microsecond=0),
        asks=asks,
        keep=claim.keep,
    )
    if held is None:
        return mine
    same = held.owner == claim.owner and held.network in ("", claim.network)
    if same and (held.ahead or held.pod == claim.pod or held.released):
        if held.ahead or held.keep == ALWAYS_KEPT:  # who made it deletes it
            mine = replace(mine, keep=ALWAYS_KEPT)
    elif held.ahead or (held.released and held.keep == ALWAYS_KEPT):
        remedy = f"ask for another address, or end it: kubectl delete ipreservation {held.name}"
        network = f" on network {held.network}" if held.network else ""
        raise RefusedError(f"{held.address} is reserved for {held.owner}{network} by a person", remedy)
    elif held.released is None:
        what = f"{held.address} is reserved for {held.owner}: pod {held.pod} on node {held.node} has it"
        since = f" since {rfc3339(held.since)}" if held.since else ""
        raise RefusedError(f"{what}{since}", "delete that pod, or ask for another address")
    elif not is_over(held, now, keep):
        what = f"{held.address} is kept for {held.owner} until {rfc3339(held.released + keep)}"
        remedy = f"wait, ask for another, or end it: kubectl delete ipreservation {held.name}"
        raise RefusedError(f"{what}: pod {held.pod} had it", remedy)
    # who had to agree to this reservation once need not agree again: nobody else was given the address since
    asks = asks if held.asks or held.ahead else ""
    return replace(mine, asks=asks, resource_version=held.resource_version)


def _is_for(held: IPReservation, claim: Claim) -> bool:
    """Return whether an address is reserved for the pod that has it."""
    return claim.owner == held.owner and held.pod in ("", claim.pod) and held.network in ("", claim.network)


def is_over(held: IPReservation, now: datetime, keep: timedelta) -> bool:
    """Return whether a reservation has outlived its pod for long enough."""
    return held.released is not None and held.keep != ALWAYS_KEPT and now >= held.released + keep


def of_owner(
    reservations: Iterable[IPReservation], owner: str, network: str, pod: str = ""
) -> list[IPReservation]:
    """Return the addresses that the owner may come back to: first those that its pod can have, then persons'."""

    def order(held: IPReservation) -> tuple[bool, bool, bool, int, int]:
        free = held.ahead or held.released is not None or held.pod == pod
        by_hand = held.ahead or held.keep == ALWAYS_KEPT
        return not free, not by_hand, held.pod != pod, *_numerically(held)

    mine = (r for r in reservations if r.owner == owner and r.network in ("", network))
    kept = (r for r in mine if r.keep == ALWAYS_KEPT or (r.keep != WHILE_POD and not r.asks))
    return sorted(kept, key=order)


def home(snapshot: Snapshot, address: Address) -> tuple[Subnet, str] | None:
    """Return the block that an address lies in, and its node; None: no node has it."""
    return block_index.of(snapshot).find(address)


def roaming(snapshot: Snapshot, network: Network, node: str) -> Iterator[IPReservation]:
    """Yield the addresses of other nodes' pods that are in none of their node's blocks."""
    if not snapshot.reservations:
        return
    by_node: dict[str, list[Subnet]] = {}
    for block, owner in block_index.of(snapshot).owners.items():
        by_node.setdefault(owner, []).append(block)
    for _name, held in sorted(snapshot.reservations.items()):
        if held.in_use and held.network == network.name and held.node != node and held.node in snapshot.nodes:
            alone = blocks.single(held.address)
            inside = blocks.within(alone, network.subnet)
            foreign = not any(held.address in block for block in by_node.get(held.node, ()))
            if inside and foreign and misplaced(snapshot, network, held) is None:
                yield held


def misplaced(snapshot: Snapshot, network: Network, held: IPReservation) -> tuple[Subnet, str] | None:
    """Return the block, and its node, whose network, gateway or broadcast address is reserved; else None."""
    found = home(snapshot, held.address)
    return found if found and held.address in blocks.not_for_pods(found[0], network) else None


def wrong(snapshot: Snapshot, networks: Iterable[Network], node: str) -> Iterator[Problem]:
    """Yield problems of reservations that no pod may have by now, for the pod's node and for the block's."""
    for network in networks if snapshot.reservations else ():
        for name, held in sorted(snapshot.reservations.items()):
            found = misplaced(snapshot, network, held) if held.network in ("", network.name) else None
            if found and node in (held.node, found[1]):
                where = f"block {found[0]} of node {found[1]}"
                what = f"{held.address} is the network, gateway or broadcast address of {where}"
                remedy = f"delete pod {held.pod} on node {held.node}, and let it ask for another address"
                if held.ahead:
                    remedy = f"reserve another address: kubectl delete ipreservation {name}"
                yield Problem(f"IPReservation {name}", what, remedy)


def useless(snapshot: Snapshot, networks: Iterable[Network], node: str) -> Iterator[Problem]:
    """Yield problems of addresses that persons reserved and no pod can have, each on one node."""
    every = sorted(snapshot.reservations.values(), key=_numerically)
    ahead = [held for held in every if held.ahead]
    if not ahead:
        return
    places = _places(snapshot, networks)
    first = _come_back_to(every, {network.name for network in networks})
    for held in ahead:
        what = ""
        if not OWNER.fullmatch(held.owner):
            what = f"its owner {held.owner!r:.80} is neither namespace/pod nor namespace/Kind/name"
        elif held.address.version != 4:
            what = "it is an IPv6 address, and only IPv4 addresses are reserved for pods"
        elif not (any(blocks.contains(p, held.address) for p in places) or home(snapshot, held.address)):
            what = f"{held.address} is in no IPPool, no node's block and no network's subnet"
        elif barred := next((p for p in snapshot.pools.values() if _barred(p, held.address)), None):
            what = f"IPPool {barred.name} leaves {held.address} out (start, end, exclude or gateway)"
        elif (other := first.setdefault((held.owner, held.network), held)) != held and held.owner.count("/") == 1:
            what = f"pod {held.owner} has {other.address} reserved, too, and gets only that one"
        if what and node == _heir(snapshot, held):
            yield Problem(f"IPReservation {held.name}", what, f"kubectl delete ipreservation {held.name}")


def _numerically(held: IPReservation) -> tuple[int, int]:
    return held.address.version, int(held.address)


def _come_back_to(every: Iterable[IPReservation], networks: set[str]) -> dict[tuple[str, str], IPReservation]:
    """Return what persons reserved and pods have had, by owner and network: the pods come back to it.

    A reservation without a network is for the only one; where there are several, it may be for another.
    """
    had = [held for held in every if held.keep == ALWAYS_KEPT and not held.ahead]
    found = {(held.owner, held.network): held for held in had}
    return {**{(held.owner, ""): held for held in had}, **found} if len(networks) == 1 else found


def _places(snapshot: Snapshot, networks: Iterable[Network]) -> list[Subnet]:
    """Return where addresses of pods may be besides nodes' blocks, as far as this node knows."""
    subnets = [network.subnet for network in networks if network.subnet]
    return [*subnets, *(pool.cidr for pool in snapshot.pools.values())]


def _barred(pool: IPPool, address: Address) -> bool:
    inside = blocks.contains(pool.cidr, address)
    return inside and any(blocks.contains(subnet, address) for subnet in blocks.left_out(pool))


def disputes(snapshot: Snapshot, here: LocalPods) -> Iterator[Problem]:
    """Yield problems of addresses that pods here have and that are reserved for other pods."""
    mine = {claim.address: claim for claim in here.claims}
    for address in here.used.keys() - here.busy if snapshot.reservations else ():
        held = snapshot.reservations.get(address_name(address))
        claim = mine.get(address)
        if held is None or (claim and _is_for(held, claim)):
            continue
        there = held.in_use and held.node != here.node
        if there or held.ahead or held.keep == ALWAYS_KEPT:
            has = f", and pod {held.pod} on node {held.node} has it, too" if there else ""
            what = f"{address} is reserved for {held.owner}, but {here.used[address]} on this node has it{has}"
            yield Problem(f"IPReservation {held.name}", what, "delete the pod here, or the reservation")


def steps(snapshot: Snapshot, here: LocalPods, now: datetime, keep: timedelta) -> Iterator[Step]:
    """Yield what this node does about reservations: its own, those it is asked about, those of gone nodes."""
    mine = {claim.address: claim for claim in here.claims}
    for held in snapshot.reservations.values():
        claim = mine.get(held.address)
        if held.ahead:  # a person's, until its pod comes; or it was there before
            if claim and _is_for(held, claim) and held.address not in here.busy:
                yield Update(claimed(held, claim, node_to_ask(snapshot, held.address, here.node), now, keep))
        elif held.node == here.node:
            if held.address not in here.busy:
                if claim and (claim.owner, claim.pod) == (held.owner, held.pod):
                    yield from _used(snapshot, held, claim)
                else:
                    yield from _left(held, now, keep, at_once=held.keep == WHILE_POD)
        elif held.asks == here.node and (not held.refused or held.keep == WHILE_POD):
            user = here.used.get(held.address)
            refused = f"{user} on node {here.node} has it" if user else ""
            answered = replace(held, asks=here.node if refused else "", refused=refused)
            if answered != held:  # a pod that has its address already is not asked to go, so it is looked at again
                yield Update(answered)
        elif held.node not in snapshot.nodes and here.node == _heir(snapshot, held):
            yield from _left(held, now, keep, at_once=False)  # its pods may run on, and the Node come back


def lost(snapshot: Snapshot, here: LocalPods, now: datetime) -> Iterator[IPReservation]:
    """Yield reservations to create: one was deleted, or the address is in no block of its node any more."""
    for claim in here.claims:
        wanted = claim.keep != WHILE_POD or claim.address in here.outside
        if wanted and claim.address not in here.busy and address_name(claim.address) not in snapshot.reservations:
            yield claimed(None, claim, node_to_ask(snapshot, claim.address, here.node), now, timedelta())


def _used(snapshot: Snapshot, held: IPReservation, claim: Claim) -> Iterator[Step]:
    """Yield the step for a reservation of this node whose pod is here."""
    found = home(snapshot, held.address)
    if held.keep == claim.keep == WHILE_POD and found and found[1] == held.node:
        yield Delete(held)  # the address is in a block of the node again
        return
    asks = held.asks
    if asks and asks not in snapshot.nodes:
        asks = node_to_ask(snapshot, held.address, held.node)
    # it was released while the datastore could not be told, or while this node had no Node object
    wanted = replace(held, released=None, asks=asks, refused=held.refused if asks == held.asks else "")
    if wanted != held:
        yield Update(wanted)


def _left(held: IPReservation, now: datetime, keep: timedelta, *, at_once: bool) -> Iterator[Step]:
    """Yield the step for a reservation that no pod has any more."""
    if at_once or (held.asks and held.keep != ALWAYS_KEPT) or is_over(held, now, keep):
        yield Delete(held)
    elif held.released is None:
        yield Update(replace(held, released=now.replace(microsecond=0)))


def node_to_ask(snapshot: Snapshot, address: Address, node: str) -> str:
    """Return the live node whose block has an address that a pod of `node` claims: it has to agree."""
    found = home(snapshot, address)
    return found[1] if found and found[1] in snapshot.nodes and found[1] != node else ""


def _heir(snapshot: Snapshot, held: IPReservation) -> str:
    """Return the node that handles reservations of a gone node: the block's node, or the first by name."""
    found = home(snapshot, held.address)
    return found[1] if found and found[1] in snapshot.nodes else min(snapshot.nodes, default="")
