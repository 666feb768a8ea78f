"""Write IPBlockUsages, by which people see with kubectl which addresses a node uses. No pod depends on them."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping

from agent.cluster.store import ConflictError, NotFoundError, StoreError
from agent.cluster.usage_objects import Usages
from agent.ipam import usage
from agent.ipam.attachments.holders import Holder, holders
from agent.model.problem_board import PartProblems
from agent.model.usage import BlockUsage
from agent.publish.status_inputs import StatusInputs
from agent.publish.write_failures import WriteFailures
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.controller import Controller, Schedule

EVERY = 10.0  # seconds between two looks at the node's addresses, and so between two writes of a block
SOON = 1.0  # seconds: as long as nothing has been written yet
BACKOFF = 5.0, 300.0  # seconds after a failure, first and longest
AFRESH = 1800.0, 3600.0  # seconds until the node's objects are listed again, as people may have deleted some

log = logging.getLogger(__name__)


class UsageWriter(Controller):
    """Writes an IPBlockUsage for each block of the node. Nothing wakes it, so that it costs an ADD nothing."""

    def __init__(
        self, usages: Usages, inputs: StatusInputs, problems: PartProblems, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        schedule = Schedule(EVERY, first=SOON, backoff=BACKOFF)
        super().__init__(schedule, problems.report_error, clock=clock)
        self._usages = usages
        self._inputs = inputs
        self._failures = WriteFailures(problems, "IPBlockUsages of this node", BACKOFF)
        self._known: dict[str, BlockUsage | None] | None = None
        """The objects that the API server has; None: that is to be found out."""
        self._uid = ""
        self._created = ""
        """The time when the Node with that UID was created."""
        self._list_again = 0.0
        self._foreign: frozenset[str] = frozenset()

    def pause(self) -> float:
        """Return the seconds to the next round."""
        return EVERY if self._uid else SOON

    def once(self) -> bool:
        """Write what has changed; return False when a request failed."""
        node, status = self._inputs.node, self._inputs.status.get()
        snapshot = self._inputs.snapshot_cache.snapshot.get()
        if node not in snapshot.nodes:
            self._known = None  # its objects go with the Node
            return True
        if snapshot.nodes[node].created != self._created:  # it was deleted and created again meanwhile
            self._known, self._created = None, snapshot.nodes[node].created
        if not (snapshot.synced and status.synced and status.blocks):
            return True  # nothing is deleted on half a picture
        unreadable, attachments = self._inputs.attachments.unreadable(), self._inputs.attachments.all()
        pods = {address: _named(holder) for address, holder in holders(attachments, unreadable).items()}
        wanted = usage.of_node(node, snapshot, status, pods, self._inputs.attachments.counts)
        try:
            known = self._already()
            if self._uid:  # else the Node was deleted a moment ago
                self._write(wanted, known)
        except StoreError as error:
            if self._known is not None and isinstance(error, NotFoundError):
                log.info("objects were deleted, by a person or with an earlier Node: %s", error)
                self._known = None  # they are listed again, which shows whether the kind exists
                return True
            self._failures.note(error, self._clock.now())
            return False
        self._failures.clear()
        return True

    def _already(self) -> dict[str, BlockUsage | None]:
        """Return what the API server has of this node. Raises StoreError."""
        if self._known is None or self._clock.now() > self._list_again:
            self._uid = self._usages.uid(self._inputs.node)
            self._known = self._usages.of_node(self._inputs.node, self._uid)
            self._list_again = self._clock.now() + random.uniform(*AFRESH)  # noqa: S311
        return self._known

    def _write(self, wanted: Mapping[str, BlockUsage], known: dict[str, BlockUsage | None]) -> None:
        """Make the objects what they should be; one that can't be made so keeps no other. Raises StoreError."""
        failed: StoreError | None = None
        foreign = set()
        for name in sorted(known.keys() | wanted.keys()):
            if name in wanted and known.get(name) == wanted[name]:
                continue
            try:
                self._put(name, wanted.get(name), known)
            except ConflictError as error:
                foreign.add(name)
                if name not in self._foreign:
                    log.info("%s: %s; it is looked whose it is", name, error)
                    self._known = None
            except StoreError as error:
                failed = failed or error
        self._foreign = frozenset(foreign)
        if failed:
            raise failed

    def _put(self, name: str, wanted: BlockUsage | None, known: dict[str, BlockUsage | None]) -> None:
        """Create, change or delete an object, and note it in `known`. Raises StoreError."""
        if wanted is None:
            try:
                self._usages.delete(name)
            except NotFoundError:
                log.debug("%s was deleted already", name)
            del known[name]
            return
        if name in known:
            self._usages.change(wanted, self._uid)
        else:
            self._usages.create(wanted, self._uid)
        known[name] = wanted


def _named(holder: Holder) -> str:
    """Return the pod that has an address, for people."""
    if holder.link:
        return f"(the pod behind link {holder.link})"
    return holder.pod or f"(container {holder.container_id})"
