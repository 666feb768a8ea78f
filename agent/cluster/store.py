"""The one interface behind which the cluster's objects live: a folder of manifests or Kubernetes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agent.model.cluster import IPBlock, IPPool, IPReservation, Node, ObjectMetadata, Resource
from agent.model.problem import Problem

Kind = Literal["Node", "IPPool", "IPBlock", "IPReservation", "Pod", "Namespace"]
KINDS: tuple[Kind, ...] = ("Node", "IPPool", "IPBlock", "IPReservation")
"""Those that are followed; the others are only asked for, one by one."""


def kind_of(obj: Resource) -> Kind:
    """The Kubernetes kind of a frozen object."""
    match obj:
        case Node():
            return "Node"
        case IPPool():
            return "IPPool"
        case IPBlock():
            return "IPBlock"
        case IPReservation():
            return "IPReservation"
        case ObjectMetadata():
            return obj.kind


@dataclass(frozen=True, slots=True)
class Listed:
    """A complete list of one kind: whatever is not in it is gone."""

    kind: Kind
    objects: tuple[Resource, ...]


@dataclass(frozen=True, slots=True)
class Upserted:
    """One object is new or has changed."""

    obj: Resource


@dataclass(frozen=True, slots=True)
class Deleted:
    """One object was deleted."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class SourceProblem:
    """A source (a file, a watch) that can't be used just now; its last good state stays in force."""

    source: str
    problem: Problem | None
    """None: the source is well again."""
    partial: bool = False
    """Whether the source is in use all the same, without what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A watch is alive though nothing changed: it was begun anew, or a bookmark came."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """Only the status of an object changed. Pods do not depend on it."""

    obj: IPPool

    @property
    def kind(self) -> Kind:
        """The kind of the object."""
        return kind_of(self.obj)


REASONS = EXPIRED, ENDED, FAILED = "expired", "ended", "failed"
"""Why a watch ends before its time: a new list is wanted, the server ended it, or it broke."""


@dataclass(frozen=True, slots=True)
class WatchRestarted:
    """A watch ended before its time and is begun anew; `reason` is one of REASONS."""

    kind: Kind
    reason: str


Change = Listed | Upserted | Deleted | SourceProblem | Bookmark | StatusChanged | WatchRestarted
Deliver = Callable[[Sequence[Change]], None]


class StoreError(Exception):
    """The datastore could not do what was asked (full disk, API away, refused)."""

    unsure = False
    """Whether it may have been done nevertheless, or may yet be (an answer that did not come)."""


class ConflictError(StoreError):
    """An object of that name exists already (create), or it changed since it was read (update)."""


class NotFoundError(StoreError):
    """There is no object of that kind and name."""


class Datastore(Protocol):
    """List, watch, get, create, update, delete of objects of KINDS; of other kinds only get.

    Every method may raise StoreError and none retries by itself, but for `watch`, which never gives up.
    """

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        """All objects of a kind now."""

    def get(self, kind: Kind, name: str) -> Resource:
        """The object now, a Pod by `namespace/name`; NotFoundError when there is none."""

    def watch(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver a Listed for each kind, then every change, in batches, until `stop` is set.

        Runs in the caller's thread and calls `deliver` from that one or others, never two at once.
        """

    def create(self, obj: Resource) -> Resource:
        """Create `obj` if and only if none of its kind and name exists, else ConflictError."""

    def update(self, obj: Resource) -> Resource:
        """Replace the object if its resource_version is still `obj.resource_version`, else ConflictError."""

    def delete(self, kind: Kind, name: str, known: Resource | None = None) -> None:
        """Delete the object; NotFoundError when there is none, ConflictError when it is not the `known` one."""

    def publish_accepted_modes(self, node: str, text: str) -> None:
        """Say of a node what it receives (agent.cluster.accepted_modes), beside what its Node object holds.

        An empty text removes what was said.
        """
