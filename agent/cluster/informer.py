"""Follow one kind of objects: list it, then watch it, and resume a broken watch where it ended."""

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
from agent.cluster.api import GONE, Api, ApiError, GoneError, Request, Stream, UnreadableEventError
from agent.cluster.kinds import TABLE, Kind
from agent.cluster.object_fields import Faults, ObjectError
from agent.cluster.store import (
    ENDED,
    EXPIRED,
    FAILED,
    Bookmark,
    Change,
    Deleted,
    Deliver,
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

BROKEN = 500  # HTTP statuses from here on are server errors (RFC 9110, section 15.6)
UNREAD = "check the objects of this kind; all are listed again when the watch ends"
IN_TIME = 0.99  # of the requested time: clocks differ a little

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchTimes:
    """The duration of a watch, and the waits between requests, in seconds.

    The server ends it after the requested time (`timeoutSeconds`, API reference). Until then silence is normal:
    bookmarks are not guaranteed (API concepts, watch bookmarks).
    """

    shortest: int = 180
    longest: int = 270
    """The requested time is random between the two, so that not all nodes reconnect at once."""
    slack: float = 20.0
    """A server that ends a watch later than this hangs."""
    failed_within: float = 1.0
    """A watch that ends sooner without an event has failed."""
    first_wait: float = 0.5
    """The upper bound of the first random wait after a failure; it doubles with each failure that follows."""
    longest_wait: float = 15.0
    """The bound never exceeds this."""
    burst: int = 10
    """The watches that may follow each other without a wait: each may end after its first event."""
    after_burst: float = 5.0
    """Then one watch begins in this time."""


class Informer:
    """Follow one kind: keep its known objects, and the resourceVersion from which to watch.

    `server_answers` is notified when a server that was unreachable answers: informers of other kinds stop waiting.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        server_answers: threading.Condition | None = None,
        times: WatchTimes | None = None,
    ) -> None:
        self.kind = kind
        self._api = api
        self._server_answers = server_answers or threading.Condition()
        self._times = times or WatchTimes()
        self._server_away = False
        self._check_first = self._ended_at_once = False
        self._server = f"API server, {kind}"
        self._version = ""
        self._events = 0
        self._known: dict[str, Resource] = {}
        self._failing: set[str] = set()
        self._stream: Stream | None = None
        self._deliver: Deliver = lambda _changes: None
        self._pace = Pace(self._times.burst, self._times.after_burst)
        self._reporting = threading.RLock()

    def run(self, deliver: Deliver, stop: threading.Event) -> None:
        """Follow the kind until `stop` is set; failed requests are retried with backoff."""
        self._deliver = deliver
        backoff = wait_random_exponential(multiplier=self._times.first_wait, max=self._times.longest_wait)
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
        """End the connection; `run` opens another one unless its `stop` is set."""
        with self._server_answers:
            self._server_answers.notify_all()
        if stream := self._stream:
            stream.close()

    def _wait(self, seconds: float, stop: threading.Event) -> None:
        """Wait so many seconds, or until a server that was unreachable has answered another informer."""
        if not self._server_away:
            stop.wait(seconds)
            return
        with self._server_answers:
            if not stop.is_set():
                self._server_answers.wait(seconds)

    def _answered(self) -> None:
        if self._server_away:
            self._server_away = False
            with self._server_answers:
                self._server_answers.notify_all()

    def _session(self) -> None:
        """List if needed, then watch until the watch ends. Raises StoreError where it failed at once."""
        if not self._version:
            self._list()
            self._answered()
        elif self._check_first:  # a server that hangs may accept a watch and answer nothing
            self._api.ask(Request("GET", TABLE[self.kind].path, {"limit": "1", "resourceVersion": "0"}))
        self._check_first = False
        asked = random.randint(self._times.shortest, self._times.longest)  # noqa: S311
        began, events_before, unreadable = time.monotonic(), self._events, None
        try:
            for event in self._open(asked):
                if isinstance(event, UnreadableEventError):
                    unreadable = event
                    source = f"{self._server}, event"
                    self._report(
                        [], (), {source: SourceProblem(source, Problem(self._server, str(event), UNREAD))}
                    )
                else:
                    self._take(event)
        except GoneError as error:
            self._version = ""
            self._ended(EXPIRED, began, events_before, error)
        except StoreError as error:
            self._check_first = isinstance(error, ApiError) and error.status == 0
            self._ended(FAILED, began, events_before, error)
        else:
            early = ApiError("the server ended the watch at once")
            in_time = time.monotonic() - began >= asked * IN_TIME
            self._ended("" if in_time else ENDED, began, events_before, unreadable or early)
        finally:
            if unreadable and self._events != events_before:  # only a new list has what the event said
                self._version = ""
            self._stream = None

    def _open(self, asked: int) -> Stream:
        """Open a watch of `asked` seconds, and report that the kind works: no event may come for long."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(asked),
        }
        stream = self._api.watch(TABLE[self.kind].path, query, asked + self._times.slack)
        self._answered()
        self._stream = stream
        if self._ended_at_once:  # this one may do so, too
            self._report_if_it_lasts(stream)
        else:
            self._report([Bookmark(self.kind)], (self._server,), {})
        return stream

    def _report_if_it_lasts(self, stream: Stream) -> None:
        lasting = threading.Timer(self._times.failed_within, self._lasts, (stream,))
        lasting.daemon = True
        try:
            lasting.start()
        except RuntimeError as error:  # no more threads: then the next event says that the kind works
            log.debug("watch of %s: %s", self.kind, error)

    def _lasts(self, stream: Stream) -> None:
        """Report that the kind works again, if a watch after one that ended at once is still open."""
        with self._reporting:
            if self._stream is stream:
                self._report([Bookmark(self.kind)], (self._server,), {})

    def _ended(self, reason: str, began: float, events_before: float, error: StoreError) -> None:
        """Report the end of a watch; raise `error` where it ended at once without an event, so that `run` waits.

        `reason` is empty where it ended after the requested time, which is not reported.
        """
        log.debug("watch of %s: %s (%s)", self.kind, reason or "ended in time", error)
        if reason:
            self._deliver([WatchRestarted(self.kind, reason)])
        lasted = time.monotonic() - began
        self._ended_at_once = self._events == events_before and lasted < self._times.failed_within
        if self._ended_at_once:
            raise error

    def _failed(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self._server_away = isinstance(error, ApiError) and (error.status == 0 or error.status >= BROKEN)
        remedy = "retried; until then the last state stays in use"
        if isinstance(error, NotFoundError):
            remedy = "install the CustomResourceDefinitions: kubectl apply -f manifests/"
        elif isinstance(error, ApiError) and error.status in (401, 403):
            remedy = "give the agent's service account its ClusterRole: kubectl apply -f manifests/"
        self._report(
            [], (), {self._server: SourceProblem(self._server, Problem(self._server, str(error), remedy))}
        )
        log.log(logging.WARNING if state.attempt_number == 1 else logging.DEBUG, "%s: %s", self._server, error)

    def _list(self) -> None:
        """List and deliver all objects; a faulty object keeps its last good state. Raises StoreError."""
        version: list[str] = []
        found: dict[str, Resource] = {}
        problems: dict[str, SourceProblem] = {}
        for item in listing.items(self._api, self.kind, version.append):
            obj = self._parse(item, problems)
            if obj:
                found[obj.name] = obj
        self._known, self._version = found, version[0]
        self._report([Listed(self.kind, tuple(found.values()))], self._failing, problems)

    def _take(self, event: dict[str, Any]) -> None:
        """Deliver the change of an event. Raises GoneError, ApiError."""
        kind, item = event.get("type"), event["object"]
        if kind == "ERROR":
            message, code = str(item.get("message", "unknown"))[:500], item.get("code")
            status = code if isinstance(code, int) else BROKEN
            raise GoneError(message, GONE) if status == GONE else ApiError(message, status)
        metadata = listing.metadata(item)
        source = _source(self.kind, item)
        problems: dict[str, SourceProblem] = {}
        changes: list[Change] = []
        if kind in ("ADDED", "MODIFIED"):
            obj = self._parse(item, problems)
            if obj and self._known.get(obj.name) != obj:  # the kubelet changes Nodes often, and no field of ours
                self._known[obj.name] = obj
                changes.append(Upserted(obj))
            elif isinstance(obj, IPPool):
                changes.append(StatusChanged(obj))
        elif kind == "DELETED":
            self._known.pop(str(metadata.get("name")), None)
            changes.append(Deleted(self.kind, str(metadata.get("name"))))
        self._events += 1
        self._report(changes or [Bookmark(self.kind)], (source, self._server), problems)
        self._version = listing.version(metadata) or self._version  # a bookmark has only that

    def _parse(self, item: dict[str, Any], problems: dict[str, SourceProblem]) -> Resource | None:
        """Return an object, or its last good state where it is faulty; its faults are added to `problems`."""
        source, faults = _source(self.kind, item), Faults()
        known = self._known.get(str(listing.metadata(item).get("name")))
        try:
            obj = listing.parse(self.kind, item, faults, known)
        except ObjectError as error:
            problems[source] = SourceProblem(source, Problem(f"{source} {error.path}", error.what, error.remedy))
            return known or error.stand_in
        if faults:
            first, more = faults[0], "".join(f"; {fault.path} {fault.what}" for fault in faults[1:])
            problem = Problem(f"{source} {first.path}", first.what + more, first.remedy)
            problems[source] = SourceProblem(source, problem, partial=True)
        return obj

    def _report(self, changes: list[Change], seen: Collection[str], problems: Mapping[str, SourceProblem]) -> None:
        """Deliver changes and problems. A problem ends when its source is `seen` to work again."""
        with self._reporting:
            over = (self._failing & set(seen)) - problems.keys()
            self._failing = (self._failing - over) | problems.keys()
            batch = [
                *changes,
                *(SourceProblem(source, None) for source in over),
                *problems.values(),
            ]
            if batch:
                self._deliver(batch)


def _retry_after(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after if isinstance(error, ApiError) else 0.0


def _source(kind: Kind, item: dict[str, Any]) -> str:
    return f"{kind} {listing.metadata(item).get('name')}"
