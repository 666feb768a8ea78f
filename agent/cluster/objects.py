"""Kubernetes documents to frozen values and back: those of v1 and of testcni.io/v1 that we know."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from agent.cluster import accepted_modes, node_object, object_fields, pool_status_object
from agent.cluster.object_fields import Faults, ObjectError, short
from agent.ip import Address, Subnet, address_name
from agent.model.cluster import (
    API_VERSION,
    KEEPS,
    IPBlock,
    IPPool,
    IPReservation,
    Node,
    ObjectMetadata,
    Resource,
    block_name,
)

DEFAULT_BLOCK_SIZE = {4: 24, 6: 122}
LARGEST_BLOCK_SIZE = {4: 30, 6: 126}  # smaller blocks leave a pod no address
KINDS_BY_VERSION = {
    "Node": "v1",
    "IPPool": API_VERSION,
    "IPBlock": API_VERSION,
    "IPReservation": API_VERSION,
    "Pod": "v1",
    "Namespace": "v1",
}
AGENTS = "pod, node and since, which agents write"
OURS = "testcni.io/"  # begins the annotations that are for us
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")  # DNS-1123 subdomain
NAME_LIMIT = 253


def expand(doc: object) -> Iterator[object]:
    """The items of a List, or the document itself. Raises ObjectError."""
    if isinstance(doc, dict) and isinstance(doc.get("kind"), str) and doc["kind"].endswith("List"):
        items = doc.get("items")
        if not isinstance(items, list):
            raise ObjectError("items", f"is {short(items)}, not a list", f"list the objects of the {doc['kind']}")
        # the API server leaves out what the kind of a NodeList says already
        given = {"apiVersion": doc.get("apiVersion"), "kind": kind} if (kind := doc["kind"][:-4]) else {}
        for item in items:
            yield {**given, **item} if isinstance(item, dict) else item
    else:
        yield doc


def parse(doc: object) -> Resource:
    """The object in a document of which everything can be used. Raises ObjectError."""
    faults: Faults = []
    obj = read(doc, faults)
    if faults:
        raise faults[0]
    return obj


def usable(doc: object, faults: Faults, known: Resource | None = None) -> Resource:
    """As `read`, but of a Node without addresses that no other node can send packets to.

    A field of which nothing can be used stays as it is in `known`, the last good state. Raises ObjectError.
    """
    obj = read(doc, faults)
    return (
        node_object.usable(obj, faults, known if isinstance(known, Node) else None)
        if isinstance(obj, Node)
        else obj
    )


def read(doc: object, faults: Faults) -> Resource:
    """The object in a document; fields that we don't need are not looked at.

    What is wrong with it and costs only itself is noted as `faults`; raises ObjectError for all else.
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
        return _object_metadata(kind, metadata, version, faults)  # type: ignore[arg-type]
    spec = object_fields.mapping(doc, "spec")
    if kind == "IPPool":
        return replace(_pool(name, spec, version), status=pool_status_object.read(doc.get("status")))
    if kind == "IPReservation":
        return _reservation(name, spec, version)
    since = object_fields.tolerant(faults, "", object_fields.created, metadata)
    return replace(_block(name, spec, version), uid=str(metadata.get("uid") or ""), created=since)


def to_doc(obj: Resource) -> dict[str, Any]:
    """An object as Kubernetes has it, with what we know of it."""
    metadata: dict[str, Any] = {
        "name": obj.name,
        **({"resourceVersion": obj.resource_version} if obj.resource_version else {}),
    }
    match obj:
        case Node():
            spec: dict[str, Any] = {"podCIDRs": [str(block) for block in obj.blocks]} if obj.blocks else {}
            addresses = [{"type": "InternalIP", "address": str(address)} for address in obj.addresses]
            if obj.labels:
                metadata["labels"] = dict(obj.labels)
            if obj.accepted_modes:
                metadata["annotations"] = {accepted_modes.ANNOTATION: accepted_modes.encode(obj.accepted_modes)}
            if obj.blocks:
                spec = {"podCIDR": str(obj.blocks[0]), **spec}
            kind, rest = "Node", {"spec": spec, "status": {"addresses": addresses}}
        case IPPool():
            kind, rest = "IPPool", {"spec": _pool_spec(obj)}
        case IPBlock():
            shared = {"shared": True} if obj.shared else {}
            spec = {"cidr": str(obj.cidr), "node": obj.node, "pool": obj.pool, **shared}
            kind, rest = "IPBlock", {"spec": spec}
        case IPReservation():
            kind, rest = "IPReservation", {"spec": _reservation_spec(obj)}
        case ObjectMetadata():
            return _object_metadata_doc(obj)
    return {"apiVersion": KINDS_BY_VERSION[kind], "kind": kind, "metadata": metadata, **rest}


