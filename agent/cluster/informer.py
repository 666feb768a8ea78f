"""One kind in Kubernetes: a list and a watch, resumed where it broke off."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_random_exponential,
)

from agent.cluster import listing
from agent.cluster.api import GONE, Api, ApiError, GarbledError, GoneError, Request, Stream
from agent.cluster.object_fields import Faults, ObjectError
from agent.cluster.store import (
    ENDED,
    EXPIRED,
    FAILED,
    Bookmark,
    Change,
    Deleted,
    Deliver,
    Kind,
    Listed,
    NotFoundError,
    SourceProblem,
    StatusChanged,
    StoreError,
    Upserted,
    WatchRestarted,
)
from agent.model.cluster import IPPool, Resource
from agent.model.problem import Problem
from agent.runtime.pace import Pace

FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds
BROKEN = 500  # HTTP statuses from here on are the server's own fault (RFC 9110, 15.6)
UNREAD = "look at the objects of this kind; all are listed anew when the watch ends"
RESTARTS = 10, 5.0  # watches at once, then one in so many seconds: each may end as soon as it brought something
SHORTEST = 1.0  # seconds: a watch that ends sooner and brought nothing has failed
IN_TIME = 0.99  # of the time asked for: clocks differ a little

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchDuration:
    """How long a watch runs, in seconds.

    The server ends it after the time that it is asked for (`timeoutSeconds`, API reference). Nothing else need
    come: bookmarks are not guaranteed (API concepts, watch bookmarks), so silence until then is normal.
    """

    shortest: int = 180
    longest: int = 270
    """The time asked for is by chance between the two: not all nodes come back at once."""
    slack: float = 20.0
    """A server that is this much too late hangs."""


class Informer:
    """One kind: what is known of it, and from which resourceVersion on it is to be followed.

    `answers` is notified when a server that had not answered does again: the other kinds need not wait any longer.
    """

    def __init__(
        self, api: Api, kind: Kind, answers: threading.Condition | None = None, lasts: WatchDuration | None = None
    ) -> None:
        self.kind = kind
        self._api = api
        self._answers = answers or threading.Condition()
        self._lasts = lasts or WatchDuration()
        self._away = False
        self._broke = self._useless = False
        self._server = f"API server, {kind}"
        self._version = ""
        self._heard = 0
        self._known: dict[str, Resource] = {}
        self._troubles: set[str] = set()
        self._stream: Stream | None = None
        self._deliver: Deliver = lambda _changes: None
        self._pace = Pace(*RESTARTS)

    def run(self, deliver: Deliver, stop: threading.Event) -> None:
        """Follow until `stop` is set, whatever the API server does."""
        self._deliver = deliver
        backoff = wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)
        while not stop.is_set():
            self._pace.wait(stop)
            retrying = Retrying(
                retry=retry_if_exception_type(StoreError),
                wait=lambda state: max(backoff(state), _retry_after(state)),
                stop=stop_when_event_set(stop),
                sleep=lambda seconds: self._wait(seconds, stop),
                before_sleep=self._failed,
                retry_error_callback=lambda _state: None,  # stopped
            )
            retrying(self._session)

    def close(self) -> None:
        """End the connection; `run` begins another one unless it was told to stop."""
        with self._answers:
            self._answers.notify_all()
        if stream := self._stream:
            stream.close()

    def _wait(self, seconds: float, stop: threading.Event) -> None:
        """Until the time is over, or a server that was away has answered somebody else."""
        if not self._away:
            stop.wait(seconds)
            return
        with self._answers:
            if not stop.is_set():
                self._answers.wait(seconds)

    def _answered(self) -> None:
        if self._away:
            self._away = False
            with self._answers:
                self._answers.notify_all()

    def _session(self) -> None:
        """List where needed, then watch for as long as it goes; raises StoreError if nothing came of it."""
        if not self._version:
            self._list()
            self._answered()
        elif self._broke:  # a server that hangs may take a watch, but answers nothing
            self._api.ask(Request("GET", listing.PATHS[self.kind], {"limit": "1", "resourceVersion": "0"}))
        self._broke = False
        asked = random.randint(self._lasts.shortest, self._lasts.longest)  # noqa: S311
        began, heard, garbled = time.monotonic(), self._heard, None
        try:
            self._stream = self._open(asked)
            for event in self._stream:
                if isinstance(event, GarbledError):
                    garbled = event
                    source = f"{self._server}, event"
                    self._tell([], (), {source: SourceProblem(source, Problem(self._server, str(event), UNREAD))})
                else:
                    self._take(event)
        except GoneError as error:
            self._version = ""
            self._ended(EXPIRED, began, heard, error)
        except StoreError as error:
            self._broke = isinstance(error, ApiError) and error.status == 0
            self._ended(FAILED, began, heard, error)
        else:
            early = ApiError("the server ends the watch as soon as it begins")
            in_time = time.monotonic() - began >= asked * IN_TIME
            self._ended("" if in_time else ENDED, began, heard, garbled or early)
        finally:
            if garbled and self._heard != heard:  # only a new list says what the event was
                self._version = ""
            self._stream = None

    def _open(self, asked: int) -> Stream:
        """A watch of `asked` seconds; that the server took it is news of a kind of which nothing else may come."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(asked),
        }
        stream = self._api.watch(listing.PATHS[self.kind], query, asked + self._lasts.slack)
        self._answered()
        self._tell([Bookmark(self.kind)], () if self._useless else (self._server,), {})
        return stream

    def _ended(self, reason: str, began: float, heard: float, error: StoreError) -> None:
        """A watch that brought something, or ran for a while, may begin again at its pace.

        Else `error` is raised, so that it waits. An empty `reason`: it ended in time, which is not counted.
        """
        log.debug("watch of %s: %s (%s)", self.kind, reason or "ended in time", error)
        if reason:
            self._deliver([WatchRestarted(self.kind, reason)])
        self._useless = self._heard == heard and time.monotonic() - began < SHORTEST
        if self._useless:
            raise error

    def _failed(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._away = isinstance(error, ApiError) and (error.status == 0 or error.status >= BROKEN)
        remedy = "it is tried again; until then the last state stays in force"
        if isinstance(error, NotFoundError):
            remedy = "install the CustomResourceDefinitions: kubectl apply -f manifests/"
        elif isinstance(error, ApiError) and error.status in (401, 403):
            remedy = "give the agent's service account its ClusterRole: kubectl apply -f manifests/"
        self._tell([], (), {self._server: SourceProblem(self._server, Problem(self._server, str(error), remedy))})
        log.log(logging.WARNING if state.attempt_number == 1 else logging.DEBUG, "%s: %s", self._server, error)

    def _list(self) -> None:
        """Deliver the complete list; what can't be parsed keeps its last good state."""
        version: list[str] = []
        found: dict[str, Resource] = {}
        troubles: dict[str, SourceProblem] = {}
        for item in listing.items(self._api, self.kind, version.append):
            obj = self._parse(item, troubles)
            if obj:
                found[obj.name] = obj
        self._known, self._version = found, version[0]
        self._tell([Listed(self.kind, tuple(found.values()))], self._troubles, troubles)

    def _take(self, event: dict[str, Any]) -> None:
        """Deliver what an event changes. Raises GoneError, ApiError."""
        kind, item = event.get("type"), event["object"]
        if kind == "ERROR":
            message, code = str(item.get("message", "unknown"))[:500], item.get("code")
            status = code if isinstance(code, int) else BROKEN
            raise GoneError(message, GONE) if status == GONE else ApiError(message, status)
        metadata = listing.metadata(item)
        source = _source(self.kind, item)
        troubles: dict[str, SourceProblem] = {}
        changes: list[Change] = []
        if kind in ("ADDED", "MODIFIED"):
            obj = self._parse(item, troubles)
            if obj and self._known.get(obj.name) != obj:  # a Node changes every few minutes, but nothing of ours
                self._known[obj.name] = obj
                changes.append(Upserted(obj))
            elif isinstance(obj, IPPool):
                changes.append(StatusChanged(obj))
        elif kind == "DELETED":
            self._known.pop(str(metadata.get("name")), None)
            changes.append(Deleted(self.kind, str(metadata.get("name"))))
        self._heard += 1
        self._tell(changes or [Bookmark(self.kind)], (source, self._server), troubles)
        self._version = listing.version(metadata) or self._version  # a bookmark has only that

    def _parse(self, item: dict[str, Any], troubles: dict[str, SourceProblem]) -> Resource | None:
        """The object, or its last good state, and what is wrong with it."""
        source, faults = _source(self.kind, item), Faults()
        known = self._known.get(str(listing.metadata(item).get("name")))
        try:
            obj = listing.parse(self.kind, item, faults, known)
        except ObjectError as error:
            troubles[source] = SourceProblem(source, Problem(f"{source} {error.path}", error.what, error.remedy))
            return known or error.closed
        if faults:
            first, more = faults[0], "".join(f"; {fault.path} {fault.what}" for fault in faults[1:])
            problem = Problem(f"{source} {first.path}", first.what + more, first.remedy)
            troubles[source] = SourceProblem(source, problem, partial=True)
        return obj

    def _tell(self, changes: list[Change], seen: Collection[str], troubles: Mapping[str, SourceProblem]) -> None:
        """Deliver changes and troubles. A trouble ends when its source is `seen` to work again."""
        over = (self._troubles & set(seen)) - troubles.keys()
        self._troubles = (self._troubles - over) | troubles.keys()
        told = [
            *changes,
            *(SourceProblem(source, None) for source in over),
            *troubles.values(),
        ]
        if told:
            self._deliver(told)


def _retry_after(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after if isinstance(error, ApiError) else 0.0


def _source(kind: Kind, item: dict[str, Any]) -> str:
    return f"{kind} {listing.metadata(item).get('name')}"
