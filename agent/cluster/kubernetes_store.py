"""Read, write and watch objects of the Kubernetes API."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from agent.cluster import accepted_modes, listing, objects
from agent.cluster.api import JSON, METADATA, Api, Request
from agent.cluster.informer import Informer, WatchTimes
from agent.cluster.kinds import KINDS, TABLE, Kind, kind_of
from agent.cluster.object_fields import ObjectError
from agent.cluster.store import Change, Deliver, StoreError
from agent.model.cluster import IPBlock, Resource

MERGE = "application/merge-patch+json"


class KubernetesStore:
    """A Datastore (agent.cluster.store) in the API server."""

    def __init__(self, api: Api, times: WatchTimes | None = None) -> None:
        self._api = api
        server_answers = threading.Condition()
        self.informers = tuple(Informer(api, kind, server_answers, times) for kind in KINDS)

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        """Return all objects of a kind, without faulty ones. Raises StoreError."""
        found = []
        for item in listing.items(self._api, kind, lambda _version: None):
            try:
                found.append(listing.parse(kind, item, []))
            except ObjectError:
                continue  # the informer reports it
        return tuple(found)

    def get(self, kind: Kind, name: str) -> Resource:
        """Return an object, read from a quorum of etcd. Raises NotFoundError, StoreError."""
        accept = METADATA if kind in ("Pod", "Namespace") else JSON
        doc = self._api.ask(Request("GET", listing.path(kind, name), accept=accept))
        return _parsed({**doc, "apiVersion": TABLE[kind].api_version, "kind": kind})

    def watch(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver a complete list of each kind, then what changes, until `stop` is set."""
        one_at_a_time = threading.Lock()
        failed: list[BaseException] = []

        def alone(changes: Sequence[Change]) -> None:
            with one_at_a_time:
                deliver(changes)

        def follow(informer: Informer) -> None:
            try:
                informer.run(alone, stop)
            except BaseException as error:  # noqa: BLE001  raised below, in the thread of the caller
                failed.append(error)
                ended.set()

        ended = threading.Event()
        threads = [
            threading.Thread(target=follow, args=(informer,), name=f"watch-{informer.kind}", daemon=True)
            for informer in self.informers
        ]
        for thread in threads:
            thread.start()
        while not stop.wait(0.2) and not ended.is_set():
            pass
        end = time.monotonic() + 1
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
            for informer, thread in zip(self.informers, threads, strict=True):
                informer.close()  # again, as it may just have opened its stream
                thread.join(0.01)
        if failed:
            raise failed[0]

    def create(self, obj: Resource) -> Resource:
        """Create an object. Raises ConflictError where one of its name exists, StoreError."""
        doc = objects.to_doc(obj)
        doc["metadata"].pop("resourceVersion", None)
        return _parsed(self._api.ask(Request("POST", TABLE[kind_of(obj)].path, body=doc)))

    def update(self, obj: Resource) -> Resource:
        """Replace an object. Raises ConflictError where it changed since it was read, StoreError."""
        path = listing.path(kind_of(obj), obj.name)
        return _parsed(self._api.ask(Request("PUT", path, body=objects.to_doc(obj))))

    def publish_accepted_modes(self, node: str, text: str) -> None:
        """Write an annotation of the Node by its status, which an agent may change. Raises StoreError."""
        body = {"metadata": {"annotations": {accepted_modes.ANNOTATION: text or None}}}
        self._api.ask(Request("PATCH", listing.status_path("Node", node), body=body, content_type=MERGE))

    def delete(self, kind: Kind, name: str, known: Resource | None = None) -> None:
        """Delete an object, if it is the `known` one and not a later one of its name. Raises StoreError."""
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
        raise StoreError(f"the API server returned a faulty object: {error}") from error
