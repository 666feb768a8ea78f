"""The reserved addresses of a pod during its ADD: find them, claim them, and wait until this node routes them."""

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
from agent.ipam.attachments.attachment import Attachment
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

READ_WITHIN = 8.0  # seconds for which a slow datastore is asked again for the annotations of a pod
KNOWN_WITHIN = 5.0  # seconds that an ADD waits until its own node routes an off-block address
QUOTA = 100  # reservations of a namespace
REASON = "AddressNotGiven"

log = logging.getLogger(__name__)


@dataclass
class PodReservations:
    """The reserved addresses of a pod, while its ADD takes addresses."""

    annotations: AddressAnnotations
    network: Network
    deadline: Deadline
    asked: tuple[Address, ...] = ()
    """The addresses that the pod must get, known before the allocator takes any."""
    off_block: tuple[Range, ...] = ()
    """The ranges of requested addresses that are in no block of this node, one for each address."""
    claimed: set[Address] = field(default_factory=set)

    @property
    def owner(self) -> str:
        """Return the owner of its addresses for the attachment's file; empty if none is reserved."""
        return self.annotations.owner if self.annotations.stays else ""


class ReservationClaims:
    """Finds and claims reservations for ADDs. For several threads at once."""

    def __init__(self, store: Datastore, context: ClaimContext, keep: float, quota: int = QUOTA) -> None:
        """`store` answers within the time that an ADD may take for it; `keep` is in seconds.

        `quota`: how many reservations a namespace may have.
        """
        self._store = store
        self._context = context
        self._reader = AnnotationReader(store, context.report_event)
        self._claimant = Claimant(store, context, timedelta(seconds=keep), quota)
        self._manual = ManualReservations()
        self._placement = AddressPlacement(context.node, context.snapshot, context.status)

    def annotations(
        self, pod: PodIdentity | None, network: Network, deadline: Deadline
    ) -> AddressAnnotations | None:
        """Read a pod's annotations, and return its requests; None if it has none. Raises CniError."""
        if pod is None:
            return None
        with self._reported(pod):
            found = self._read(pod, network, deadline.within(READ_WITHIN))
            snapshot = self._context.snapshot.get()
            if found and not found.stays and self._manual.has(found.owner, network.name, snapshot):
                # a person may have reserved it for another network of the pod
                sticky = any(self._placement.fitting(snapshot.reservations.values(), found, network))
                found = replace(found, sticky=sticky)
            if found and found.pool:
                self._check_pool(found, network)
            return found if found and found.asks else None

    @contextmanager
    def reserved(
        self, annotations: AddressAnnotations, network: Network, own: Sequence[Range], deadline: Deadline
    ) -> Iterator[PodReservations]:
        """Claim the reserved addresses of a pod; until the context ends, the controller leaves them alone.

        An address that has a reservation, or is in no block of this node, is claimed at once; `confirm` claims
        others when the allocator has taken them. The controller later releases claimed addresses without an
        attachment. Raises CniError.
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
        """Claim the addresses that are of this node's blocks, and wait until the node path knows all addresses.

        Raises TakenError if an address is reserved for another pod, CniError.
        """
        for address in attachment.reserved:
            sticky = reservations.annotations.sticky
            if address not in reservations.claimed and (sticky or address in reservations.asked):
                self._claim(reservations, address)
        here, off_block = frozenset(map(blocks.single, attachment.reserved)), frozenset(attachment.off_block)

        def known(status: NodeStatus) -> bool:
            return off_block <= status.off_block_pods and here.isdisjoint(status.roaming)

        if not self._context.status.wait(known, reservations.deadline.within(KNOWN_WITHIN)):
            what = (
                f"the node path does not know yet that {', '.join(map(str, attachment.reserved))} is on this node"
            )
            raise CniError(Code.TRY_AGAIN, what, SEE)

    @contextmanager
    def _reported(self, pod: PodIdentity) -> Iterator[None]:
        """Write an Event about the pod for an error."""
        try:
            yield
        except CniError as error:
            self._context.report_event(PodEvent(pod.name, pod.uid, REASON, str(error)))
            raise

    def _check_pool(self, annotations: AddressAnnotations, network: Network) -> None:
        """Raise CniError 7 for a pool that the network does not have, 102 for one that the pod may not use."""
        wanted = replace(network, pool=annotations.pool)
        snapshot = self._placement.seen()
        if network.has_manual_range or (snapshot.synced and not blocks.pools(snapshot, wanted)):
            names = [] if network.has_manual_range else [pool.name for pool in blocks.pools(snapshot, network)]
            known = ", ".join(name for name in names if name in snapshot.pools) or "there is none"
            key = f"annotation {POOL} of pod {annotations.pod}"
            raise invalid_config(key, annotations.pool, f"an IPPool of network {network.name}: {known}")
        if annotations.pool in snapshot.pools:
            policy.check_pool(annotations.pod, snapshot.pools[annotations.pool])

    def _read(self, pod: PodIdentity, network: Network, deadline: Deadline) -> AddressAnnotations | None:
        """Return a pod's annotations; if they can't be read, a request for the last address that it had here.

        A datastore that is too slow is asked again until the deadline: it may only be busy.
        """
        while True:
            try:
                return self._reader.read(pod)
            except AnnotationsUnavailableError as error:
                if held := self._held_here(pod, network):
                    log.warning("%s gets %s again: %s", pod.name, held.address, error)
                    return AddressAnnotations(pod.name, pod.uid, held.owner, sticky=True)
                if not error.timed_out or deadline.passed:
                    raise

    def _held_here(self, pod: PodIdentity, network: Network) -> IPReservation | None:
        """Return the reservation of the last address that a pod had on this node."""
        key = pod.name, self._context.node, network.name
        for held in self._context.snapshot.get().reservations.values():
            if (held.pod, held.node, held.network) == key and not held.asks and held.keep != WHILE_POD:
                return held
        return None

    def _find(self, annotations: AddressAnnotations, network: Network) -> tuple[Address, ...]:
        """Return the requested address, or the one that the owner had before. Raises CniError."""
        if annotations.address or not annotations.sticky:
            return (annotations.address,) if annotations.address else ()
        known = self._context.snapshot.get().reservations.values()
        held, wrong = self._placement.fitting(known, annotations, network)
        if held is None:  # the snapshot may be late, and the owner must not get a second address
            try:
                found = self._store.list("IPReservation")
            except StoreError as error:
                what = f"the reservations of {annotations.owner} can't be read: {error}"
                raise CniError(Code.TRY_AGAIN, what, "the runtime tries again") from error
            listed = (r for r in found if isinstance(r, IPReservation))
            held, wrong = self._placement.fitting(listed, annotations, network)
        if held is None and wrong:
            raise wrong
        return (held.address,) if held else ()

    def _range_of(self, address: Address, reservations: PodReservations) -> Range:
        """Return an off-block address as a range. Raises CniError if no pod may have it."""
        network, owner = reservations.network, reservations.annotations.owner
        known = self._context.snapshot.get().reservations.get(address_name(address))
        mine = known if known and known.owner == owner else None
        if reservations.annotations.address and (wrong := self._placement.wrong(address, network, mine)):
            raise wrong  # `_find` has checked an address that the owner had before
        if network.has_manual_range and mine is None:
            what = f"{address} is not in this node's part of {network.subnet}, and its node is not known"
            raise CniError(Code.ADDRESSES, what, "ask for an address of this node's range, or use an IPPool")
        return Range(blocks.single(address), int(address), int(address))

    def _claim(self, reservations: PodReservations, address: Address) -> None:
        """Make the reservation this pod's. Raises TakenError, CniError."""
        self._claimant.claim(reservations.annotations, reservations.network, address, reservations.deadline)
        reservations.claimed.add(address)


def _is_of_node(address: Address, network: Network, own: Sequence[Range]) -> bool:
    """Return whether an address is in a block of this node, so that its allocator decides if it is free."""
    if network.has_manual_range:  # all nodes have the same block there, and each its range
        return any(address in mine for mine in own)
    return any(address in mine.block for mine in own)