def _pool(name: str, spec: dict[str, Any], version: str) -> IPPool:
    cidr = object_fields.cidr("spec.cidr", spec.get("cidr"))
    largest = LARGEST_BLOCK_SIZE[cidr.version]
    if cidr.prefixlen > largest:
        raise ObjectError("spec.cidr", f"{cidr} is too small for a block", f"a CIDR of /{largest} or larger")
    size = spec.get("blockSize")
    if size is None:
        size = max(DEFAULT_BLOCK_SIZE[cidr.version], cidr.prefixlen)
    if isinstance(size, bool) or not isinstance(size, int) or not cidr.prefixlen <= size <= largest:
        raise ObjectError(
            "spec.blockSize", f"is {short(size)}", f"a prefix length from {cidr.prefixlen} to {largest}"
        )
    try:
        return _limited(IPPool(name, cidr, size, version), spec)
    except ObjectError as error:  # what it leaves out is not known: nothing of it is given
        error.closed = IPPool(name, cidr, size, version, exclude=(cidr,))
        raise


def _limited(pool: IPPool, spec: dict[str, Any]) -> IPPool:
    """The pool with what the spec leaves out of it."""
    cidr = pool.cidr
    start, end = (_bound(cidr, spec, key) for key in ("start", "end"))
    if start and end and int(start) > int(end):
        raise ObjectError("spec.end", f"{end} is below start", f"an address not below {start}")
    items = enumerate(object_fields.items(spec, "spec.exclude"))
    exclude = dict.fromkeys(_excluded(cidr, f"spec.exclude[{n}]", item) for n, item in items)
    gateway = None if spec.get("gateway") is None else object_fields.address("spec.gateway", spec["gateway"])
    if gateway and gateway.version != cidr.version:
        raise ObjectError("spec.gateway", f"{gateway} is of another IP version", f"an address as {cidr} has them")
    allowed = _namespaces(spec)
    return replace(pool, start=start, end=end, exclude=tuple(exclude), gateway=gateway, namespaces=allowed)


def _namespaces(spec: dict[str, Any]) -> tuple[str, ...] | None:
    if spec.get("allowedNamespaces") is None:
        return None
    names = object_fields.items(spec, "spec.allowedNamespaces")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ObjectError(f"spec.allowedNamespaces[{number}]", f"is {short(name)}", "the name of a namespace")
    return tuple(dict.fromkeys(names))


def _bound(cidr: Subnet, spec: dict[str, Any], key: str) -> Address | None:
    if spec.get(key) is None:
        return None
    address = object_fields.address(f"spec.{key}", spec[key])
    if address not in cidr:
        raise ObjectError(f"spec.{key}", f"{address} is not in cidr", f"an address of {cidr}")
    return address


def _excluded(cidr: Subnet, path: str, value: object) -> Subnet:
    """An address or a CIDR, as a CIDR."""
    alone = isinstance(value, str) and "/" not in value
    subnet = ipaddress.ip_network(object_fields.address(path, value)) if alone else object_fields.cidr(path, value)
    if subnet.version != cidr.version or not subnet.subnet_of(cidr):  # type: ignore[arg-type]
        raise ObjectError(path, f"{short(value)} is not in cidr", f"an address or a CIDR of {cidr}")
    return subnet


def _pool_spec(pool: IPPool) -> dict[str, Any]:
    exclude = [str(e.network_address if e.prefixlen == e.max_prefixlen else e) for e in pool.exclude]
    bounds = {"start": pool.start, "end": pool.end, "gateway": pool.gateway}
    return {
        "cidr": str(pool.cidr),
        "blockSize": pool.block_size,
        **{key: str(value) for key, value in bounds.items() if value},
        **({"exclude": exclude} if exclude else {}),
        **({"allowedNamespaces": list(pool.namespaces)} if pool.namespaces is not None else {}),
    }


def _block(name: str, spec: dict[str, Any], version: str) -> IPBlock:
    cidr = object_fields.cidr("spec.cidr", spec.get("cidr"))
    if name != block_name(cidr):
        raise ObjectError("metadata.name", f"is {name}", f"the block {cidr} is named {block_name(cidr)}")
    for key in ("node", "pool"):
        if not isinstance(spec.get(key), str) or not spec[key]:
            raise ObjectError(f"spec.{key}", f"is {short(spec.get(key))}", f"name the {key}")
    shared = spec.get("shared", False)
    if not isinstance(shared, bool):
        raise ObjectError("spec.shared", f"is {short(shared)}", "true or false")
    return IPBlock(cidr, spec["node"], spec["pool"], version, shared=shared)


