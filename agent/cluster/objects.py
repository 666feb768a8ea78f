"""Kubernetes documents to frozen values and back: those of v1 and of testcni.io/v1 that we know."""

from __future__ import annotations

import ipaddress
import re
import reprlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from agent.cluster import receives
from agent.model import (
    API_VERSION,
    Address,
    Described,
    IPBlock,
    IPPool,
    IPReservation,
    Node,
    Resource,
    Subnet,
    address_name,
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
OURS = "testcni.io/"  # begins the annotations that are for us
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")  # DNS-1123 subdomain
NAME_LIMIT = 253

_repr = reprlib.Repr()  # a wrong value may be megabytes
_repr.maxstring = _repr.maxother = 80
short = _repr.repr


class ObjectError(ValueError):
    """A document that is no object of ours: the path of the field, what is wrong, how to mend it."""

    def __init__(self, path: str, what: str, remedy: str) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path = path
        self.what = what
        self.remedy = remedy


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
    """The object in a document; fields that we don't need are nobody's business. Raises ObjectError."""
    if not isinstance(doc, dict):
        raise ObjectError("document", f"is {short(doc)}, not a mapping", "write a Kubernetes object")
    kind = doc.get("kind")
    if not isinstance(kind, str) or kind not in KINDS_BY_VERSION:
        raise ObjectError("kind", f"{short(kind)} is not known here", f"known: {', '.join(KINDS_BY_VERSION)}")
    if doc.get("apiVersion") != KINDS_BY_VERSION[kind]:
        raise ObjectError(
            "apiVersion", f"is {short(doc.get('apiVersion'))}", f"a {kind} has {KINDS_BY_VERSION[kind]}"
        )
    metadata = _mapping(doc, "metadata")
    name = metadata.get("name")
    if not isinstance(name, str) or len(name) > NAME_LIMIT or not NAME.fullmatch(name):
        remedy = "small letters, digits, - and . (a DNS-1123 subdomain)"
        raise ObjectError("metadata.name", f"{short(name)} is no name", remedy)
    version = str(metadata.get("resourceVersion") or "")
    spec = _mapping(doc, "spec")
    match kind:
        case "Node":
            addresses = _internal_ips(_mapping(doc, "status"))
            said = receives.decode(_mapping(metadata, "annotations").get(receives.ANNOTATION))
            return Node(name, addresses, _pod_cidrs(spec), version, _labels(metadata), said)
        case "IPPool":
            return _pool(name, spec, version)
        case "IPBlock":
            return replace(_block(name, spec, version), uid=str(metadata.get("uid") or ""))
        case "IPReservation":
            return _reservation(name, spec, version)
        case "Pod":
            return _described("Pod", metadata, version)
        case _:
            return _described("Namespace", metadata, version)


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
            if obj.receives:
                metadata["annotations"] = {receives.ANNOTATION: receives.encode(obj.receives)}
            if obj.blocks:
                spec = {"podCIDR": str(obj.blocks[0]), **spec}
            kind, rest = "Node", {"spec": spec, "status": {"addresses": addresses}}
        case IPPool():
            kind, rest = "IPPool", {"spec": _pool_spec(obj)}
        case IPBlock():
            kind, rest = "IPBlock", {"spec": {"cidr": str(obj.cidr), "node": obj.node, "pool": obj.pool}}
        case IPReservation():
            kind, rest = "IPReservation", {"spec": _reservation_spec(obj)}
        case Described():
            return _described_doc(obj)
    return {"apiVersion": KINDS_BY_VERSION[kind], "kind": kind, "metadata": metadata, **rest}


def _mapping(doc: dict[str, Any], key: str) -> dict[str, Any]:
    value = doc.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ObjectError(key, f"is {short(value)}, not a mapping", "write it as Kubernetes has it")
    return value


def _items(mapping: dict[str, Any], path: str) -> list[Any]:
    value = mapping.get(path.rpartition(".")[2]) or []
    if not isinstance(value, list):
        raise ObjectError(path, f"is {short(value)}, not a list", "write it as Kubernetes has it")
    return value


def _labels(metadata: dict[str, Any], field: str = "labels") -> tuple[tuple[str, str], ...]:
    path, labels = f"metadata.{field}", metadata.get(field) or {}
    if not isinstance(labels, dict):
        raise ObjectError(path, f"is {short(labels)}, not a mapping", "write it as Kubernetes has it")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ObjectError(path, f"{short(key)}: {short(value)} is no {field[:-1]}", "quote both")
    # thousands of nodes have the same few
    return tuple(sorted((sys.intern(key), sys.intern(value)) for key, value in labels.items()))


def _internal_ips(status: dict[str, Any]) -> tuple[Address, ...]:
    found: list[Address] = []
    for number, entry in enumerate(_items(status, "status.addresses")):
        path = f"status.addresses[{number}]"
        if not isinstance(entry, dict):
            raise ObjectError(path, f"is {short(entry)}, not a mapping", "type and address are wanted")
        if entry.get("type") == "InternalIP":
            found.append(_address(f"{path}.address", entry.get("address")))
    return tuple(dict.fromkeys(found))


def _pod_cidrs(spec: dict[str, Any]) -> tuple[Subnet, ...]:
    cidrs = _items(spec, "spec.podCIDRs")
    if cidrs:
        return tuple(dict.fromkeys(_cidr(f"spec.podCIDRs[{n}]", cidr) for n, cidr in enumerate(cidrs)))
    return (_cidr("spec.podCIDR", spec["podCIDR"]),) if spec.get("podCIDR") else ()


def _pool(name: str, spec: dict[str, Any], version: str) -> IPPool:
    cidr = _cidr("spec.cidr", spec.get("cidr"))
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
    start, end = (_bound(cidr, spec, key) for key in ("start", "end"))
    if start and end and int(start) > int(end):
        raise ObjectError("spec.end", f"{end} is below start", f"an address not below {start}")
    items = enumerate(_items(spec, "spec.exclude"))
    exclude = dict.fromkeys(_excluded(cidr, f"spec.exclude[{n}]", item) for n, item in items)
    gateway = None if spec.get("gateway") is None else _address("spec.gateway", spec["gateway"])
    if gateway and gateway.version != cidr.version:
        raise ObjectError("spec.gateway", f"{gateway} is of another IP version", f"an address as {cidr} has them")
    return IPPool(name, cidr, size, version, start, end, tuple(exclude), gateway)


def _bound(cidr: Subnet, spec: dict[str, Any], key: str) -> Address | None:
    if spec.get(key) is None:
        return None
    address = _address(f"spec.{key}", spec[key])
    if address not in cidr:
        raise ObjectError(f"spec.{key}", f"{address} is not in cidr", f"an address of {cidr}")
    return address


def _excluded(cidr: Subnet, path: str, value: object) -> Subnet:
    """An address or a CIDR, as a CIDR."""
    alone = isinstance(value, str) and "/" not in value
    subnet = ipaddress.ip_network(_address(path, value)) if alone else _cidr(path, value)
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
    }


