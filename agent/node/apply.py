"""Program the node's objects, stage by stage: one that fails does not hold up the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from agent.kernel.ip_links import Link
from agent.model.marks import LINK_PREFIX
from agent.model.problem import Problem
from agent.objects import bridge_link
from agent.objects.base import Context, DeviceObject, Guarded, NodeObject, Result, Stage
from agent.objects.state import NodeState
from agent.runtime.counter import LabelledCounter


@dataclass
class ApplyResult:
    """The results of all objects in a round."""

    by_kind: dict[str, Result] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unready: set[str] = field(default_factory=set)
    """Devices that pods can't depend on."""

    @property
    def failures(self) -> frozenset[str]:
        """The kinds of which something failed that may succeed when it is tried again."""
        return frozenset(kind for kind, result in self.by_kind.items() if result.failed)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be tried again."""
        return not any(result.failed or result.busy for result in self.by_kind.values())

    def of(self, kind: str) -> Result:
        """Return what came of the objects of one kind."""
        return self.by_kind.get(kind, Result())

    def add(self, kind: str, result: Result) -> None:
        """Take in what came of one object."""
        self.by_kind[kind] = self.of(kind) + result
        self.problems += result.problems
        self.unready |= result.unready


class Drift:
    """Distinguish what others changed from what we changed because more or less is desired now."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self.repaired = LabelledCounter(*((kind,) for kind in kinds))
        self._settled: dict[str, object] = {}

    def note(self, wanted: dict[str, object], done: ApplyResult) -> None:
        """Count what was not as desired though it had been, and the same had been desired."""
        for kind, want in wanted.items():
            if self._settled.get(kind) == want:
                self.repaired.add(kind, by=done.of(kind).changed)
            if kind in done.failures:
                self._settled.pop(kind, None)
            else:
                self._settled[kind] = want


class NodeProgrammer:
    """All objects of a node, those of its modes included."""

    def __init__(self, objects: Iterable[NodeObject]) -> None:
        self._objects = sorted(objects, key=lambda each: each.stage)
        self._devices = [each for each in self._objects if isinstance(each, DeviceObject)]
        self.kinds = tuple(dict.fromkeys(each.kind for each in self._objects))
        self.drift = Drift(self.kinds)
        self._last: dict[str, object] = {}
        """The desired part of each costly object at its last programming."""

    def is_made(self, link: Link) -> bool:
        """Return whether testcni made a link, for a pod or for the node."""
        if link.name.startswith(LINK_PREFIX) or bridge_link.is_ours(link):
            return True
        return any(device.is_ours(link) for device in self._devices)

    def encapsulates(self) -> bool:
        """Return whether devices encapsulate what goes through tunnels, and not eBPF programs. Raises OSError."""
        return all(device.encapsulates() for device in self._devices)

    def program(self, ctx: Context, desired: NodeState) -> ApplyResult:
        """Make the kernel's state the desired one."""
        done = ApplyResult()
        leaving = [device for device in self._devices if device.leaves(desired)]
        for device in leaving:  # guards are there before what they guard, and go after it
            self._step(device, ctx, desired, done)
            ctx = replace(ctx, still_guarded=ctx.still_guarded | _still_guarded(device, ctx, desired, done))
        for each in self._objects:
            if each in leaving:
                continue
            attempted = self._step(each, replace(ctx, failed=done.failures), desired, done)
            if each.stage is Stage.ROUTES and attempted:
                self._tidy(ctx, desired, done)
        self.drift.note(self._wanted(desired), done)
        return done

    def _step(self, each: NodeObject, ctx: Context, desired: NodeState, done: ApplyResult) -> bool:
        wanted = each.wanted(desired)
        if each.costly and not ctx.verify and self._last.get(each.kind) == wanted:
            return True
        if each.costly:
            self._last[each.kind] = wanted
        if _attempt(each.kind, lambda: each.sync(ctx, desired), done):
            return True
        if each.stage < Stage.ROUTES:  # a pod that can't get out must not come up as if it could
            done.unready |= desired.devices
        return False

    def _tidy(self, ctx: Context, desired: NodeState, done: ApplyResult) -> None:
        for device in self._devices:
            _attempt(device.kind, lambda device=device: device.tidy(ctx, desired), done)  # type: ignore[misc]

    def _wanted(self, desired: NodeState) -> dict[str, object]:
        """Return what is desired of each kind, which may be several objects."""
        return {
            kind: tuple(each.wanted(desired) for each in self._objects if each.kind == kind) for kind in self.kinds
        }


def _still_guarded(device: DeviceObject, ctx: Context, desired: NodeState, done: ApplyResult) -> Guarded:
    try:
        return device.still_guarded(ctx, desired)
    except OSError as error:
        done.add(device.kind, _failed(device.kind, error))
        return device.closed()


def _attempt(kind: str, step: Callable[[], Result | None], done: ApplyResult) -> bool:
    try:
        done.add(kind, step() or Result())
    except OSError as error:
        done.add(kind, _failed(kind, error))
        return False
    return True


def _failed(kind: str, error: OSError) -> Result:
    return Result((Problem(kind, str(error), "it is tried again"),), failed=True)
