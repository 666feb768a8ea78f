"""Who may have a reserved address, who has to agree, and what a node does about its own: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from agent.cluster.objects import rfc3339
from agent.ipam import blocks
from agent.model import Address, IPReservation, Network, Problem, Snapshot, Subnet, address_name


@dataclass(frozen=True, slots=True)
class Claim:
    """An address that a pod wants to be its own, or has as its own."""

    address: Address
    owner: str
    pod: str
    node: str
    network: str


@dataclass(frozen=True, slots=True)
class Here:
    """What a node knows of its own pods."""

    node: str
    used: Mapping[Address, str] = field(default_factory=dict)
    """Their addresses, and whose they are."""
    claims: frozenset[Claim] = frozenset()
    """Those of the addresses that are reserved."""
    busy: Set[Address] = frozenset()
    """What an ADD is at work on: left alone."""


@dataclass(frozen=True, slots=True)
class Delete:
    """A reservation that nobody needs any more."""

    reservation: IPReservation


@dataclass(frozen=True, slots=True)
class Update:
    """A reservation that has to say something else."""

    reservation: IPReservation


Step = Delete | Update


class RefusedError(Exception):
    """Somebody else has the address: who, since when, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def claimed(held: IPReservation | None, claim: Claim, asks: str, now: datetime, keep: timedelta) -> IPReservation:
    """The reservation as it is once the claim is made; `held` is what there is. Raises RefusedError.

    A pod of the same name may take it over, as two pods never have one name at a time; another pod of the same
    owner when it was given back; anybody when it has also been kept for its time.
    """
    mine = IPReservation(
        claim.address, claim.owner, claim.pod, claim.node, claim.network, now.replace(microsecond=0), asks=asks
    )
    if held is None:
        return mine
    same = held.owner == claim.owner and held.network == claim.network
    if same and (held.pod == claim.pod or held.released):
        pass
    elif held.released is None:
        what = f"{held.address} is reserved for {held.owner}: pod {held.pod} on node {held.node} has it"
        raise RefusedError(f"{what} since {rfc3339(held.since)}", "delete that pod, or ask for another address")
    elif not is_over(held, now, keep):
        what = f"{held.address} is kept for {held.owner} until {rfc3339(held.released + keep)}"
        remedy = f"wait, ask for another, or end it: kubectl delete ipreservation {held.name}"
        raise RefusedError(f"{what}: pod {held.pod} had it", remedy)
    # who had to agree to this reservation once need not agree again: nobody else was given the address since
    return replace(mine, asks=asks if held.asks else "", resource_version=held.resource_version)


def is_over(held: IPReservation, now: datetime, keep: timedelta) -> bool:
    """Whether a reservation has outlived its pod for long enough."""
    return held.released is not None and now >= held.released + keep


def of_owner(reservations: Iterable[IPReservation], owner: str, network: str) -> list[IPReservation]:
    """The addresses that the owner may come back to, in their order."""
    mine = (r for r in reservations if (r.owner, r.network) == (owner, network) and not r.asks)
    return sorted(mine, key=lambda r: (r.address.version, int(r.address)))


def owners(snapshot: Snapshot) -> dict[Subnet, str]:
    """Every node's blocks."""
    found: dict[Subnet, str] = {block.cidr: block.node for block in snapshot.blocks.values()}
    for node in snapshot.nodes.values():
        found.update(dict.fromkeys(node.blocks, node.name))
    return found


def home(snapshot: Snapshot, address: Address) -> tuple[Subnet, str] | None:
    """The block that an address lies in, and its node; None: it is in nobody's."""
    found = ((block, node) for block, node in owners(snapshot).items() if address in block)
    return max(found, key=lambda entry: entry[0].prefixlen, default=None)


def away(snapshot: Snapshot, network: Network, node: str) -> Iterator[IPReservation]:
    """Addresses that pods of other nodes have though they are not in their nodes' blocks."""
    if not snapshot.reservations:
        return
    by_node: dict[str, list[Subnet]] = {}
    for block, owner in owners(snapshot).items():
        by_node.setdefault(owner, []).append(block)
    for _name, held in sorted(snapshot.reservations.items()):
        if held.in_use and held.network == network.name and held.node != node and held.node in snapshot.nodes:
            alone = blocks.single(held.address)
            inside = blocks.within(alone, network.subnet)
            foreign = not any(held.address in block for block in by_node.get(held.node, ()))
            if inside and foreign and misplaced(snapshot, network, held) is None:
                yield held


def misplaced(snapshot: Snapshot, network: Network, held: IPReservation) -> tuple[Subnet, str] | None:
    """The block, and its node, whose network, gateway or broadcast address is reserved; else None."""
    found = home(snapshot, held.address)
    return found if found and held.address in blocks.not_for_pods(found[0], network) else None


def wrong(snapshot: Snapshot, networks: Iterable[Network], node: str) -> Iterator[Problem]:
    """Reservations of addresses that no pod may have by now, for the pod's node and for the block's."""
    for network in networks if snapshot.reservations else ():
        for name, held in sorted(snapshot.reservations.items()):
            found = misplaced(snapshot, network, held) if held.network == network.name else None
            if found and node in (held.node, found[1]):
                where = f"block {found[0]} of node {found[1]}"
                what = f"{held.address} is the network, gateway or broadcast address of {where}"
                remedy = f"delete pod {held.pod} on node {held.node}, and let it ask for another address"
                yield Problem(f"IPReservation {name}", what, remedy)


def steps(snapshot: Snapshot, here: Here, now: datetime, keep: timedelta) -> Iterator[Step]:
    """What this node has to do about reservations: its own, those it is asked about, those of gone nodes."""
    mine = {claim.address: claim for claim in here.claims}
    for held in snapshot.reservations.values():
        if held.node == here.node:
            if held.address not in here.busy:
                yield from _own(held, mine.get(held.address), now, keep)
        elif held.asks == here.node and not held.refused:
            user = here.used.get(held.address)
            refused = f"{user} on node {here.node} has it" if user else ""
            yield Update(replace(held, asks=here.node if refused else "", refused=refused))
        elif held.node not in snapshot.nodes and here.node == _heir(snapshot, held):
            yield from _own(held, None, now, keep)


def lost(snapshot: Snapshot, here: Here, now: datetime) -> Iterator[IPReservation]:
    """What somebody deleted though a pod of this node has it: to be created again."""
    for claim in here.claims:
        if claim.address not in here.busy and address_name(claim.address) not in snapshot.reservations:
            yield claimed(None, claim, "", now, timedelta())


def _own(held: IPReservation, claim: Claim | None, now: datetime, keep: timedelta) -> Iterator[Step]:
    """A reservation of this node's, and who has its address here, if anybody."""
    if claim and (claim.owner, claim.pod) == (held.owner, held.pod):
        if held.released:  # while the datastore could not be told
            yield Update(replace(held, released=None))
    elif held.asks or is_over(held, now, keep):
        yield Delete(held)
    elif held.released is None:
        yield Update(replace(held, released=now.replace(microsecond=0)))


def _heir(snapshot: Snapshot, held: IPReservation) -> str:
    """Who looks after reservations of a node that is gone: the block's node, or the first by name."""
    found = home(snapshot, held.address)
    return found[1] if found and found[1] in snapshot.nodes else min(snapshot.nodes, default="")
