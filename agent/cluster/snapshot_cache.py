"""Keep a snapshot of the cluster by the changes that the datastore delivers."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent.cluster.kinds import KINDS, TABLE, Kind, kind_of
from agent.cluster.store import (
    RESTART_REASONS,
    Bookmark,
    Change,
    Datastore,
    Deleted,
    Listed,
    SourceProblem,
    StatusChanged,
    Upserted,
    WatchRestarted,
)
from agent.model.cluster import IPPool, IPReservation, Resource, Snapshot
from agent.model.problem import Problem
from agent.model.problem_board import ProblemBoard
from agent.model.usage import PoolStatus
from agent.runtime.counter import LabelledCounter
from agent.runtime.observable import Observable

log = logging.getLogger(__name__)


def apply(snapshot: Snapshot, changes: Sequence[Change], listed: frozenset[Kind]) -> Snapshot:
    """Return the snapshot after these changes; it is `synced` when every kind is in `listed`."""
    maps: dict[Kind, dict[str, Resource]] = {}

    def of(kind: Kind) -> dict[str, Resource]:
        if kind not in maps:  # copied once for all changes of a batch
            maps[kind] = dict(getattr(snapshot, TABLE[kind].snapshot_field))
        return maps[kind]

    for change in changes:
        match change:
            case Listed(kind, objects):
                maps[kind] = {obj.name: obj for obj in objects}
            case Upserted(obj):
                of(kind_of(obj))[obj.name] = obj
            case Deleted(kind, name):
                of(kind).pop(name, None)
            case SourceProblem() | Bookmark() | StatusChanged() | WatchRestarted():
                continue
    changed: dict[str, Any] = {TABLE[kind].snapshot_field: objects for kind, objects in maps.items()}
    return replace(snapshot, synced=listed >= set(KINDS), **changed)


class SnapshotCache:
    """Keeps the newest snapshot of the cluster, and the problems of the datastore."""

    def __init__(
        self,
        store: Datastore,
        earlier: Mapping[str, IPReservation] | None = None,
        board: ProblemBoard | None = None,
    ) -> None:
        """`earlier`: the reservations that the last agent knew, which count until the datastore is read."""
        board = board or ProblemBoard()
        self.snapshot: Observable[Snapshot] = Observable(Snapshot(reservations=earlier or {}))
        self.problems = board.part("datastore")
        """Sources that are temporarily unavailable, so that objects may be missing in the snapshot."""
        self.invalid = board.part("objects")
        """Sources that are in use, but for the parts that are wrong."""
        self.pool_status: Observable[Mapping[str, PoolStatus]] = Observable({})
        """The status of each IPPool. It is not in the snapshot, as pods do not depend on it."""
        self.watch_restarts = LabelledCounter(*itertools.product(KINDS, RESTART_REASONS))
        """Counts restarted watches by kind and reason."""
        self._changed_at: dict[Kind, float] = {}
        self._store = store
        self._listed: frozenset[Kind] = frozenset()

    def run(self, stop: threading.Event) -> None:
        """Apply the datastore's changes until `stop` is set."""
        self._store.watch(self.deliver, stop)

    def deliver(self, changes: Sequence[Change]) -> None:
        """Apply a batch of changes."""
        now = time.monotonic()
        for change in changes:
            if isinstance(change, WatchRestarted):
                self.watch_restarts.add(change.kind, change.reason)
            elif not isinstance(change, SourceProblem):
                self._changed_at[kind_of(change.obj) if isinstance(change, Upserted) else change.kind] = now
        self._listed |= {change.kind for change in changes if isinstance(change, Listed)}
        if any(isinstance(change, Listed | Upserted | Deleted) for change in changes):
            self.snapshot.update(lambda snapshot: apply(snapshot, changes, self._listed))
        self.pool_status.update(lambda known: _pool_status(known, changes))
        found = [change for change in changes if isinstance(change, SourceProblem)]
        if found:
            # a source that changes from the one to the other is removed from the first
            unavailable = [SourceProblem(p.source, None) if p.partial else p for p in found]
            invalid = [p if p.partial else SourceProblem(p.source, None) for p in found]
            self.problems.update(lambda known: _updated(known, unavailable))
            self.invalid.update(lambda known: _updated(known, invalid))

    def seconds_since_change(self) -> Mapping[Kind, float]:
        """Return the seconds since the datastore last delivered anything of each kind."""
        now = time.monotonic()
        return {kind: now - when for kind, when in self._changed_at.copy().items()}


def _pool_status(known: Mapping[str, PoolStatus], changes: Sequence[Change]) -> Mapping[str, PoolStatus]:
    now = dict(known)
    for change in changes:
        match change:
            case Listed("IPPool", objects):
                now = {obj.name: obj.status for obj in objects if isinstance(obj, IPPool)}
            case Upserted(IPPool() as obj) | StatusChanged(obj):
                now[obj.name] = obj.status
            case Deleted("IPPool", name):
                now.pop(name, None)
    return now


def _updated(known: Mapping[str, Problem], changes: Sequence[SourceProblem]) -> Mapping[str, Problem]:
    now = dict(known)
    for change in changes:
        if change.problem is None:
            if now.pop(change.source, None):
                log.info("%s recovered", change.source)
        else:
            if now.get(change.source) != change.problem:
                log.warning("%s", change.problem)
            now[change.source] = change.problem
    return now