def _block(name: str, spec: dict[str, Any], version: str) -> IPBlock:
    cidr = _cidr("spec.cidr", spec.get("cidr"))
    if name != block_name(cidr):
        raise ObjectError("metadata.name", f"is {name}", f"the block {cidr} is named {block_name(cidr)}")
    for key in ("node", "pool"):
        if not isinstance(spec.get(key), str) or not spec[key]:
            raise ObjectError(f"spec.{key}", f"is {short(spec.get(key))}", f"name the {key}")
    return IPBlock(cidr, spec["node"], spec["pool"], version)


def _reservation(name: str, spec: dict[str, Any], version: str) -> IPReservation:
    address = _address("spec.address", spec.get("address"))
    if name != address_name(address):
        what = f"the reservation of {address} is named {address_name(address)}"
        raise ObjectError("metadata.name", f"is {name}", what)
    for key in ("owner", "pod", "node", "network"):
        if not isinstance(spec.get(key), str) or not spec[key]:
            raise ObjectError(f"spec.{key}", f"is {short(spec.get(key))}", f"name the {key}")
    for key in ("asks", "refused"):
        if not isinstance(spec.get(key, ""), str):
            raise ObjectError(f"spec.{key}", f"is {short(spec[key])}, not a string", "write text, or leave it out")
    return IPReservation(
        address,
        spec["owner"],
        spec["pod"],
        spec["node"],
        spec["network"],
        _time("spec.since", spec.get("since")),
        _time("spec.released", spec["released"]) if spec.get("released") is not None else None,
        spec.get("asks", ""),
        spec.get("refused", ""),
        version,
    )


def _reservation_spec(obj: IPReservation) -> dict[str, Any]:
    texts = {"owner": obj.owner, "pod": obj.pod, "node": obj.node, "network": obj.network}
    times = {"since": obj.since, "released": obj.released}
    return {
        "address": str(obj.address),
        **texts,
        **{key: rfc3339(when) for key, when in times.items() if when},
        **{key: text for key, text in (("asks", obj.asks), ("refused", obj.refused)) if text},
    }


def rfc3339(when: datetime) -> str:
    """A time as Kubernetes writes it, to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(path: str, value: object) -> datetime:
    remedy = "a time as in RFC 3339, such as 2026-01-31T12:00:00Z"
    try:  # YAML makes a time of what has no quotes
        when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError as error:
        raise ObjectError(path, f"is {short(value)}", remedy) from error
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _described(kind: Literal["Pod", "Namespace"], metadata: dict[str, Any], version: str) -> Described:
    annotations = _labels(metadata, "annotations")
    controller = ""
    for number, owner in enumerate(_items(metadata, "metadata.ownerReferences")):
        if not isinstance(owner, dict):
            raise ObjectError(f"metadata.ownerReferences[{number}]", f"is {short(owner)}", "kind and name")
        if owner.get("controller") is True:
            controller = f"{owner.get('kind')}/{owner.get('name')}"
    return Described(
        kind,
        f"{metadata.get('namespace') or 'default'}/{metadata['name']}" if kind == "Pod" else metadata["name"],
        str(metadata.get("uid") or ""),
        tuple((key, value) for key, value in annotations if key.startswith(OURS)),
        controller,
        dict(_labels(metadata)).get("pod-template-hash", ""),
        version,
    )


def _described_doc(obj: Described) -> dict[str, Any]:
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


def _cidr(path: str, value: object) -> Subnet:
    remedy = "a CIDR with no host bits set, such as 10.244.1.0/24"
    # ipaddress would take a netmask, a zone or a bare address as well; Kubernetes doesn't
    if not isinstance(value, str) or "%" in value or not value.partition("/")[2].isdecimal():
        raise ObjectError(path, f"is {short(value)}", remedy)
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ObjectError(path, str(error)[:120], remedy) from error


def _address(path: str, value: object) -> Address:
    remedy = "an IP address such as 192.0.2.1"
    if not isinstance(value, str) or "%" in value:
        raise ObjectError(path, f"is {short(value)}", remedy)
    try:
        return ipaddress.ip_address(value)
    except ValueError as error:
        raise ObjectError(path, f"is {short(value)}", remedy) from error
