"""Addresses that stay: an ADD claims them by objects; only the ADD of a pod that asks for one waits for that."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

from agent.cluster.store import ConflictError, Datastore, NotFoundError, StoreError
from agent.errors import CniError, Code, invalid_config
from agent.ip import Address, address_name
from agent.ipam import blocks
from agent.ipam.allocator import Range
from agent.ipam.attachment import Attachment
from agent.ipam.reservations import policy as address_policy
from agent.ipam.reservations import rules as reservation_rules
from agent.ipam.reservations.placement import AddressPlacement, ManualReservations
from agent.ipam.reservations.pod_annotations import (
    POOL,
    AddressAnnotations,
    AnnotationReader,
    AnnotationsUnavailableError,
    identity,
)
from agent.ipam.reservations.rules import Claim, RefusedError
from agent.model.cluster import WHILE_POD, IPBlock, IPReservation, Resource, Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus, PodEvent, ReservationsInProgress
from agent.runtime.observable import Observable

GRANTED_WITHIN = 5.0  # seconds that an ADD waits for the block's node
KNOWN_WITHIN = 5.0  # seconds that an ADD waits for its own node to make the way to a guest
QUOTA = 100  # reservations of a namespace
TRIES = 5  # of a claim that others change at the same time
REASON = "AddressNotGiven"
SEE = "see `testcnictl status` on the node"

log = logging.getLogger(__name__)


class TakenError(CniError):
    """Somebody else has reserved the address."""


@dataclass(frozen=True, slots=True)
class ClaimContext:
    """What this path reads of the node path, and whom it tells."""

    node: str
    snapshot: Observable[Snapshot]
    status: Observable[NodeStatus]
    busy: Observable[ReservationsInProgress]
    tell: Callable[[PodEvent], None] = lambda _event: None


@dataclass
class PodReservations:
    """A pod's addresses that stay: those that are known before the allocator is asked, and where they may be."""

    wish: AddressAnnotations
    network: Network
    asked: tuple[Address, ...] = ()
    guests: tuple[Range, ...] = ()
    """Those of them that are not in this node's blocks, each a range of its own."""
    claimed: set[Address] = field(default_factory=set)
    deadline: float = math.inf
    """When the last wait for it ends (time.monotonic)."""

    @property
    def owner(self) -> str:
        """Of its addresses, as the attachment's file has it."""
        return self.wish.owner if self.wish.stays else ""


