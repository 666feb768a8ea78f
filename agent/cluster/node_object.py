"""Read a v1 Node: a faulty field or entry is ignored and reported, and the rest of the Node is used."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from agent.cluster import accepted_modes, object_fields
from agent.cluster.object_fields import Faults, ObjectError, short
from agent.ip import Address, Subnet
from agent.model import special_addresses
from agent.model.cluster import Node

Mapping = dict[str, Any]


def read(name: str, doc: Mapping, version: str, faults: Faults) -> Node:
    """Return the Node without its faulty fields and entries, which are added to `faults`."""
    empty: Mapping = {}
    metadata: Mapping = doc["metadata"]
    spec = object_fields.tolerant(faults, empty, object_fields.mapping, doc, "spec")
    status = object_fields.tolerant(faults, empty, object_fields.mapping, doc, "status")
    annotations = object_fields.tolerant(faults, empty, object_fields.mapping, metadata, "metadata.annotations")
    return Node(
        name,
        _internal_ips(status, faults),
        _pod_cidrs(spec, faults),
        version,
        object_fields.tolerant(faults, (), labels, metadata, faults),
        accepted_modes.decode(annotations.get(accepted_modes.ANNOTATION)),
        object_fields.tolerant(faults, "", object_fields.created, metadata),
        _is_unavailable(status),
    )


def usable(node: Node, faults: Faults, known: Node | None) -> Node:
    """Return the Node without addresses to which no other node can send packets; these are added to `faults`.

    A faulty field of which nothing is left keeps its value of `known`.
    """
    reasons = {address: why for address in node.addresses if (why := special_addresses.unusable(address))}
    for address, why in reasons.items():
        what = f"the InternalIP {address} {why}"
        faults.append(ObjectError("status.addresses", what, "have kubelet report another (--node-ip)"))
    addresses = tuple(address for address in node.addresses if address not in reasons)
    faulty = {fault.path.partition(".")[0] for fault in faults}
    if known and not addresses and "status" in faulty:
        addresses = known.addresses
    blocks = known.blocks if known and not node.blocks and "spec" in faulty else node.blocks
    return replace(node, addresses=addresses, blocks=blocks)


def to_metadata(node: Node) -> Mapping:
    """Return the labels and annotations of a Node that testcni reads."""
    modes = accepted_modes.encode(node.accepted_modes)
    return {
        **({"labels": dict(node.labels)} if node.labels else {}),
        **({"annotations": {accepted_modes.ANNOTATION: modes}} if modes else {}),
    }


def to_fields(node: Node) -> Mapping:
    """Return the spec and the status of a Node, with the fields that testcni reads."""
    cidrs = [str(block) for block in node.blocks]
    addresses = [{"type": "InternalIP", "address": str(address)} for address in node.addresses]
    spec = {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {}
    return {"spec": spec, "status": {"addresses": addresses}}


def labels(metadata: Mapping, faults: Faults, field: str = "labels") -> tuple[tuple[str, str], ...]:
    """Return labels or annotations, sorted by key. Raises ObjectError where they are not a mapping."""
    path, found = f"metadata.{field}", metadata.get(field) or {}
    if not isinstance(found, dict):
        raise ObjectError(path, f"is {short(found)}, not a mapping", object_fields.AS_KUBERNETES)
    good = []
    for key, value in found.items():
        if isinstance(key, str) and isinstance(value, str):
            good.append((sys.intern(key), sys.intern(value)))  # thousands of nodes have the same labels
        else:
            faults.append(ObjectError(path, f"{short(key)}: {short(value)} is not text", "quote both"))
    return tuple(sorted(good))


def _is_unavailable(status: Mapping) -> bool:
    """Return whether the condition NetworkUnavailable is True. Faulty conditions are not reported."""
    conditions = status.get("conditions")
    return isinstance(conditions, list) and any(
        isinstance(entry, dict) and (entry.get("type"), entry.get("status")) == ("NetworkUnavailable", "True")
        for entry in conditions
    )


def _internal_ips(status: Mapping, faults: Faults) -> tuple[Address, ...]:
    path = "status.addresses"
    nothing: list[Any] = []
    entries = object_fields.tolerant(faults, nothing, object_fields.items, status, path)
    found = object_fields.each(faults, path, entries, _internal_ip)
    return tuple(dict.fromkeys(address for address in found if address))


def _internal_ip(path: str, entry: object) -> Address | None:
    """Return the address of an entry; None where it is not an InternalIP. Raises ObjectError."""
    if not isinstance(entry, dict):
        raise ObjectError(path, f"is {short(entry)}, not a mapping", "type and address are wanted")
    if entry.get("type") != "InternalIP":
        return None
    return object_fields.address(f"{path}.address", entry.get("address"))


def _pod_cidrs(spec: Mapping, faults: Faults) -> tuple[Subnet, ...]:
    path = "spec.podCIDRs"
    nothing: list[Any] = []
    if cidrs := object_fields.tolerant(faults, nothing, object_fields.items, spec, path):
        return tuple(dict.fromkeys(object_fields.each(faults, path, cidrs, object_fields.cidr)))
    alone = object_fields.tolerant(faults, None, _pod_cidr, spec)
    return (alone,) if alone else ()


def _pod_cidr(spec: Mapping) -> Subnet | None:
    return object_fields.cidr("spec.podCIDR", spec["podCIDR"]) if spec.get("podCIDR") else None
