"""The status of IPPools: every agent knows enough to write it, and chance says which one does.

An agent counts the addresses of pools after a random time, which is longer the more nodes there are, and starts
again when another one has written. Whether a pool can be used is written as soon as it changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from agent.cluster.object_fields import rfc3339
from agent.cluster.pool_status_object import LONGEST_MESSAGE
from agent.cluster.store import NotFoundError, StoreError
from agent.cluster.usage_objects import Usages
from agent.ipam import pool_faults, usage
from agent.model.cluster import Snapshot
from agent.model.problem_board import PartProblems
from agent.model.usage import Condition, PoolCounts
from agent.publish.status_inputs import StatusInputs
from agent.publish.write_failures import WriteFailures
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from agent.runtime.controller import Controller, Schedule
from agent.runtime.pace import Pace

COUNT_EVERY = 15.0, 60.0  # seconds: for each node, and at most; times the nodes it is the longest pause of one
SETTLE = 1.0  # seconds in which the node path has looked at a change, too
SPREAD = 0.1, 30.0  # seconds: for each node, and at most; in which a new condition is written
SEEN_WITHIN = 30.0  # seconds in which the watch shows what was written
WRITES = 10, 30.0  # conditions at once, then one in so many seconds: agents of two versions may differ about one
USABLE, UNUSABLE, ON_NODE = "Usable", "Unusable", "UnusableOnNode"
LONGEST_PAUSE = 5.0  # seconds between two looks
BACKOFF = 5.0, 300.0  # seconds after a failure, first and longest
NEVER = float("inf")


def condition(known: Condition | None, node: str, everywhere: str, here: str, snapshot: Snapshot) -> Condition:
    """Return what a pool's condition should be, without `since`.

    `everywhere`: what is wrong with it as all agents see it. `here`: what is wrong on this node. Other agents
    do not see that, so they leave it to this node's agent to take it back, as long as there is such a node.
    """
    if everywhere:
        return Condition(False, UNUSABLE, everywhere[:LONGEST_MESSAGE])
    if known and known.reason == ON_NODE:
        other = known.message.partition(": ")[0].removeprefix("node ")
        if other != node and other in snapshot.nodes:
            return replace(known, since="")
    if here:
        return Condition(False, ON_NODE, f"node {node}: {here}"[:LONGEST_MESSAGE])
    return Condition(True, USABLE, "its range has no known fault")


class PoolStatusWriter(Controller):
    """Writes used and free addresses, blocks and the condition of IPPools."""

    def __init__(
        self, usages: Usages, inputs: StatusInputs, problems: PartProblems, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        sources = (inputs.status, inputs.snapshot_cache.pool_status)
        schedule = Schedule(resync=LONGEST_PAUSE, backoff=BACKOFF)
        super().__init__(schedule, problems.report_error, sources, clock)
        self._usages = usages
        self._inputs = inputs
        self._failures = WriteFailures(problems, "the status of IPPools", BACKOFF)
        self._faults = pool_faults.PoolFaultCache()
        self._counted: Mapping[str, PoolCounts | None] = {}
        self._count_at = self._write_at = NEVER
        self._blocked_until = 0.0
        self._written: dict[str, tuple[Condition, float]] = {}
        self._missing: dict[str, float] = {}
        """The time when the API server first did not know a pool that the watch still shows, by pool."""
        self._credit = Pace(*WRITES, clock)

    def pause(self) -> float:
        """Return the seconds until there is something to do."""
        return max(0.0, min(LONGEST_PAUSE, self._next() - self._clock.now()))

    def once(self) -> bool:
        """Write what is due; what fails is tried again after a longer and longer time."""
        snapshot, now = self._inputs.snapshot_cache.snapshot.get(), self._clock.now()
        if not (snapshot.synced and self._inputs.status.get().synced) or now < self._blocked_until:
            return True
        try:
            asked = self._conditions(snapshot, now)
            asked |= self._counts(snapshot, now)
        except StoreError as error:
            self._failures.note(error, now)
            self._count_at = self._write_at = NEVER
            self._blocked_until = now + self._failures.pause()  # also when something wakes the loop
            return False
        if asked:
            self._failures.clear()
        return True

    def _next(self) -> float:
        """Return when there is something to do, by the clock."""
        return max(self._blocked_until, min(self._count_at, self._write_at))

    def _counts(self, snapshot: Snapshot, now: float) -> bool:
        """Count when it is time to, and return whether the API server was asked. Raises StoreError."""
        nodes, known = len(snapshot.nodes), self._inputs.snapshot_cache.pool_status.get()
        counted = {name: status.counts for name, status in known.items()}
        if counted != self._counted or self._count_at == NEVER:  # another agent has just counted
            self._counted = counted
            new = None in counted.values()  # and need not wait
            self._count_at = now + (_spread(nodes) if new else _pause(nodes))
        if not known or now < self._count_at:
            return False
        self._count_at = now + _pause(nodes)
        found = usage.of_pools(snapshot, self._usages.of_pools())
        changed = [name for name, counts in found.items() if name in known and known[name].counts != counts]
        self._each(changed, lambda name: self._usages.write_counts(name, found[name]), now)
        return True

    def _conditions(self, snapshot: Snapshot, now: float) -> bool:
        """Write what has changed, after a while, and return whether there was any. Raises StoreError."""
        changed = self._changed(snapshot, now)
        if not changed:
            self._write_at = NEVER
        elif self._write_at == NEVER:
            self._write_at = now + SETTLE + _spread(len(snapshot.nodes))
        if not changed or now < self._write_at:
            return False
        self._write_at = NEVER
        due = [name for name in sorted(changed) if self._credit.spend()]
        self._written.update({name: (changed[name], now) for name in due})
        self._each(due, lambda name: self._usages.write_condition(name, changed[name]), now)
        return bool(due)

    def _changed(self, snapshot: Snapshot, now: float) -> dict[str, Condition]:
        """Return the conditions that differ from what the datastore says."""
        status, known = self._inputs.status.get(), self._inputs.snapshot_cache.pool_status.get()
        everywhere = self._faults.look(snapshot, None)  # else agents would overwrite each other
        self._written = {
            name: entry for name, entry in self._written.items() if name in known and entry[1] + SEEN_WITHIN > now
        }
        found = {}
        for name in known.keys() & snapshot.pools.keys():
            before, here = known[name].condition, status.pool_faults.get(name, "")
            should = condition(before, self._inputs.node, everywhere.get(name, ""), here, snapshot)
            same = before is not None and replace(before, since="") == should
            if same or (name in self._written and replace(self._written[name][0], since="") == should):
                continue
            since = before.since if before and before.ok == should.ok else rfc3339(datetime.now(UTC))
            found[name] = replace(should, since=since)
        return found

    def _each(self, names: Iterable[str], write: Callable[[str], None], now: float) -> None:
        """Write for each pool; one that fails keeps no other. Raises StoreError."""
        failed: StoreError | None = None
        there = self._inputs.snapshot_cache.pool_status.get()
        self._missing = {name: since for name, since in self._missing.items() if name in there}
        for name in names:
            try:
                write(name)
                self._missing.pop(name, None)
            except NotFoundError as error:  # it was deleted a moment ago, or has no status (an older definition)
                if now - self._missing.setdefault(name, now) > SEEN_WITHIN:
                    failed = failed or error
            except StoreError as error:
                failed = failed or error
        if failed:
            raise failed


def _pause(nodes: int) -> float:
    each, most = COUNT_EVERY
    return random.uniform(0, nodes * min(each * nodes, most))  # noqa: S311


def _spread(nodes: int) -> float:
    each, most = SPREAD
    return random.uniform(0, min(each * nodes, most))  # noqa: S311
