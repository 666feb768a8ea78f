"""The datastore in Kubernetes: lists, single objects, and a watch for each kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from agent.cluster import accepted_modes, listing, objects
from agent.cluster.api import JSON, METADATA, Api, Request
from agent.cluster.informer import Informer, WatchDuration
from agent.cluster.object_fields import ObjectError
from agent.cluster.store import (
    KINDS,
    Change,
    Deliver,
    Kind,
    StoreError,
    kind_of,
)
from agent.model.cluster import IPBlock, Resource

MERGE = "application/merge-patch+json"


class KubernetesStore:
    """A Datastore (see agent.cluster.store) over the API server."""

    def __init__(self, api: Api, lasts: WatchDuration | None = None) -> None:
        self._api = api
        answers = threading.Condition()
        self.watches = tuple(Informer(api, kind, answers, lasts) for kind in KINDS)

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        """All objects of a kind that can be used. Raises StoreError."""
        found = []
        for item in listing.items(self._api, kind, lambda _version: None):
            try:
                found.append(listing.parse(kind, item, []))
            except ObjectError:
                continue  # the watch tells
        return tuple(found)

    def get(self, kind: Kind, name: str) -> Resource:
        """The object now, read from a majority of etcd. Raises NotFoundError, StoreError."""
        accept = METADATA if kind in ("Pod", "Namespace") else JSON
        doc = self._api.ask(Request("GET", listing.path(kind, name), accept=accept))
        return _parsed({**doc, "apiVersion": objects.KINDS_BY_VERSION[kind], "kind": kind})

    def watch(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver a complete list of each kind, then what changes, until `stop` is set."""
        one_at_a_time = threading.Lock()
        failed: list[BaseException] = []

        def alone(changes: Sequence[Change]) -> None:
            with one_at_a_time:
                deliver(changes)

        def follow(watch: Informer) -> None:
            try:
                watch.run(alone, stop)
            except BaseException as error:  # noqa: BLE001  told where this watch was asked for
                failed.append(error)
                ended.set()

        ended = threading.Event()
        threads = [
            threading.Thread(target=follow, args=(watch,), name=f"watch-{watch.kind}", daemon=True)
            for watch in self.watches
        ]
        for thread in threads:
            thread.start()
        while not stop.wait(0.2) and not ended.is_set():
            pass
        end = time.monotonic() + 1
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
            for watch, thread in zip(self.watches, threads, strict=True):
                watch.close()  # again, as it may have been between its list and its stream
                thread.join(0.01)
        if failed:
            raise failed[0]

    def create(self, obj: Resource) -> Resource:
        """Create the object, if there is none of its name."""
        doc = objects.to_doc(obj)
        doc["metadata"].pop("resourceVersion", None)
        return _parsed(self._api.ask(Request("POST", listing.PATHS[kind_of(obj)], body=doc)))

    def update(self, obj: Resource) -> Resource:
        """Replace the object, if nobody else did since it was read."""
        path = listing.path(kind_of(obj), obj.name)
        return _parsed(self._api.ask(Request("PUT", path, body=objects.to_doc(obj))))

    def publish_accepted_modes(self, node: str, text: str) -> None:
        """An annotation of the Node, by its status, which an agent may change; an empty text removes it."""
        body = {"metadata": {"annotations": {accepted_modes.ANNOTATION: text or None}}}
        self._api.ask(Request("PATCH", listing.status_path("Node", node), body=body, content_type=MERGE))

    def delete(self, kind: Kind, name: str, known: Resource | None = None) -> None:
        """Delete the object, if it is the one that is known; one with its name may have come after it."""
        body = None
        if known:
            uid = known.uid if isinstance(known, IPBlock) else ""
            which = {"uid": uid} if uid else {"resourceVersion": known.resource_version}
            body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": which}
        self._api.ask(Request("DELETE", listing.path(kind, name), body=body))


def _parsed(doc: dict[str, Any]) -> Resource:
    try:
        return objects.usable(doc, [])
    except ObjectError as error:
        raise StoreError(f"the API server answers with an object that can't be used: {error}") from error
