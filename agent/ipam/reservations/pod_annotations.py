"""Read the annotations of pods and namespaces. An ADD reads its pod's metadata once, if the option is on."""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import TypeVar, cast

from agent.cluster.metadata_object import ANNOTATION_PREFIX
from agent.cluster.store import Datastore, NotFoundError, StoreError
from agent.codec.cni_args import PodIdentity
from agent.errors import CniError, Code, invalid_config
from agent.model.cluster import ObjectMetadata
from agent.model.node_status import PodEvent, ReportEvent, ignore_event
from agent.runtime.clock import SYSTEM_CLOCK, Clock

IP, STICKY, POOL = f"{ANNOTATION_PREFIX}ip", f"{ANNOTATION_PREFIX}sticky", f"{ANNOTATION_PREFIX}pool"
KNOWN: Mapping[str, tuple[str, ...]] = {"Pod": (IP, STICKY, POOL), "Namespace": (POOL,)}
"""The annotations that count, by the kind that may have them."""
UNKNOWN = "AnnotationUnknown"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # of pods from the API server (RFC 9562)
REPORTED = 3  # unknown annotations of one object: all pods of the node share the number of Events
REMEMBERED = 1024  # pods; and namespaces, if not more of them were read within NAMESPACE_FOR
NAMESPACE_FOR = 30.0  # seconds after which a namespace's annotations are read again

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AddressAnnotations:
    """The requests in the annotations of a pod and its namespace."""

    pod: str
    """`namespace/name`."""
    uid: str
    owner: str
    address: IPv4Address | None = None
    sticky: bool = False
    pool: str = ""
    """Name of the IPPool that its addresses come from; empty: any."""

    @property
    def stays(self) -> bool:
        """Return whether the pod asks for a reserved address."""
        return self.sticky or self.address is not None

    @property
    def asks(self) -> bool:
        """Return whether the pod asks for anything."""
        return self.stays or bool(self.pool)


class AnnotationsUnavailableError(CniError):
    """The annotations of a pod cannot be read now."""

    def __init__(self, pod: PodIdentity, why: StoreError) -> None:
        self.timed_out = why.timed_out
        super().__init__(
            Code.TRY_AGAIN,
            f"the annotations of pod {pod.name} can't be read, and it may ask for an address: {why}",
            "the runtime tries again; see the API server, or turn pod-annotations off",
        )


