"""The metadata of a Pod or Namespace: testcni's annotations, and the controller."""

from __future__ import annotations

from typing import Any, Literal

from agent.cluster import node_object, object_fields
from agent.cluster.object_fields import Faults, ObjectError, short
from agent.model.cluster import ObjectMetadata

ANNOTATION_PREFIX = "testcni.io/"  # prefix of testcni's annotations


def read(
    kind: Literal["Pod", "Namespace"], metadata: dict[str, Any], version: str, faults: Faults
) -> ObjectMetadata:
    """Return what the agent needs of a Pod's or Namespace's metadata.

    A fault elsewhere is added to `faults`. Raises ObjectError for a fault in one of testcni's annotations, as the
    request is unknown then.
    """
    others: Faults = []
    annotations = node_object.labels(metadata, others, "annotations")
    if ours := [fault for fault in others if ANNOTATION_PREFIX in fault.what]:
        raise ours[0]
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
        tuple((key, value) for key, value in annotations if key.startswith(ANNOTATION_PREFIX)),
        controller,
        dict(node_object.labels(metadata, faults)).get("pod-template-hash", ""),
        version,
    )


def _owner(path: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ObjectError(path, f"is {short(value)}", "kind and name")
    return value


def to_metadata(obj: ObjectMetadata) -> dict[str, Any]:
    """Return the metadata of a Pod or Namespace as the API has it."""
    namespace, _, name = obj.name.rpartition("/")
    kind, _, controller = obj.controller.partition("/")
    return {
        "name": name,
        **({"namespace": namespace} if namespace else {}),
        **({"uid": obj.uid} if obj.uid else {}),
        **({"annotations": dict(obj.annotations)} if obj.annotations else {}),
        **({"labels": {"pod-template-hash": obj.template}} if obj.template else {}),
        **({"ownerReferences": [{"kind": kind, "name": controller, "controller": True}]} if controller else {}),
    }
