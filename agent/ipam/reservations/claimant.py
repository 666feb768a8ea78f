"""Claim an address by its IPReservation, and wait until the node that owns its block agrees."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import cast

from agent.cluster.store import ConflictError, Datastore, NotFoundError, StoreError
from agent.errors import CniError, Code
from agent.ip import Address, address_name
from agent.ipam.reservations import policy, rules
from agent.ipam.reservations.pod_annotations import AddressAnnotations
from agent.ipam.reservations.rules import Claim, RefusedError
from agent.model.cluster import WHILE_POD, IPBlock, IPReservation, Resource, Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus, ReportEvent, ReservationsInProgress, ignore_event
from agent.runtime.deadline import Deadline
from agent.runtime.observable import Observable

TRIES = 5  # of a claim, as other nodes may change the object at the same time
SEE = "see `testcnictl status` on the node"

log = logging.getLogger(__name__)


class TakenError(CniError):
    """The address is reserved for another pod."""


@dataclass(frozen=True, slots=True)
class ClaimContext:
    """The values that claims share with the node path."""

    node: str
    snapshot: Observable[Snapshot]
    status: Observable[NodeStatus]
    in_progress: Observable[ReservationsInProgress]
    report_event: ReportEvent = ignore_event
    granted_within: float = 5.0
    """Seconds that an ADD waits for the node of the block."""


class Claimant:
    """Claims addresses one at a time. For several threads at once."""

    def __init__(self, store: Datastore, context: ClaimContext, keep: timedelta, quota: int) -> None:
        self._store = store
        self._context = context
        self._keep = keep
        self._quota = quota

    def claim(
        self, annotations: AddressAnnotations, network: Network, address: Address, deadline: Deadline
    ) -> None:
        """Make the reservation of an address the pod's. Raises TakenError, CniError."""
        self._check_policy(annotations, address)
        claim = Claim(address, annotations.owner, annotations.pod, self._context.node, network.name)
        held = self._context.snapshot.get().reservations.get(address_name(address))
        seen: set[str] = set()
        for _ in range(TRIES):
            if deadline.passed:
                raise _unclaimed(address, "the datastore was too slow")
            seen |= {held.resource_version} if held else set()
            try:
                made = self._write(held, claim, seen)
                break
            except (ConflictError, NotFoundError, RefusedError) as error:
                held = self._read_again(held, address, error)
        else:
            raise _unclaimed(address, "others change the reservation all the time")
        if made.asks:
            self._wait_for_answer(made, frozenset({*seen, made.resource_version}), deadline)
        log.info("%s has %s, reserved for %s", claim.pod, address, claim.owner)

    def _check_policy(self, annotations: AddressAnnotations, address: Address) -> None:
        """Raise CniError 102 if the pod's namespace may not use the address, or has too many reservations."""
        snapshot, namespace = self._context.snapshot.get(), annotations.pod.partition("/")[0]
        policy.check_address(annotations.pod, address, snapshot)
        known = snapshot.reservations
        held = known.get(address_name(address))
        if held and held.owner == annotations.owner:
            return
        mine = (other for other in known.values() if other.owner.partition("/")[0] == namespace)
        count = sum(other.keep != WHILE_POD for other in mine)
        if count >= self._quota:
            what = f"namespace {namespace} has {count} reserved addresses, and may have {self._quota}"
            remedy = "delete released ones (kubectl get ipreservations)"
            raise CniError(
                Code.ADDRESSES, what, f"{remedy}; the limit is the agents' option namespace-reservations"
            )

    def _write(self, held: IPReservation | None, claim: Claim, seen: set[str]) -> IPReservation:
        """Write the reservation as claimed, and return it; `held` is what there is.

        A pod that has the address already keeps it while the datastore is away.
        Raises RefusedError, ConflictError, NotFoundError, CniError.
        """
        if held is None and not self._context.snapshot.get().synced:  # it is not known which node has to agree
            raise _unclaimed(claim.address, "the datastore has not been read completely yet")
        asks = rules.node_to_ask(self._context.snapshot.get(), claim.address, self._context.node)
        wanted = rules.claimed(held, claim, asks, datetime.now(UTC), self._keep)
        try:
            return cast(IPReservation, self._store.update(wanted) if held else self._create(wanted, seen))
        except (ConflictError, NotFoundError):
            raise
        except StoreError as error:
            if held and (held.owner, held.pod, held.node, held.asks) == (claim.owner, claim.pod, claim.node, ""):
                log.warning("%s keeps %s; the datastore is updated later: %s", claim.pod, claim.address, error)
                return held
            raise _unclaimed(claim.address, error) from error

    def _read_again(self, held: IPReservation | None, address: Address, error: Exception) -> IPReservation | None:
        """Return the reservation as it is now. Raises TakenError if it was refused and is the same, CniError."""
        try:
            found = cast(IPReservation, self._store.get("IPReservation", address_name(address)))
        except NotFoundError:
            found = None
        except StoreError as failure:
            raise _unclaimed(address, failure) from failure
        if isinstance(error, RefusedError) and found == held:
            raise TakenError(Code.ADDRESSES, str(error), error.remedy) from error
        return found

    def _create(self, wanted: IPReservation, seen: set[str]) -> Resource:
        """Create a reservation. A node that claimed the block after this snapshot has to agree, too.

        Both nodes write first and then read, so at least one sees the other: block_controller.py is the other
        side. Until then `asks` is this node itself, so that the address does not count as in use. Raises
        StoreError.
        """
        node, found = self._context.node, rules.home(self._context.snapshot.get(), wanted.address)
        if wanted.asks or (found and found[1] == node):
            return self._store.create(wanted)
        made = cast(IPReservation, self._store.create(replace(wanted, asks=node)))
        seen.add(made.resource_version)
        claimed = (b for b in self._store.list("IPBlock") if isinstance(b, IPBlock) and wanted.address in b.cidr)
        late = next((block.node for block in claimed if not self._is_gone(block)), node)
        return self._store.update(replace(made, asks="" if late == node else late))

    def _is_gone(self, block: IPBlock) -> bool:
        """Return whether the block is in the snapshot, but not its node."""
        snapshot = self._context.snapshot.get()
        return snapshot.blocks.get(block.name) == block and block.node not in snapshot.nodes

    def _wait_for_answer(self, made: IPReservation, seen: frozenset[str], deadline: Deadline) -> None:
        """Wait until the block's node agrees. Raises TakenError if it refuses, CniError at `granted_within`."""

        def answer(snapshot: Snapshot) -> IPReservation | None:
            now = snapshot.reservations.get(made.name)
            return now if now and now.resource_version not in seen else None

        snapshot, where = self._context.snapshot, f"{made.address} lies in a block of node {made.asks}"
        snapshot.wait(lambda s: answer(s) is not None, deadline.within(self._context.granted_within))
        found = answer(snapshot.get())
        if found is None:
            what = f"{where}, which has not agreed within {self._context.granted_within:.0f} s"
            raise CniError(Code.TRY_AGAIN, what, f"check that testcni runs on node {made.asks}")
        if found.asks:
            raise TakenError(Code.ADDRESSES, f"{where}, and {found.refused}", "ask for another")


def _unclaimed(address: Address, why: object) -> CniError:
    return CniError(Code.TRY_AGAIN, f"{address} can't be reserved: {why}", "the runtime tries again")
