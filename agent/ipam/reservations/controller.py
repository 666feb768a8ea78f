"""Keeps reservations true: a thread compares those of this node with its pods, and answers other nodes' claims.

A DEL does not wait for it, so it also works after crashes, reboots, and while the datastore is away.
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
from agent.ipam.attachment import Attachment
from agent.ipam.attachment_store import AttachmentStore
from agent.ipam.holders import Holder, holders
from agent.ipam.off_block_pods import OffBlockPods
from agent.ipam.reservations import rules as reservation_rules
from agent.ipam.reservations.rules import Claim, Delete, LocalPods, Step
from agent.model.cluster import WHILE_POD, IPReservation, Snapshot
from agent.model.node_status import ReportEvent, ReservationsInProgress, ignore_event
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.runtime import atomic_file, json_state_file
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable

SCHEDULE = Schedule(resync=5.0, backoff=(5.0, 5.0))  # reservations that are kept for a time end in between
ROUND = 30.0  # seconds after which no more is tried when something failed
WHERE = "reservations"
LARGEST = 1 << 26  # bytes of the file; a reservation has about 400

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ControllerInputs:
    """What the reservation controller reads and writes."""

    snapshot: Observable[Snapshot]
    in_progress: Observable[ReservationsInProgress]
    attachments: AttachmentStore
    file: Path
    """Where a restarted agent finds the reservations while the datastore is away."""
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
        """Save the reservations that are known, make them true, and post what can't be done now."""
        snapshot = self._inputs.snapshot.get()
        if not snapshot.synced:
            return True
        if snapshot.reservations is not self._saved or not self._inputs.file.exists():
            save(self._inputs.file, snapshot.reservations)
            self._saved = snapshot.reservations
        self.problems.publish(self._compare())
        return True

    def _compare(self) -> dict[str, Problem]:
        """Make the reservations what they should be, and return what can't be done now."""
        self._set_reserved()  # before anything is granted
        # in this order: what the snapshot has of a pod here is busy, or else on file
        snapshot, now = self._inputs.snapshot.get(), datetime.now(UTC)
        here = self._local_pods(snapshot, self._inputs.in_progress.get())
        changes = [
            *(partial(self._take, step) for step in reservation_rules.steps(snapshot, here, now, self._keep)),
            *(partial(self._create, missing) for missing in reservation_rules.lost(snapshot, here, now)),
        ]
        wrong, end = [], time.monotonic() + ROUND
        random.shuffle(changes)  # one that can't be made does not keep another from its turn for good
        for change in changes:
            try:
                change()
            except (ConflictError, NotFoundError) as error:  # what others changed comes with the next snapshot
                log.debug("a reservation was changed by others: %s", error)
            except StoreError as error:
                wrong.append(str(error))
                if time.monotonic() > end:
                    break
        self._off_block.report(snapshot)  # last, as it asks for each pod, and the datastore may hang
        problems = [*self._off_block.problems(snapshot), *reservation_rules.disputes(snapshot, here)]
        if wrong:  # always the same of several: a text that differs each time would look like news
            problems.append(Problem(WHERE, f"they can't be kept: {min(wrong)}", "see the datastore"))
        return {str(problem): problem for problem in problems}

    def _local_pods(self, snapshot: Snapshot, in_progress: ReservationsInProgress) -> LocalPods:
        """Return what this node's pods have, as read after `in_progress`."""
        unreadable, pods = self._inputs.attachments.unreadable(), self._inputs.attachments.all()
        used = {address: _named(holder) for address, holder in holders(pods, unreadable).items()}
        left_alone = set(in_progress)
        claims: set[Claim] = set()
        for entry in unreadable:
            left_alone |= entry.addresses  # whose they are is not known
        for attachment in pods:
            if attachment.wired is None:  # its ADD is at work and claims them
                left_alone.update(attachment.reserved)
            claims.update(self._claims_of(attachment))
        return LocalPods(self._node, used, frozenset(claims), left_alone, self._off_block.update(snapshot, pods))

    def _claims_of(self, attachment: Attachment) -> Iterator[Claim]:
        """Yield a claim for each address of a pod: those that are not reserved count only while off-block."""
        network, name = attachment.network.name, attachment.pod or attachment.container_id
        for lease in attachment.leases:
            if lease.address in attachment.reserved:
                yield Claim(lease.address, attachment.owner, attachment.pod, self._node, network)
            else:
                yield Claim(lease.address, name, name, self._node, network, WHILE_POD)

    def _take(self, step: Step) -> None:
        held = step.reservation
        if isinstance(step, Delete):
            self._store.delete("IPReservation", held.name, held)
            log.info("reservation of %s for %s is over", held.address, held.owner)
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
            log.warning("%s of pod %s is in no block of this node: reserved", missing.address, missing.pod)
        else:
            log.warning(
                "reservation of %s was deleted, but pod %s has it: made again", missing.address, missing.pod
            )

    def _changed(self) -> None:
        self._set_reserved()
        self.wake()

    def _set_reserved(self) -> None:
        """Tell the allocator which addresses are reserved: no pod gets one that does not ask for it."""
        known = self._inputs.snapshot.get().reservations
        if known is not self._reserved:
            self._inputs.attachments.set_reserved(frozenset(held.address for held in known.values()))
            self._reserved = known


def save(path: Path, known: Mapping[str, IPReservation]) -> None:
    """Save what is known; without the file, an agent that restarts while the datastore is away knows less."""
    json_state_file.write(path, [objects.to_doc(held) for held in known.values()])


def load(path: Path) -> dict[str, IPReservation]:
    """Return what an earlier agent saved; nothing if its file cannot be used, see `unusable`."""
    known = _read(path)
    return {} if isinstance(known, Problem) else known


def unusable(path: Path) -> Problem | None:
    """Return why the file cannot be used; then pods get no address before the datastore has been read."""
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
    """Return the pod that has an address, for people."""
    if holder.link:
        return f"the pod behind link {holder.link}"
    return f"pod {holder.pod}" if holder.pod else holder.container_id
