"""Define the interface to the cluster's objects, behind which is a directory of manifests or Kubernetes.

Changes have the names of the Kubernetes watch protocol (API concepts, efficient detection of changes).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.cluster.kinds import Kind, kind_of
from agent.model.cluster import IPPool, Resource
from agent.model.problem import Problem


@dataclass(frozen=True, slots=True)
class Listed:
    """All objects of one kind were listed; an object that is not in the list does not exist."""

    kind: Kind
    objects: tuple[Resource, ...]


@dataclass(frozen=True, slots=True)
class Upserted:
    """One object was created or changed."""

    obj: Resource


@dataclass(frozen=True, slots=True)
class Deleted:
    """One object was deleted."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class SourceProblem:
    """A source (a file, a watch) failed, or recovered. While it fails, its last good state stays in use."""

    source: str
    problem: Problem | None
    """None: the source recovered."""
    partial: bool = False
    """Whether only the faulty parts of the source are ignored, and the rest is in use."""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A watch works though nothing changed: it was restarted, or a bookmark arrived."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """Only the status of a pool changed. Pods do not depend on it."""

    obj: IPPool

    @property
    def kind(self) -> Kind:
        """The kind of the object."""
        return kind_of(self.obj)


RESTART_REASONS = EXPIRED, ENDED, FAILED = "expired", "ended", "failed"
"""The reasons why a watch ended early: the resourceVersion expired, the server ended it, the connection failed."""


@dataclass(frozen=True, slots=True)
class WatchRestarted:
    """A watch ended early and is restarted; `reason` is one of RESTART_REASONS."""

    kind: Kind
    reason: str


Change = Listed | Upserted | Deleted | SourceProblem | Bookmark | StatusChanged | WatchRestarted
Deliver = Callable[[Sequence[Change]], None]


class StoreError(Exception):
    """A request to the datastore failed (full disk, API server unreachable, request refused)."""

    outcome_unknown = False
    """Whether the request may have taken effect, or may still take effect, as no answer arrived."""
    timed_out = False
    """Whether the datastore was too slow: another request may be answered in time."""


class ConflictError(StoreError):
    """An object of that name exists (create), or it changed since it was read (update, delete)."""


class NotFoundError(StoreError):
    """There is no object of that kind and name."""


class Datastore(Protocol):
    """List, watch, get, create, update and delete objects of KINDS; get objects of other kinds.

    Every method may raise StoreError. No method retries, except `watch`, which never stops trying.
    """

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        """Return all objects of a kind."""

    def get(self, kind: Kind, name: str) -> Resource:
        """Return an object, a Pod by `namespace/name`. Raises NotFoundError where there is none."""

    def watch(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver a Listed for each kind, then every change, in batches, until `stop` is set.

        Runs in the caller's thread. `deliver` is called from this thread or others, one call at a time.
        """

    def create(self, obj: Resource) -> Resource:
        """Create an object. Raises ConflictError where one of its kind and name exists."""

    def update(self, obj: Resource) -> Resource:
        """Replace an object. Raises ConflictError where its resource_version is another than that of `obj`."""

    def delete(self, kind: Kind, name: str, known: Resource | None = None) -> None:
        """Delete an object. Raises NotFoundError, and ConflictError where it is not the `known` one."""

    def publish_accepted_modes(self, node: str, text: str) -> None:
        """Publish the modes that a node accepts (agent.cluster.accepted_modes), beside its Node object.

        An empty text removes what was published.
        """