def _reservation(name: str, spec: dict[str, Any], version: str) -> IPReservation:
    address = object_fields.address("spec.address", spec.get("address"))
    if name != address_name(address):
        what = f"the reservation of {address} is named {address_name(address)}"
        raise ObjectError("metadata.name", f"is {name}", what)
    _check_texts(spec)
    if not spec.get("node"):  # a person reserved it: all else is for agents to write
        return IPReservation(
            address, spec["owner"], network=spec.get("network", ""), resource_version=version, keep=_keep(spec)
        )
    return IPReservation(
        address,
        spec["owner"],
        spec["pod"],
        spec["node"],
        spec["network"],
        object_fields.time("spec.since", spec.get("since")),
        object_fields.time("spec.released", spec["released"]) if spec.get("released") is not None else None,
        spec.get("asks", ""),
        spec.get("refused", ""),
        version,
        _keep(spec),
    )


def _check_texts(spec: dict[str, Any]) -> None:
    """Raises ObjectError for texts that are missing or are none; only who has a pod must say all of them."""
    agents = any(key in spec for key in ("pod", "node", "since"))
    for key in ("owner", "pod", "node", "network"):
        value = spec.get(key)
        if (agents or key == "owner" or value is not None) and (not isinstance(value, str) or not value):
            remedy = (
                f"name the {key}" if key == "owner" or not agents else f"name the {key}, or leave out {AGENTS}"
            )
            raise ObjectError(f"spec.{key}", f"is {short(value)}", remedy)
    for key in ("asks", "refused"):
        if not isinstance(spec.get(key, ""), str):
            raise ObjectError(f"spec.{key}", f"is {short(spec[key])}, not a string", "write text, or leave it out")


def _keep(spec: dict[str, Any]) -> str:
    keep = spec.get("keep", "")
    if keep not in ("", *KEEPS):
        raise ObjectError("spec.keep", f"is {short(keep)}", f"{' or '.join(KEEPS)}, or leave it out")
    return str(keep)


def _reservation_spec(obj: IPReservation) -> dict[str, Any]:
    texts = {"owner": obj.owner, "pod": obj.pod, "node": obj.node, "network": obj.network}
    times = {"since": obj.since, "released": obj.released}
    more = {"asks": obj.asks, "refused": obj.refused, "keep": obj.keep}
    return {
        "address": str(obj.address),
        **{key: text for key, text in texts.items() if text},
        **{key: rfc3339(when) for key, when in times.items() if when},
        **{key: text for key, text in more.items() if text},
    }


def rfc3339(when: datetime) -> str:
    """A time as Kubernetes writes it, to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _object_metadata(
    kind: Literal["Pod", "Namespace"], metadata: dict[str, Any], version: str, faults: Faults
) -> ObjectMetadata:
    others: Faults = []
    annotations = node_object.labels(metadata, others, "annotations")
    if ours := [fault for fault in others if OURS in fault.what]:
        raise ours[0]  # what somebody asked for is not known
    faults += others
    controller = ""
    path = "metadata.ownerReferences"
    for owner in object_fields.each(faults, path, object_fields.items(metadata, path), _owner):
        if owner.get("controller") is True:
            controller = f"{owner.get('kind')}/{owner.get('name')}"
    return ObjectMetadata(
        kind,
        f"{metadata.get('namespace') or 'default'}/{metadata['name']}" if kind == "Pod" else metadata["name"],
        str(metadata.get("uid") or ""),
        tuple((key, value) for key, value in annotations if key.startswith(OURS)),
        controller,
        dict(node_object.labels(metadata, faults)).get("pod-template-hash", ""),
        version,
    )


def _owner(path: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ObjectError(path, f"is {short(value)}", "kind and name")
    return value


def _object_metadata_doc(obj: ObjectMetadata) -> dict[str, Any]:
    namespace, _, name = obj.name.rpartition("/")
    kind, _, controller = obj.controller.partition("/")
    metadata = {
        "name": name,
        **({"namespace": namespace} if namespace else {}),
        **({"uid": obj.uid} if obj.uid else {}),
        **({"annotations": dict(obj.annotations)} if obj.annotations else {}),
        **({"labels": {"pod-template-hash": obj.template}} if obj.template else {}),
        **({"ownerReferences": [{"kind": kind, "name": controller, "controller": True}]} if controller else {}),
    }
    return {"apiVersion": KINDS_BY_VERSION[obj.kind], "kind": obj.kind, "metadata": metadata}
