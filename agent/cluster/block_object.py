"""The spec of an IPBlock (docs/reference/crds.md): read it, and write it."""

from __future__ import annotations

from typing import Any

from agent.cluster import object_fields
from agent.cluster.object_fields import ObjectError, short
from agent.model.cluster import IPBlock, block_name


def read(name: str, spec: dict[str, Any], version: str) -> IPBlock:
    """Return the block that a spec defines. Raises ObjectError."""
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


def to_spec(block: IPBlock) -> dict[str, Any]:
    """Return the spec that defines a block."""
    shared = {"shared": True} if block.shared else {}
    return {"cidr": str(block.cidr), "node": block.node, "pool": block.pool, **shared}
