"""Convert Kubernetes documents of the kinds that testcni reads to frozen values, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from agent.cluster import (
    block_object,
    kinds,
    metadata_object,
    node_object,
    object_fields,
    pool_object,
    pool_status_object,
    reservation_object,
)
from agent.cluster.kinds import TABLE, Kind, kind_of
from agent.cluster.object_fields import Faults, ObjectError, short
from agent.model.cluster import (
    IPBlock,
    IPPool,
    IPReservation,
    Node,
    ObjectMetadata,
    Resource,
)

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
    kind = _kind(doc)
    metadata = object_fields.mapping(doc, "metadata")
    name = _name(metadata)
    version = str(metadata.get("resourceVersion") or "")
    if kind == "Node":
        return node_object.read(name, doc, version, faults)
    if kind in ("Pod", "Namespace"):
        return metadata_object.read(kind, metadata, version, faults)
    spec = object_fields.mapping(doc, "spec")
    if kind == "IPPool":
        return replace(pool_object.read(name, spec, version), status=pool_status_object.read(doc.get("status")))
    if kind == "IPReservation":
        return reservation_object.read(name, spec, version)
    since = object_fields.tolerant(faults, "", object_fields.created, metadata)
    return replace(block_object.read(name, spec, version), uid=str(metadata.get("uid") or ""), created=since)


def _kind(doc: dict[str, Any]) -> Kind:
    """Return the kind of a document. Raises ObjectError for an unknown one, or one of another apiVersion."""
    kind = kinds.known(doc.get("kind"))
    if kind is None:
        raise ObjectError("kind", f"{short(doc.get('kind'))} is not known here", f"known: {', '.join(TABLE)}")
    if doc.get("apiVersion") != TABLE[kind].api_version:
        wanted = f"a {kind} has {TABLE[kind].api_version}"
        raise ObjectError("apiVersion", f"is {short(doc.get('apiVersion'))}", wanted)
    return kind


def _name(metadata: dict[str, Any]) -> str:
    name = metadata.get("name")
    if not isinstance(name, str) or len(name) > NAME_LIMIT or not NAME.fullmatch(name):
        remedy = "small letters, digits, - and . (a DNS-1123 subdomain)"
        raise ObjectError("metadata.name", f"{short(name)} is no name", remedy)
    return name


def to_doc(obj: Resource) -> dict[str, Any]:
    """Return an object as Kubernetes has it, with the fields that testcni knows."""
    kind = kind_of(obj)
    doc: dict[str, Any] = {"apiVersion": TABLE[kind].api_version, "kind": kind}
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