class AnnotationReader:
    """Reads annotations. For several threads at once."""

    def __init__(
        self, store: Datastore, report_event: ReportEvent = ignore_event, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """`store` answers within the time that an ADD may take; `report_event` takes Events about pods."""
        self._store = store
        self._report_event = report_event
        self._clock = clock
        self._known: dict[str, AddressAnnotations] = {}
        self._namespaces: dict[str, tuple[float, ObjectMetadata]] = {}
        self._reported: dict[PodEvent, None] = {}
        self._lock = threading.Lock()

    def read(self, pod: PodIdentity) -> AddressAnnotations | None:
        """Return the requests of a pod's annotations; None for a static pod, whose annotations are not read.

        Raises CniError 7, 11, AnnotationsUnavailableError.
        """
        if pod.uid and not UUID.fullmatch(pod.uid):
            return None  # a static pod, whose UID is a hash of its file; it may be the API server itself
        try:
            return self._read(pod)
        except StoreError as error:
            if (known := self._known.get(pod.uid)) is None:
                raise AnnotationsUnavailableError(pod, error) from error
            log.warning("annotations of %s can't be read, the last known ones are used: %s", pod.name, error)
            return known

    def _read(self, pod: PodIdentity) -> AddressAnnotations:
        try:
            found = cast(ObjectMetadata, self._store.get("Pod", pod.name))
        except NotFoundError:  # it was deleted, or the runtime is not Kubernetes
            return AddressAnnotations(pod.name, pod.uid, pod.name)
        if pod.uid and found.uid and found.uid != pod.uid:
            what = f"pod {pod.name} was replaced by another one of UID {found.uid}"
            raise CniError(Code.TRY_AGAIN, what, "the runtime deletes this one")
        self._report_unknown(pod, found)  # also if the ADD fails
        annotations = parse(found)
        if not annotations.pool:
            namespace = self._namespace(pod.name.partition("/")[0])
            self._report_unknown(pod, namespace)
            annotations = replace(annotations, pool=dict(namespace.annotations).get(POOL, ""))
        if pod.uid:
            self._remember(self._known, pod.uid, annotations)
        return annotations

    def _report_unknown(self, pod: PodIdentity, found: ObjectMetadata) -> None:
        """Write one Event about the pod for each unknown annotation of its own or of its namespace."""
        for message in _unknown(found):
            pod_event = PodEvent(pod.name, pod.uid, UNKNOWN, message)
            if pod_event not in self._reported:
                self._remember(self._reported, pod_event, None)
                self._report_event(pod_event)

    def _remember(self, known: dict[K, V], key: K, value: V) -> None:
        """Add an entry, and drop the oldest if there are too many."""
        with self._lock:
            known[key] = value
            if len(known) > REMEMBERED:
                del known[next(iter(known))]

    def _namespace(self, name: str) -> ObjectMetadata:
        now = self._clock.now()
        since, known = self._namespaces.get(name, (now - NAMESPACE_FOR, ObjectMetadata("Namespace", name)))
        if since + NAMESPACE_FOR > now:
            return known
        try:
            found = cast(ObjectMetadata, self._store.get("Namespace", name))
        except NotFoundError:
            found = ObjectMetadata("Namespace", name)
        if len(self._namespaces) >= REMEMBERED:
            self._namespaces = {
                n: entry for n, entry in self._namespaces.copy().items() if entry[0] + NAMESPACE_FOR > now
            }
        self._namespaces[name] = (now, found)
        return found


def parse(pod: ObjectMetadata) -> AddressAnnotations:
    """Return the requests in a pod's own annotations. Raises CniError 7 that names the annotation."""
    annotations = dict(pod.annotations)
    sticky = annotations.get(STICKY, "false").strip().lower()
    if sticky not in ("true", "false"):
        raise _wrong(pod, STICKY, annotations[STICKY], 'allowed: "true", "false"')
    if sticky == "true" and pod.controller and not pod.controller.startswith("StatefulSet/"):
        allowed = f"it is for pods that keep their names, and pods of {pod.controller} do not; use {IP}"
        raise _wrong(pod, STICKY, annotations[STICKY], allowed)
    address = None
    if (text := annotations.get(IP)) is not None:
        try:
            address = ipaddress.IPv4Address(text.strip())
        except ValueError as error:
            raise _wrong(pod, IP, text, "allowed: an IPv4 address such as 10.244.1.7") from error
    return AddressAnnotations(
        pod.name, pod.uid, owner_of(pod), address, sticky == "true", annotations.get(POOL, "").strip()
    )


def _unknown(found: ObjectMetadata) -> Iterator[str]:
    """Yield a message for each of the first unknown annotations of testcni's, as they may be misspelt."""
    kind, known = found.kind.lower(), KNOWN[found.kind]
    names = {key.removeprefix(ANNOTATION_PREFIX): key for key in known}
    unknown = (key for key, _value in found.annotations if key not in known)
    for key in itertools.islice(unknown, REPORTED):
        meant = difflib.get_close_matches(key.removeprefix(ANNOTATION_PREFIX).lower(), names, 1)
        hint = f"did you mean {names[meant[0]]}?" if meant else f"a {kind} may have {', '.join(known)}"
        yield f"annotation {key} of {kind} {found.name} is unknown and does nothing; {hint}"


def owner_of(pod: ObjectMetadata) -> str:
    """Return the owner of a pod's address: the pod if it keeps its name, else its controller."""
    kind, _, name = pod.controller.partition("/")
    namespace = pod.name.partition("/")[0]
    if kind in ("", "StatefulSet"):
        return pod.name
    if kind == "ReplicaSet" and pod.template and name.endswith(f"-{pod.template}"):
        kind, name = "Deployment", name.removesuffix(f"-{pod.template}")
    return f"{namespace}/{kind}/{name}"


def _wrong(pod: ObjectMetadata, key: str, value: str, remedy: str) -> CniError:
    error = invalid_config(f"annotation {key} of pod {pod.name}", value, "")
    return CniError(error.code, error.msg, remedy)
