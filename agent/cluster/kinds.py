"""The kinds of objects that testcni reads and writes, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from agent.model.cluster import API_VERSION, IPBlock, IPPool, IPReservation, Node, ObjectMetadata, Resource

Kind = Literal["Node", "IPPool", "IPBlock", "IPReservation", "Pod", "Namespace"]


@dataclass(frozen=True, slots=True)
class KindInfo:
    """The properties of a kind that the parts of the datastore use."""

    api_version: str
    path: str
    """The path of the kind's list in the API server; that of a namespaced kind has `{namespace}` in it."""
    snapshot_field: str = ""
    """The field of Snapshot with its objects; empty: objects of the kind are read one by one, and not watched."""


TABLE: Mapping[Kind, KindInfo] = {
    "Node": KindInfo("v1", "/api/v1/nodes", "nodes"),
    "IPPool": KindInfo(API_VERSION, f"/apis/{API_VERSION}/ippools", "pools"),
    "IPBlock": KindInfo(API_VERSION, f"/apis/{API_VERSION}/ipblocks", "blocks"),
    "IPReservation": KindInfo(API_VERSION, f"/apis/{API_VERSION}/ipreservations", "reservations"),
    "Pod": KindInfo("v1", "/api/v1/namespaces/{namespace}/pods"),
    "Namespace": KindInfo("v1", "/api/v1/namespaces"),
}
KINDS = tuple(kind for kind, info in TABLE.items() if info.snapshot_field)
"""The kinds that are watched, in the order in which they are delivered."""


def known(kind: object) -> Kind | None:
    """Return a value that a document has as its kind, if it is one of the table's."""
    return next((name for name in TABLE if name == kind), None)


def kind_of(obj: Resource) -> Kind:
    """Return the Kubernetes kind of an object."""
    match obj:
        case Node():
            return "Node"
        case IPPool():
            return "IPPool"
        case IPBlock():
            return "IPBlock"
        case IPReservation():
            return "IPReservation"
        case ObjectMetadata():
            return obj.kind
