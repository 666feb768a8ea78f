"""The rules of reservations: which pod may have an address, which node has to agree, what a node updates. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from agent.cluster.object_fields import rfc3339
from agent.ip import Address, Subnet, address_name
from agent.ipam import block_index, blocks
from agent.model.cluster import ALWAYS_KEPT, WHILE_POD, IPReservation, Snapshot
from agent.model.network import Network


@dataclass(frozen=True, slots=True)
class Claim:
    """A pod's claim to a reserved address, which it has or requests."""

    address: Address
    owner: str
    pod: str
    node: str
    network: str
    keep: str = ""
    """WHILE_POD: the pod did not request it, and it is reserved only while it is in none of the node's blocks."""


@dataclass(frozen=True, slots=True)
class LocalPods:
    """The addresses of this node's pods."""

    node: str
    used: Mapping[Address, str] = field(default_factory=dict)
    """All addresses in use, each with its pod, for people."""
    claims: frozenset[Claim] = frozenset()
    """The claims to addresses that are reserved, or must be while they are off-block."""
    busy: Set[Address] = frozenset()
    """Addresses with which an ADD is at work; no step is made for them."""
    outside: Set[Address] = frozenset()
    """Addresses of off-block pods."""


@dataclass(frozen=True, slots=True)
class Delete:
    """A reservation to delete, as nobody needs it any more."""

    reservation: IPReservation


@dataclass(frozen=True, slots=True)
class Update:
    """A reservation to update."""

    reservation: IPReservation


Step = Delete | Update


class RefusedError(Exception):
    """Another owner has the address. The text says which one, and since when."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def claimed(held: IPReservation | None, claim: Claim, asks: str, now: datetime, keep: timedelta) -> IPReservation:
    """Return the reservation that the claim writes; `held` is the one that exists. Raises RefusedError.

    A pod of the same name may take over a reservation in use, as no two pods have the same name at a time. Another
    pod of the same owner may take over a released one, and any pod one that has also been kept for its time.
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
    if _is_for_owner(held, claim) and (held.ahead or held.pod == claim.pod or held.released):
        if held.ahead or held.keep == ALWAYS_KEPT:  # the person who made it deletes it
            mine = replace(mine, keep=ALWAYS_KEPT)
    elif refused := _refusal(held, now, keep):
        raise refused
    # a node that has agreed once need not agree again, as nobody else got the address since
    asks = asks if held.asks or held.ahead else ""
    return replace(mine, asks=asks, resource_version=held.resource_version)


def _refusal(held: IPReservation, now: datetime, keep: timedelta) -> RefusedError | None:
    """Return why another owner cannot have an address; None if its reservation is over."""
    if held.ahead or (held.released and held.keep == ALWAYS_KEPT):
        remedy = f"ask for another address, or end it: kubectl delete ipreservation {held.name}"
        network = f" on network {held.network}" if held.network else ""
        return RefusedError(f"{held.address} is reserved for {held.owner}{network} by a person", remedy)
    if held.released is None:
        what = f"{held.address} is reserved for {held.owner}: pod {held.pod} on node {held.node} has it"
        since = f" since {rfc3339(held.since)}" if held.since else ""
        return RefusedError(f"{what}{since}", "delete that pod, or ask for another address")
    if not is_over(held, now, keep):
        what = f"{held.address} is kept for {held.owner} until {rfc3339(held.released + keep)}"
        remedy = f"wait, ask for another, or end it: kubectl delete ipreservation {held.name}"
        return RefusedError(f"{what}: pod {held.pod} had it", remedy)
    return None


def _is_for_owner(held: IPReservation, claim: Claim) -> bool:
    """Return whether an address is reserved for the owner of a claim, on its network."""
    return held.owner == claim.owner and held.network in ("", claim.network)


def is_for_pod(held: IPReservation, claim: Claim) -> bool:
    """Return whether an address is reserved for the pod of a claim."""
    return _is_for_owner(held, claim) and held.pod in ("", claim.pod)


def is_over(held: IPReservation, now: datetime, keep: timedelta) -> bool:
    """Return whether a reservation has outlived its pod for long enough."""
    return held.released is not None and held.keep != ALWAYS_KEPT and now >= held.released + keep


def of_owner(
    reservations: Iterable[IPReservation], owner: str, network: str, pod: str = ""
) -> list[IPReservation]:
    """Return the reservations of an owner that its pod may use, the best first.

    First are those that are free or the pod's own, of these the ones that persons made.
    """

    def order(held: IPReservation) -> tuple[bool, bool, bool, int, int]:
        free = held.ahead or held.released is not None or held.pod == pod
        by_hand = held.ahead or held.keep == ALWAYS_KEPT
        return not free, not by_hand, held.pod != pod, *numerically(held)

    mine = (r for r in reservations if r.owner == owner and r.network in ("", network))
    kept = (r for r in mine if r.keep == ALWAYS_KEPT or (r.keep != WHILE_POD and not r.asks))
    return sorted(kept, key=order)


