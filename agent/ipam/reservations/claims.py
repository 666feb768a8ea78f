"""The reserved addresses of a pod during its ADD: find them, claim them, and wait until this node knows them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

from agent.cluster.store import Datastore, StoreError
from agent.codec.cni_args import PodIdentity
from agent.errors import CniError, Code, invalid_config
from agent.ip import Address, address_name
from agent.ipam import blocks
from agent.ipam.allocator import Range
from agent.ipam.attachment import Attachment
from agent.ipam.reservations import policy
from agent.ipam.reservations.claimant import SEE, Claimant, ClaimContext
from agent.ipam.reservations.placement import AddressPlacement, ManualReservations
from agent.ipam.reservations.pod_annotations import (
    POOL,
    AddressAnnotations,
    AnnotationReader,
    AnnotationsUnavailableError,
)
from agent.model.cluster import WHILE_POD, IPReservation
from agent.model.network import Network
from agent.model.node_status import NodeStatus, PodEvent, ReservationsInProgress
from agent.runtime.deadline import Deadline

KNOWN_WITHIN = 5.0  # seconds that an ADD waits for its own node to route an address that is in no block of it
QUOTA = 100  # reservations of a namespace
REASON = "AddressNotGiven"

log = logging.getLogger(__name__)


@dataclass
class PodReservations:
    """The reserved addresses of a pod, for the time in which its ADD looks for addresses."""

    annotations: AddressAnnotations
    network: Network
    deadline: Deadline
    asked: tuple[Address, ...] = ()
    """The addresses that are known before the allocator is asked."""
    off_block: tuple[Range, ...] = ()
    """Those of them that are in no block of this node, each a range of its own."""
    claimed: set[Address] = field(default_factory=set)

    @property
    def owner(self) -> str:
        """The owner of its addresses, as the attachment's file has it; empty: none is reserved."""
        return self.annotations.owner if self.annotations.stays else ""


