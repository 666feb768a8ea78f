"""Read and write IPBlockUsages and the status of IPPools, for people with kubectl. No agent watches them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from agent.cluster import listing, object_fields, pool_status_object
from agent.cluster.api import METADATA_LIST, Api, Request
from agent.cluster.kinds import TABLE
from agent.cluster.kubernetes_store import MERGE
from agent.cluster.object_fields import ObjectError
from agent.model.cluster import API_VERSION
from agent.model.usage import BlockUsage, Condition, PoolCounts

PATH = f"/apis/{API_VERSION}/ipblockusages"
NODE_LABEL, POOL_LABEL = "testcni.io/node", "testcni.io/pool"
LONGEST_LABEL = 63  # characters of a label's value (Kubernetes)


class Usages:
    """Send requests about usage. Each may raise StoreError, NotFoundError, ConflictError; none is retried."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def uid(self, node: str) -> str:
        """Return the UID of a Node object; empty where there is none."""
        query = {"fieldSelector": f"metadata.name={node}"}
        answer = self._api.ask(Request("GET", TABLE["Node"].path, query, accept=METADATA_LIST))
        return next((str(listing.metadata(i).get("uid") or "") for i in answer.get("items") or ()), "")

    def of_node(self, node: str, uid: str) -> dict[str, BlockUsage | None]:
        """Return the objects of a node by name; None for an object that must be overwritten.

        That is one that is unreadable, or is owned by an earlier Node object of this name.
        """
        query = {"labelSelector": f"{NODE_LABEL}={label(node)}"}
        found = {}
        for item in self._items(query):
            usage, metadata = read(item), listing.metadata(item)
            if usage is None or usage.node == node:
                found[str(metadata.get("name"))] = usage if _goes_with(metadata, uid) else None
        return found

    def of_pools(self) -> Iterator[BlockUsage]:
        """Yield the objects of all nodes that are about blocks of pools, page by page."""
        selector = f"{POOL_LABEL} notin ({BlockUsage.POD_CIDR},{BlockUsage.BY_HAND})"
        yield from (usage for item in self._items({"labelSelector": selector}) if (usage := read(item)))

    def create(self, usage: BlockUsage, uid: str) -> None:
        """Create the object, owned by the Node of this UID, with which it is deleted."""
        self._api.ask(Request("POST", PATH, {}, to_doc(usage, uid)))

    def change(self, usage: BlockUsage, uid: str) -> None:
        """Overwrite the object with `usage`."""
        self._api.ask(Request("PATCH", _path(usage.name), {}, to_doc(usage, uid), MERGE))

    def delete(self, name: str) -> None:
        """Delete the object."""
        self._api.ask(Request("DELETE", _path(name)))

    def write_counts(self, pool: str, counts: PoolCounts) -> None:
        """Write how many addresses and blocks of a pool are in use."""
        self._patch_pool(pool, pool_status_object.counts_doc(counts))

    def write_condition(self, pool: str, condition: Condition) -> None:
        """Write the condition Ready of a pool."""
        self._patch_pool(pool, pool_status_object.condition_doc(condition))

    def _patch_pool(self, pool: str, status: Mapping[str, Any]) -> None:
        self._api.ask(Request("PATCH", listing.status_path("IPPool", pool), {}, {"status": status}, MERGE))

    def _items(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        # with resourceVersion=0 the server ignores `limit`: 40 MB at once of 5,000 nodes
        yield from listing.pages(self._api, PATH, query, lambda _version: None)


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"


def label(name: str) -> str:
    """Return a name as a label's value: itself, or a hash where it is too long for one."""
    return name if len(name) <= LONGEST_LABEL else hashlib.sha256(name.encode()).hexdigest()[:40]


def to_doc(usage: BlockUsage, uid: str) -> dict[str, Any]:
    """Return the object as Kubernetes has it."""
    labels = {NODE_LABEL: label(usage.node), **({POOL_LABEL: label(usage.pool)} if usage.pool else {})}
    spec = {"node": usage.node, "cidr": str(usage.cidr) if usage.cidr else None, "pool": usage.pool or None}
    status = {"used": usage.used, "reserved": usage.reserved, "free": usage.free}
    return {
        "apiVersion": API_VERSION,
        "kind": "IPBlockUsage",
        "metadata": {
            "name": usage.name,
            "labels": labels,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": usage.node, "uid": uid}],
        },
        "spec": {key: value for key, value in spec.items() if value is not None},
        "status": {
            **{key: value for key, value in status.items() if value is not None},
            "addresses": list(usage.addresses),
        },
    }


def _goes_with(metadata: Mapping[str, Any], uid: str) -> bool:
    """Return whether the Node of this UID is the only owner of the object."""
    owners = metadata.get("ownerReferences")
    return isinstance(owners, list) and [o.get("uid") for o in owners if isinstance(o, dict)] == [uid]


def read(item: dict[str, Any]) -> BlockUsage | None:
    """Return the usage in an object; None where it is unreadable."""
    try:
        spec, status = object_fields.mapping(item, "spec"), object_fields.mapping(item, "status")
        cidr = object_fields.cidr("spec.cidr", spec["cidr"]) if "cidr" in spec else None
        entries = object_fields.items(status, "status.addresses")
    except ObjectError:
        return None
    texts = (listing.metadata(item).get("name"), spec.get("node"), spec.get("pool", ""), *entries)
    numbers = (status.get("used"), status.get("reserved"), status.get("free", 0))
    if not all(isinstance(text, str) for text in texts) or not all(map(pool_status_object.is_count, numbers)):
        return None
    return BlockUsage(
        str(texts[0]), str(texts[1]), str(texts[2]), cidr,
        status["used"], status["reserved"], status.get("free"), tuple(entries),
    )  # fmt: skip