def home(snapshot: Snapshot, address: Address) -> tuple[Subnet, str] | None:
    """Return the block that an address is in, and its node; None if it is in no block."""
    return block_index.of(snapshot).find(address)


def roaming(snapshot: Snapshot, network: Network, node: str) -> Iterator[IPReservation]:
    """Yield the reservations of other nodes' pods whose address is in no block of their node."""
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


def numerically(held: IPReservation) -> tuple[int, int]:
    """Return a key that sorts reservations by their address."""
    return held.address.version, int(held.address)


def steps(snapshot: Snapshot, here: LocalPods, now: datetime, keep: timedelta) -> Iterator[Step]:
    """Yield the updates that this node makes: to its own reservations, for its blocks, and for gone nodes."""
    node = _Steps(snapshot, here, now, keep)
    for held in snapshot.reservations.values():
        if held.ahead:
            yield from node.claimed_by_pod(held)
        elif held.node == here.node:
            yield from node.own(held)
        elif held.asks == here.node and (not held.refused or held.keep == WHILE_POD):
            yield from node.answer(held)
        elif held.node not in snapshot.nodes and here.node == heir(snapshot, held):
            yield from _left(held, now, keep, at_once=False)  # its pods may still run, and the Node may come back


class _Steps:
    """The steps of one node for reservations, one at most for each."""

    def __init__(self, snapshot: Snapshot, here: LocalPods, now: datetime, keep: timedelta) -> None:
        self._snapshot = snapshot
        self._here = here
        self._now = now
        self._keep = keep
        self._claims = {claim.address: claim for claim in here.claims}

    def claimed_by_pod(self, held: IPReservation) -> Iterator[Step]:
        """Yield the step for an address that a person reserved, if its pod has it already."""
        claim = self._claims.get(held.address)
        if claim and is_for_pod(held, claim) and held.address not in self._here.busy:
            asks = node_to_ask(self._snapshot, held.address, self._here.node)
            yield Update(claimed(held, claim, asks, self._now, self._keep))

    def own(self, held: IPReservation) -> Iterator[Step]:
        """Yield the step for a reservation of this node."""
        claim = self._claims.get(held.address)
        if held.address in self._here.busy:
            return
        if claim and (claim.owner, claim.pod) == (held.owner, held.pod):
            yield from _used(self._snapshot, held, claim)
        else:
            yield from _left(held, self._now, self._keep, at_once=held.keep == WHILE_POD)

    def answer(self, held: IPReservation) -> Iterator[Step]:
        """Yield the answer to another node's claim of an address in a block of this node.

        A refused claim WHILE_POD is answered again: that pod has the address already, and keeps it.
        """
        user = self._here.used.get(held.address)
        refused = f"{user} on node {self._here.node} has it" if user else ""
        answered = replace(held, asks=self._here.node if refused else "", refused=refused)
        if answered != held:
            yield Update(answered)


def lost(snapshot: Snapshot, here: LocalPods, now: datetime) -> Iterator[IPReservation]:
    """Yield reservations to create: of addresses in use whose reservation was deleted, and of off-block pods."""
    for claim in here.claims:
        wanted = claim.keep != WHILE_POD or claim.address in here.outside
        if wanted and claim.address not in here.busy and address_name(claim.address) not in snapshot.reservations:
            yield claimed(None, claim, node_to_ask(snapshot, claim.address, here.node), now, timedelta())


def _used(snapshot: Snapshot, held: IPReservation, claim: Claim) -> Iterator[Step]:
    """Yield the step for a reservation of this node whose pod still has the address."""
    found = home(snapshot, held.address)
    if held.keep == claim.keep == WHILE_POD and found and found[1] == held.node:
        yield Delete(held)  # the address is in a block of the node again
        return
    asks = held.asks
    if asks and asks not in snapshot.nodes:
        asks = node_to_ask(snapshot, held.address, held.node)
    # it was marked as released while this node was unreachable, or had no Node object
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


def heir(snapshot: Snapshot, held: IPReservation) -> str:
    """Return the node that handles reservations of a gone node: the owner of the block, or the first by name."""
    found = home(snapshot, held.address)
    return found[1] if found and found[1] in snapshot.nodes else min(snapshot.nodes, default="")
