"""The controller of reservations: it compares those of this node with its pods, and answers claims of other nodes.

A DEL does not wait for it. So addresses are also released after a crash or a reboot, and after an outage of the
datastore.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from agent.cluster import objects
from agent.cluster.object_fields import ObjectError
from agent.cluster.store import ConflictError, Datastore, NotFoundError, StoreError
from agent.codec import strict_json
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.attachments.holders import Holder, holders
from agent.ipam.reservations import problems as reservation_problems
from agent.ipam.reservations import rules as reservation_rules
from agent.ipam.reservations.off_block_pods import OffBlockPods
from agent.ipam.reservations.rules import Claim, Delete, LocalPods, Step
from agent.model.cluster import WHILE_POD, IPReservation, Snapshot
from agent.model.node_status import ReportEvent, ReservationsInProgress, ignore_event
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.runtime import atomic_file, json_state_file
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable

SCHEDULE = Schedule(resync=5.0, backoff=(5.0, 5.0))  # some reservations end without any event
ROUND = 30.0  # seconds after which a round ends at the next failure
WHERE = "reservations"
LARGEST = 1 << 26  # bytes of the file; a reservation has about 400

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ControllerInputs:
    """The values and the file that the reservation controller reads and writes."""

    snapshot: Observable[Snapshot]
    in_progress: Observable[ReservationsInProgress]
    attachments: AttachmentStore
    file: Path
    """The file by which a restarted agent knows the reservations while the datastore is unavailable."""
    report_event: ReportEvent = ignore_event
    """Takes Events about pods."""


class ReservationController(Controller):
    """Releases, answers and deletes reservations. It has a thread of its own, as a datastore may hang."""

    def __init__(
        self,
        store: Datastore,
        node: str,
        inputs: ControllerInputs,
        keep: float,
        problems: PartProblems | None = None,
    ) -> None:
        """`keep`: for how many seconds a reservation outlives its pod."""
        self.problems = problems or PartProblems("reservations")
        super().__init__(SCHEDULE, self.problems.report_error, (inputs.in_progress, inputs.attachments))
        unknown = unusable(inputs.file)
        self.problems.publish({str(inputs.file): unknown} if unknown else {})
        self._store = store
        self._node = node
        self._inputs = inputs
        self._keep = timedelta(seconds=keep)
        self._off_block = OffBlockPods(node, store, inputs.report_event)
        self._reserved: Mapping[str, IPReservation] = {}
        self._saved: Mapping[str, IPReservation] = {}
        inputs.snapshot.listen(self._changed)
        self._set_reserved()

    def once(self) -> bool:
        """Save the known reservations, correct those of this node, and publish the problems."""
        snapshot = self._inputs.snapshot.get()
        if not snapshot.synced:
            return True
        if snapshot.reservations is not self._saved or not self._inputs.file.exists():
            save(self._inputs.file, snapshot.reservations)
            self._saved = snapshot.reservations
        self.problems.publish(self._compare())
        return True

    def _compare(self) -> dict[str, Problem]:
        """Correct the reservations in the datastore, and return the problems."""
        self._set_reserved()  # before any claim is granted
        # in this order: an address that the snapshot shows for a pod here is in progress, or in an attachment
        snapshot, now = self._inputs.snapshot.get(), datetime.now(UTC)
        here = self._local_pods(snapshot, self._inputs.in_progress.get())
        changes = [
            *(partial(self._apply, step) for step in reservation_rules.steps(snapshot, here, now, self._keep)),
            *(partial(self._create, missing) for missing in reservation_rules.lost(snapshot, here, now)),
        ]
        wrong, end = [], time.monotonic() + ROUND
        random.shuffle(
            changes
        )  # in a random order, so that one that hangs does not block the same others in each round
        for change in changes:
            try:
                change()
            except (ConflictError, NotFoundError) as error:  # the next snapshot has what others changed
                log.debug("a reservation was changed by others: %s", error)
            except StoreError as error:
                wrong.append(str(error))
                if time.monotonic() > end:
                    break
        self._off_block.report(snapshot)  # last, as it sends a request for each pod, and the datastore may hang
        problems = [*self._off_block.problems(snapshot), *reservation_problems.disputes(snapshot, here)]
        if wrong:  # of several the same in each round, as another text would be a new problem
            problems.append(Problem(WHERE, f"they can't be updated: {min(wrong)}", "see the datastore"))
        return {str(problem): problem for problem in problems}

    def _local_pods(self, snapshot: Snapshot, in_progress: ReservationsInProgress) -> LocalPods:
        """Return the addresses of this node's pods, which are read after `in_progress`."""
        unreadable, pods = self._inputs.attachments.unreadable(), self._inputs.attachments.all()
        used = {address: _named(holder) for address, holder in holders(pods, unreadable).items()}
        left_alone = set(in_progress)
        claims: set[Claim] = set()
        for entry in unreadable:
            left_alone |= entry.addresses  # their pods are not known
        for attachment in pods:
            if attachment.wired is None:  # its ADD is still at work, and claims them
                left_alone.update(attachment.reserved)
            claims.update(self._claims_of(attachment))
        return LocalPods(self._node, used, frozenset(claims), left_alone, self._off_block.update(snapshot, pods))

    def _claims_of(self, attachment: Attachment) -> Iterator[Claim]:
        """Yield a claim for each address of a pod; addresses that are not reserved have claims WHILE_POD."""
        network, name = attachment.network.name, attachment.pod or attachment.container_id
        for lease in attachment.leases:
            if lease.address in attachment.reserved:
                yield Claim(lease.address, attachment.owner, attachment.pod, self._node, network)
            else:
                yield Claim(lease.address, name, name, self._node, network, WHILE_POD)

    def _apply(self, step: Step) -> None:
        held = step.reservation
        if isinstance(step, Delete):
            self._store.delete("IPReservation", held.name, held)
            log.info("deleted the reservation of %s for %s", held.address, held.owner)
            return
        self._store.update(held)
        if held.node != self._node:
            answer = f"refused: {held.refused}" if held.refused else "granted"
            log.info("claim of %s by %s on node %s: %s", held.address, held.pod, held.node, answer)
        elif held.released:
            log.info("%s released %s, which is kept for %s", held.pod, held.address, held.owner)

    def _create(self, missing: IPReservation) -> None:
        self._store.create(missing)
        if missing.keep == WHILE_POD:
            log.warning("reserved %s of pod %s, as it is in no block of this node", missing.address, missing.pod)
        else:
            log.warning(
                "reservation of %s was deleted, but pod %s has it: created again", missing.address, missing.pod
            )

    def _changed(self) -> None:
        self._set_reserved()
        self.wake()

    def _set_reserved(self) -> None:
        """Exclude reserved addresses from allocation to pods that do not request them."""
        known = self._inputs.snapshot.get().reservations
        if known is not self._reserved:
            self._inputs.attachments.set_reserved(frozenset(held.address for held in known.values()))
            self._reserved = known


def save(path: Path, known: Mapping[str, IPReservation]) -> None:
    """Write the known reservations to the file for the next agent."""
    json_state_file.write(path, [objects.to_doc(held) for held in known.values()])


def load(path: Path) -> dict[str, IPReservation]:
    """Return the reservations that an earlier agent saved; none if the file is unusable, see `unusable`."""
    known = _read(path)
    return {} if isinstance(known, Problem) else known


def unusable(path: Path) -> Problem | None:
    """Return the problem of an unusable file: no pod gets an address until the datastore has been read."""
    known = _read(path)
    return known if isinstance(known, Problem) else None


def _read(path: Path) -> dict[str, IPReservation] | Problem:
    try:
        found = [objects.parse(doc) for doc in strict_json.value(atomic_file.read(path, LARGEST))]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, ObjectError) as error:
        remedy = "pods wait until the datastore has been read, which replaces the file"
        return Problem(f"file {path}", f"it cannot be used: {error!r:.200}", remedy)
    return {held.name: held for held in found if isinstance(held, IPReservation)}


def _named(holder: Holder) -> str:
    """Return the name of the pod that has an address, for people."""
    if holder.link:
        return f"the pod behind link {holder.link}"
    return f"pod {holder.pod}" if holder.pod else holder.container_id
