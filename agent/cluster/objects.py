"""Convert Kubernetes documents of the kinds that testcni reads to frozen values, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from agent.cluster import (
    block_object,
    metadata_object,
    node_object,
    object_fields,
    pool_object,
    pool_status_object,
    reservation_object,
)
from agent.cluster.object_fields import Faults, ObjectError, short
from agent.cluster.store import kind_of
from agent.model.cluster import (
    API_VERSION,
    IPBlock,
    IPPool,
    IPReservation,
    Node,
    ObjectMetadata,
    Resource,
)

KINDS_BY_VERSION: Mapping[str, str] = {
    "Node": "v1",
    "IPPool": API_VERSION,
    "IPBlock": API_VERSION,
    "IPReservation": API_VERSION,
    "Pod": "v1",
    "Namespace": "v1",
}
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")  # DNS-1123 subdomain
NAME_LIMIT = 253


def expand(doc: object) -> Iterator[object]:
    """Yield the items of a List, or the document itself. Raises ObjectError."""
    if isinstance(doc, dict) and isinstance(doc.get("kind"), str) and doc["kind"].endswith("List"):
        items = doc.get("items")
        if not isinstance(items, list):
            raise ObjectError("items", f"is {short(items)}, not a list", f"list the objects of the {doc['kind']}")
        # the API server leaves apiVersion and kind out of the items of a list
        given = {"apiVersion": doc.get("apiVersion"), "kind": kind} if (kind := doc["kind"][:-4]) else {}
        for item in items:
            yield {**given, **item} if isinstance(item, dict) else item
    else:
        yield doc


def parse(doc: object) -> Resource:
    """Return the object in a document without any fault. Raises ObjectError."""
    faults: Faults = []
    obj = read(doc, faults)
    if faults:
        raise faults[0]
    return obj


def usable(doc: object, faults: Faults, known: Resource | None = None) -> Resource:
    """Return the object as `read` does, but a Node without addresses to which no other node can send packets.

    A field of a Node of which nothing can be used keeps its value of `known`, the last good state.
    Raises ObjectError.
    """
    obj = read(doc, faults)
    return (
        node_object.usable(obj, faults, known if isinstance(known, Node) else None)
        if isinstance(obj, Node)
        else obj
    )


def read(doc: object, faults: Faults) -> Resource:
    """Return the object in a document; fields that testcni does not need are not read.

    A fault that costs only its own field is added to `faults`. Raises ObjectError for any other fault.
    """
    if not isinstance(doc, dict):
        raise ObjectError("document", f"is {short(doc)}, not a mapping", "write a Kubernetes object")
    kind = doc.get("kind")
    if not isinstance(kind, str) or kind not in KINDS_BY_VERSION:
        raise ObjectError("kind", f"{short(kind)} is not known here", f"known: {', '.join(KINDS_BY_VERSION)}")
    if doc.get("apiVersion") != KINDS_BY_VERSION[kind]:
        raise ObjectError(
            "apiVersion", f"is {short(doc.get('apiVersion'))}", f"a {kind} has {KINDS_BY_VERSION[kind]}"
        )
    metadata = object_fields.mapping(doc, "metadata")
    name = metadata.get("name")
    if not isinstance(name, str) or len(name) > NAME_LIMIT or not NAME.fullmatch(name):
        remedy = "small letters, digits, - and . (a DNS-1123 subdomain)"
        raise ObjectError("metadata.name", f"{short(name)} is no name", remedy)
    version = str(metadata.get("resourceVersion") or "")
    if kind == "Node":
        return node_object.read(name, doc, version, faults)
    if kind in ("Pod", "Namespace"):
        return metadata_object.read(kind, metadata, version, faults)  # type: ignore[arg-type]
    spec = object_fields.mapping(doc, "spec")
    if kind == "IPPool":
        return replace(pool_object.read(name, spec, version), status=pool_status_object.read(doc.get("status")))
    if kind == "IPReservation":
        return reservation_object.read(name, spec, version)
    since = object_fields.tolerant(faults, "", object_fields.created, metadata)
    return replace(block_object.read(name, spec, version), uid=str(metadata.get("uid") or ""), created=since)


def to_doc(obj: Resource) -> dict[str, Any]:
    """Return an object as Kubernetes has it, with the fields that testcni knows."""
    kind = kind_of(obj)
    doc: dict[str, Any] = {"apiVersion": KINDS_BY_VERSION[kind], "kind": kind}
    if isinstance(obj, ObjectMetadata):
        return {**doc, "metadata": metadata_object.to_metadata(obj)}
    version = {"resourceVersion": obj.resource_version} if obj.resource_version else {}
    metadata = {"name": obj.name, **version}
    match obj:
        case Node():
            metadata |= node_object.to_metadata(obj)
            return {**doc, "metadata": metadata, **node_object.to_fields(obj)}
        case IPPool():
            spec = pool_object.to_spec(obj)
        case IPBlock():
            spec = block_object.to_spec(obj)
        case IPReservation():
            spec = reservation_object.to_spec(obj)
    return {**doc, "metadata": metadata, "spec": spec}