class ReservationClaims:
    """Finds, claims and takes over reservations. For several threads at once."""

    def __init__(self, store: Datastore, context: ClaimContext, keep: float, quota: int = QUOTA) -> None:
        """`store` answers within the time that an ADD may take for it; `keep` is in seconds.

        `quota`: how many reservations a namespace may have.
        """
        self._store = store
        self._context = context
        self._reader = AnnotationReader(store, context.tell)
        self._claimant = Claimant(store, context, timedelta(seconds=keep), quota)
        self._manual = ManualReservations()
        self._placement = AddressPlacement(context.node, context.snapshot, context.status)

    def annotations(self, pod: PodIdentity | None, network: Network) -> AddressAnnotations | None:
        """Return what a pod's annotations ask for; None: it is an ordinary pod. Raises CniError."""
        if pod is None:
            return None
        with self._reported(pod):
            found = self._read(pod, network)
            snapshot = self._context.snapshot.get()
            if found and not found.stays and self._manual.has(found.owner, network.name, snapshot):
                # what persons reserved may be for another network of the pod
                sticky = any(self._placement.fitting(snapshot.reservations.values(), found, network))
                found = replace(found, sticky=sticky)
            if found and found.pool:
                self._check_pool(found, network)
            return found if found and found.asks else None

    @contextmanager
    def reserved(
        self, annotations: AddressAnnotations, network: Network, own: Sequence[Range], deadline: Deadline
    ) -> Iterator[PodReservations]:
        """Claim the addresses that a pod keeps, and keep the node path from releasing them for the time being.

        An address that has a reservation, or is in no block of this node, is claimed at once; others by `confirm`,
        when the allocator has taken them. The node path releases what is claimed and in no attachment afterwards.
        Raises CniError.
        """
        in_progress: ReservationsInProgress = frozenset()
        try:
            with self._reported(PodIdentity(annotations.pod, annotations.uid)):
                asked = self._find(annotations, network)
                found = PodReservations(annotations, network, deadline, asked)
                in_progress = frozenset(asked)
                self._context.in_progress.update(lambda known: known | in_progress)
                foreign = [address for address in asked if not _is_of_node(address, network, own)]
                found.off_block = tuple(self._range_of(address, found) for address in foreign)
                known = self._context.snapshot.get().reservations
                for address in asked:
                    if address in foreign or address_name(address) in known:
                        self._claim(found, address)
                yield found
        finally:
            if in_progress:
                self._context.in_progress.update(lambda known: known - in_progress)

    def confirm(self, reservations: PodReservations, attachment: Attachment) -> None:
        """Claim the addresses that the attachment has of this node's blocks, and wait until the node knows all.

        Raises TakenError for one that has been reserved for another pod, CniError.
        """
        for address in attachment.reserved:
            sticky = reservations.annotations.sticky
            if address not in reservations.claimed and (sticky or address in reservations.asked):
                self._claim(reservations, address)
        here, off_block = frozenset(map(blocks.single, attachment.reserved)), frozenset(attachment.off_block)

        def known(status: NodeStatus) -> bool:
            return off_block <= status.off_block_pods and here.isdisjoint(status.roaming)

        if not self._context.status.wait(known, reservations.deadline.within(KNOWN_WITHIN)):
            what = f"the node has not found out yet that {', '.join(map(str, attachment.reserved))} is here"
            raise CniError(Code.TRY_AGAIN, what, SEE)

    @contextmanager
    def _reported(self, pod: PodIdentity) -> Iterator[None]:
        """Report an error in an event of the pod, too."""
        try:
            yield
        except CniError as error:
            self._context.tell(PodEvent(pod.name, pod.uid, REASON, str(error)))
            raise

    def _check_pool(self, annotations: AddressAnnotations, network: Network) -> None:
        """Raise CniError 7 for a pool that does not exist or that the network does not have, 102 by the policy."""
        wanted = replace(network, pool=annotations.pool)
        snapshot = self._placement.seen()
        if network.hand_made or (snapshot.synced and not blocks.pools(snapshot, wanted)):
            names = [] if network.hand_made else [pool.name for pool in blocks.pools(snapshot, network)]
            known = ", ".join(name for name in names if name in snapshot.pools) or "there is none"
            key = f"annotation {POOL} of pod {annotations.pod}"
            raise invalid_config(key, annotations.pool, f"an IPPool of network {network.name}: {known}")
        if annotations.pool in snapshot.pools:
            policy.check_pool(annotations.pod, snapshot.pools[annotations.pool])

    def _read(self, pod: PodIdentity, network: Network) -> AddressAnnotations | None:
        """Return a pod's annotations; while they can't be read, it asks for the address that it had here last."""
        try:
            return self._reader.read(pod)
        except AnnotationsUnavailableError as error:
            for held in self._context.snapshot.get().reservations.values():
                here = (held.pod, held.node, held.network) == (pod.name, self._context.node, network.name)
                if here and not held.asks and held.keep != WHILE_POD:
                    log.warning("%s gets %s again: %s", pod.name, held.address, error)
                    return AddressAnnotations(pod.name, pod.uid, held.owner, sticky=True)
            raise

    def _find(self, annotations: AddressAnnotations, network: Network) -> tuple[Address, ...]:
        """Return the address that is asked for, or the one that the owner had."""
        if annotations.address or not annotations.sticky:
            return (annotations.address,) if annotations.address else ()
        known = self._context.snapshot.get().reservations.values()
        held, wrong = self._placement.fitting(known, annotations, network)
        if held is None:  # before the owner gets a second one: a watch may be late
            try:
                found = self._store.list("IPReservation")
            except StoreError as error:
                what = f"whether {annotations.owner} has an address can't be read: {error}"
                raise CniError(Code.TRY_AGAIN, what, "the runtime tries again") from error
            listed = (r for r in found if isinstance(r, IPReservation))
            held, wrong = self._placement.fitting(listed, annotations, network)
        if held is None and wrong:
            raise wrong
        return (held.address,) if held else ()

    def _range_of(self, address: Address, reservations: PodReservations) -> Range:
        """Return an address of no block of this node as a range. Raises CniError for one that no pod may have."""
        network, owner = reservations.network, reservations.annotations.owner
        known = self._context.snapshot.get().reservations.get(address_name(address))
        mine = known if known and known.owner == owner else None
        if reservations.annotations.address and (wrong := self._placement.wrong(address, network, mine)):
            raise wrong  # an address that the owner comes back to was checked by `_find`
        if network.hand_made and mine is None:
            what = f"{address} is not in this node's part of {network.subnet}, and whose it is, is not known"
            raise CniError(Code.ADDRESSES, what, "ask for one of this node's range, or use an IPPool")
        return Range(blocks.single(address), int(address), int(address))

    def _claim(self, reservations: PodReservations, address: Address) -> None:
        """Make the reservation this pod's. Raises TakenError, CniError."""
        self._claimant.claim(reservations.annotations, reservations.network, address, reservations.deadline)
        reservations.claimed.add(address)


def _is_of_node(address: Address, network: Network, own: Sequence[Range]) -> bool:
    """Return whether this node's allocator decides if an address is free."""
    if network.hand_made:  # all nodes have one block there, and parts of it
        return any(address in mine for mine in own)
    return any(address in mine.block for mine in own)