class ReservationClaims:
    """Finds, claims and takes over reservations. For several threads at once."""

    def __init__(self, store: Datastore, known: ClaimContext, keep: float, quota: int = QUOTA) -> None:
        """`store` answers within the time that an ADD may take for it; `keep` in seconds.

        `quota`: how many reservations a namespace may have.
        """
        self._store = store
        self._wishes = AnnotationReader(store, known.tell)
        self._known = known
        self._by_hand = ManualReservations()
        self._places = AddressPlacement(known.node, known.snapshot, known.status)
        self._keep = timedelta(seconds=keep)
        self._quota = quota

    def wish(self, args: str, network: Network) -> AddressAnnotations | None:
        """What the pod of these CNI_ARGS asks for; None: it is an ordinary pod. Raises CniError."""
        with self._telling(identity(args)):
            wish = self._read(args, network)
            known = self._known.snapshot.get()
            if wish and not wish.stays and self._by_hand.has(wish.owner, network.name, known):
                # what persons reserved may be for another network of the pod
                sticky = any(self._places.fitting(known.reservations.values(), wish, network))
                wish = replace(wish, sticky=sticky)
            if wish and wish.pool:
                self._check_pool(wish, network)
            return wish if wish and wish.asks else None

    @contextmanager
    def staying(
        self, wish: AddressAnnotations, network: Network, own: Sequence[Range], deadline: float = math.inf
    ) -> Iterator[PodReservations]:
        """The addresses that a pod keeps, for the time of its ADD.

        What has a reservation, or is not in this node's blocks, is claimed at once; the rest by `settle`, when the
        allocator has it. What is claimed and then not used is released by the node path, which leaves it alone
        until then. Raises CniError.
        """
        held: ReservationsInProgress = frozenset()
        try:
            with self._telling((wish.pod, wish.uid)):
                stay = PodReservations(wish, network, self._find(wish, network), deadline=deadline)
                held = frozenset(stay.asked)
                self._known.busy.update(lambda busy: busy | held)
                away = [address for address in stay.asked if not _at_home(address, network, own)]
                stay.guests = tuple(self._guest(address, stay) for address in away)
                reserved = self._known.snapshot.get().reservations
                for address in stay.asked:
                    if address in away or address_name(address) in reserved:
                        self._claim(stay, address)
                yield stay
        finally:
            if held:
                self._known.busy.update(lambda busy: busy - held)

    @contextmanager
    def _telling(self, pod: tuple[str, str] | None) -> Iterator[None]:
        """What goes wrong is told to the pod, too."""
        try:
            yield
        except CniError as error:
            if pod:
                self._known.tell(PodEvent(*pod, REASON, str(error)))
            raise

    def _check_pool(self, wish: AddressAnnotations, network: Network) -> None:
        """Raises CniError 7 for a pool that there is not, or that the network does not have."""
        wanted = replace(network, pool=wish.pool)
        snapshot = self._places.seen()
        if network.hand_made or (snapshot.synced and not blocks.pools(snapshot, wanted)):
            names = [] if network.hand_made else [pool.name for pool in blocks.pools(snapshot, network)]
            known = ", ".join(name for name in names if name in snapshot.pools) or "there is none"
            field = f"annotation {POOL} of pod {wish.pod}"
            raise invalid_config(field, wish.pool, f"an IPPool of network {network.name}: {known}")
        if wish.pool in snapshot.pools:
            address_policy.check_pool(wish.pod, snapshot.pools[wish.pool])

    def settle(self, stay: PodReservations, attachment: Attachment) -> None:
        """Claim the addresses that the attachment has of this node's blocks; wait until the node knows them here.

        Raises TakenError for one that somebody else has reserved, CniError.
        """
        for address in attachment.held:
            if address not in stay.claimed and (stay.wish.sticky or address in stay.asked):
                self._claim(stay, address)
        here, guests = frozenset(map(blocks.single, attachment.held)), frozenset(attachment.guests)

        def known(status: NodeStatus) -> bool:
            return guests <= status.guests and here.isdisjoint(status.away)

        if not self._known.status.wait(known, min(stay.deadline, time.monotonic() + KNOWN_WITHIN)):
            what = f"the node has not found out yet that {', '.join(map(str, attachment.held))} is here"
            raise CniError(Code.TRY_AGAIN, what, SEE)

    def _read(self, args: str, network: Network) -> AddressAnnotations | None:
        """The pod's wish; while it can't be read, what it had here last is what it wants."""
        try:
            return self._wishes.of(args)
        except AnnotationsUnavailableError as error:
            for held in self._known.snapshot.get().reservations.values():
                here = (held.pod, held.node, held.network) == (error.pod, self._known.node, network.name)
                if here and not held.asks and held.keep != WHILE_POD:
                    log.warning("%s gets %s again, as %s", error.pod, held.address, error)
                    return AddressAnnotations(error.pod, error.uid, held.owner, sticky=True)
            raise

    def _find(self, wish: AddressAnnotations, network: Network) -> tuple[Address, ...]:
        """The address that is asked for, or the one that the owner had."""
        if wish.address or not wish.sticky:
            return (wish.address,) if wish.address else ()
        held, wrong = self._places.fitting(self._known.snapshot.get().reservations.values(), wish, network)
        if held is None:  # before the owner gets a second one: a watch may be late
            try:
                found = self._store.list("IPReservation")
            except StoreError as error:
                what = f"whether {wish.owner} has an address can't be read: {error}"
                raise CniError(Code.TRY_AGAIN, what, "the runtime tries again") from error
            held, wrong = self._places.fitting((r for r in found if isinstance(r, IPReservation)), wish, network)
        if held is None and wrong:
            raise wrong
        return (held.address,) if held else ()

    def _guest(self, address: Address, stay: PodReservations) -> Range:
        """An address of no block of this node. Raises CniError for one that no pod may have."""
        known = self._known.snapshot.get().reservations.get(address_name(address))
        mine = known if known and known.owner == stay.wish.owner else None
        if stay.wish.address and (wrong := self._places.wrong(address, stay.network, mine)):
            raise wrong  # what the owner came back to was looked at
        if stay.network.hand_made and (known is None or known.owner != stay.wish.owner):
            what = f"{address} is not in this node's part of {stay.network.subnet}, and whose it is, is not known"
            raise CniError(Code.ADDRESSES, what, "ask for one of this node's range, or use an IPPool")
        return Range(blocks.single(address), int(address), int(address))

    def _claim(self, stay: PodReservations, address: Address) -> None:
        """The reservation becomes this pod's. Raises TakenError, CniError."""
        wish, node = stay.wish, self._known.node
        claim = Claim(address, wish.owner, wish.pod, node, stay.network.name)
        self._check_policy(wish, address)
        held, seen = self._known.snapshot.get().reservations.get(address_name(address)), set[str]()
        for _ in range(TRIES):
            if time.monotonic() > stay.deadline:
                raise _unclaimed(address, "the datastore was too slow")
            seen |= {held.resource_version} if held else set()
            try:
                if held is None and not self._known.snapshot.get().synced:  # nobody knows who has to agree
                    raise _unclaimed(address, "the datastore has not been read completely yet")
                wanted = reservation_rules.claimed(held, claim, self._asks(address), datetime.now(UTC), self._keep)
                made = self._store.update(wanted) if held else self._create(wanted, seen)
                break
            except RefusedError as error:
                if (fresh := self._look(address)) == held:
                    raise TakenError(Code.ADDRESSES, str(error), error.remedy) from error
                held = fresh
            except (ConflictError, NotFoundError):
                held = self._look(address)
            except StoreError as error:
                if held and (held.owner, held.pod, held.node, held.asks) == (wish.owner, wish.pod, node, ""):
                    log.warning("%s keeps %s, which the datastore hears of later: %s", wish.pod, address, error)
                    stay.claimed.add(address)
                    return
                raise _unclaimed(address, error) from error
        else:
            raise _unclaimed(address, "it changes all the time")
        assert isinstance(made, IPReservation)  # noqa: S101 - one was written
        if made.asks:
            self._wait(made, frozenset({*seen, made.resource_version}), stay.deadline)
        stay.claimed.add(address)
        log.info("%s has %s, reserved for %s", wish.pod, address, wish.owner)

    def _check_policy(self, wish: AddressAnnotations, address: Address) -> None:
        """Raises CniError 102 where the pod's namespace may not have the address, or has too many already."""
        snapshot, namespace = self._known.snapshot.get(), wish.pod.partition("/")[0]
        address_policy.check_address(wish.pod, address, snapshot)
        known = snapshot.reservations
        held = known.get(address_name(address))
        if held and held.owner == wish.owner:
            return
        mine = (other for other in known.values() if other.owner.partition("/")[0] == namespace)
        count = sum(other.keep != WHILE_POD for other in mine)
        if count >= self._quota:
            what = f"namespace {namespace} has {count} reserved addresses, and may have {self._quota}"
            remedy = "kubectl get ipreservations shows them; those that are released may be deleted"
            raise CniError(
                Code.ADDRESSES, what, f"{remedy}; the limit is the agents' option namespace-reservations"
            )

    def _create(self, wanted: IPReservation, seen: set[str]) -> Resource:
        """A new reservation; who has claimed the block since the snapshot was taken has to agree, too.

        Both write first and then read, so one of the two sees the other: see claims.py for the other way round.
        Until then it asks this node, which is to say that it is not in use. Raises StoreError.
        """
        node, found = self._known.node, reservation_rules.home(self._known.snapshot.get(), wanted.address)
        if wanted.asks or (found and found[1] == node):
            return self._store.create(wanted)
        made = cast(IPReservation, self._store.create(replace(wanted, asks=node)))
        seen.add(made.resource_version)
        claimed = (b for b in self._store.list("IPBlock") if isinstance(b, IPBlock) and wanted.address in b.cidr)
        late = next((block.node for block in claimed if not self._is_gone(block)), node)
        return self._store.update(replace(made, asks="" if late == node else late))

    def _is_gone(self, block: IPBlock) -> bool:
        snapshot = self._known.snapshot.get()
        return snapshot.blocks.get(block.name) == block and block.node not in snapshot.nodes

    def _look(self, address: Address) -> IPReservation | None:
        try:
            found = self._store.get("IPReservation", address_name(address))
        except NotFoundError:
            return None
        except StoreError as error:
            raise _unclaimed(address, error) from error
        return found if isinstance(found, IPReservation) else None

    def _asks(self, address: Address) -> str:
        """The live node that has to agree, as it may have given the address to an ordinary pod."""
        snapshot = self._known.snapshot.get()
        found = reservation_rules.home(snapshot, address)
        return found[1] if found and found[1] in snapshot.nodes and found[1] != self._known.node else ""

    def _wait(self, made: IPReservation, seen: frozenset[str], deadline: float) -> None:
        """Until the block's node has answered. Raises CniError when it does not agree, or not in time."""

        def answer(snapshot: Snapshot) -> IPReservation | None:
            now = snapshot.reservations.get(made.name)
            return now if now and now.resource_version not in seen else None

        snapshot, where = self._known.snapshot, f"{made.address} lies in a block of node {made.asks}"
        snapshot.wait(lambda s: answer(s) is not None, min(deadline, time.monotonic() + GRANTED_WITHIN))
        found = answer(snapshot.get())
        if found is None:
            what = f"{where}, which has not agreed within {GRANTED_WITHIN:.0f} s"
            raise CniError(Code.TRY_AGAIN, what, f"look whether testcni runs on node {made.asks}")
        if found.asks:
            raise TakenError(Code.ADDRESSES, f"{where}, and {found.refused}", "ask for another")


def _at_home(address: Address, network: Network, own: Sequence[Range]) -> bool:
    """Whether it is for this node's allocator to say whether it is free."""
    if network.hand_made:  # all nodes have one block there, and parts of it
        return any(address in mine for mine in own)
    return any(address in mine.block for mine in own)


def _unclaimed(address: Address, why: object) -> CniError:
    return CniError(Code.TRY_AGAIN, f"{address} can't be reserved: {why}", "the runtime tries again")
