"""Write IPBlockUsages, by which people see with kubectl which addresses a node uses. No pod depends on them."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass

from agent.cluster.api import ApiError
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import ConflictError, NotFoundError, StoreError
from agent.cluster.usage_objects import Usages
from agent.ipam import usage
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.attachments.holders import Holder, holders
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.model.usage import BlockUsage
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable

EVERY = 10.0  # seconds between two looks at the node's addresses, and so between two writes of a block
SOON = 1.0  # seconds: as long as nothing has been written yet
BACKOFF = 5.0, 300.0  # seconds after a failure, first and longest
AFRESH = 1800.0, 3600.0  # seconds until the node's objects are listed again, as people may have deleted some
REFUSED = (401, 403, 404)  # HTTP: older CustomResourceDefinitions or an older ClusterRole
REFUSED_FOR = 60.0  # seconds until that is a problem: an API server needs 30 for new kinds, rights and policies

log = logging.getLogger(__name__)


class Failures:
    """Requests that fail: one line of the log, a problem where a person must do something, and longer pauses."""

    def __init__(self, problems: PartProblems, what: str, backoff: tuple[float, float]) -> None:
        """`backoff`: seconds after a failure, first and longest."""
        self._problems = problems
        self._what = what
        self._backoff = backoff
        self._count = 0
        self._refused_since: float | None = None

    def clear(self) -> None:
        """Note that requests were answered."""
        if self._count:
            log.info("%s can be written again", self._what)
        self._count, self._refused_since = 0, None
        self._problems.update(lambda known: {k: p for k, p in known.items() if k != self._what})

    def note(self, error: StoreError, now: float) -> None:
        """Note that a request failed; `now` is of the clock."""
        log.log(logging.DEBUG if self._count else logging.WARNING, "%s can't be written: %s", self._what, error)
        self._count += 1
        if not (isinstance(error, NotFoundError) or (isinstance(error, ApiError) and error.status in REFUSED)):
            return
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since >= REFUSED_FOR:
            remedy = "apply the manifests of the agents' version: kubectl apply -f manifests/; pods do not need it"
            problem = Problem(self._what, f"it can't be written: {error}", remedy)
            self._problems.update(lambda known: {**known, self._what: problem})

    def pause(self) -> float:
        """Return the seconds to wait after the last failure."""
        first, longest = self._backoff
        return min(longest, first * 2.0 ** min(self._count - 1, 16))


@dataclass(frozen=True, slots=True)
class Seen:
    """The inputs of the writers of status objects: the cluster and the agent's own node."""

    node: str
    snapshot_cache: SnapshotCache
    status: Observable[NodeStatus]
    attachments: AttachmentStore


class UsageWriter(Controller):
    """Writes an IPBlockUsage for each block of the node. Nothing wakes it, so that it costs an ADD nothing."""

    def __init__(self, usages: Usages, seen: Seen, problems: PartProblems, clock: Clock = SYSTEM_CLOCK) -> None:
        schedule = Schedule(EVERY, first=SOON, backoff=BACKOFF)
        super().__init__(schedule, problems.report_error, clock=clock)
        self._usages = usages
        self._seen = seen
        self._failures = Failures(problems, "IPBlockUsages of this node", BACKOFF)
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
        snapshot, status, node = self._seen.snapshot_cache.snapshot.get(), self._seen.status.get(), self._seen.node
        if node not in snapshot.nodes:
            self._known = None  # its objects go with the Node
            return True
        if snapshot.nodes[node].created != self._created:  # it was deleted and created again meanwhile
            self._known, self._created = None, snapshot.nodes[node].created
        if not (snapshot.synced and status.synced and status.blocks):
            return True  # nothing is deleted on half a picture
        unreadable, attachments = self._seen.attachments.unreadable(), self._seen.attachments.all()
        pods = {address: _named(holder) for address, holder in holders(attachments, unreadable).items()}
        wanted = usage.of_node(node, snapshot, status, pods, self._seen.attachments.counts)
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
            self._uid = self._usages.uid(self._seen.node)
            self._known = self._usages.of_node(self._seen.node, self._uid)
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
