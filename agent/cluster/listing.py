"""List objects of the API server page by page, and know the paths of objects (API concepts, chunks)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from agent.cluster import objects
from agent.cluster.api import Api, ApiError, Request
from agent.cluster.kinds import TABLE, Kind
from agent.cluster.object_fields import Faults
from agent.model.cluster import Resource

PAGE = 100  # objects of a list at once: a Node is 10 KiB of JSON, 60 when parsed


def items(api: Api, kind: Kind, take_version: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield every object of a kind; `take_version` gets the list's resourceVersion. Raises StoreError."""
    return pages(api, TABLE[kind].path, {}, take_version)


def pages(
    api: Api, path: str, selectors: Mapping[str, str], take_version: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield every object at a path that the selectors choose, page by page. Raises StoreError."""
    query = {**selectors, "limit": str(PAGE)}
    while True:
        page = api.ask(Request("GET", path, query))
        metadata, items = page.get("metadata"), page.get("items")
        if not isinstance(metadata, dict) or not isinstance(items, list | None):
            raise ApiError(f"GET {path}: the answer is not a list")
        yield from (item if isinstance(item, dict) else {} for item in items or ())
        if not metadata.get("continue"):
            take_version(version(metadata))
            return
        query = {**selectors, "limit": str(PAGE), "continue": str(metadata["continue"])}


def parse(kind: Kind, item: dict[str, Any], faults: Faults, known: Resource | None = None) -> Resource:
    """Return the object of an item, which has no kind in a list. Raises ObjectError."""
    return objects.usable({"apiVersion": TABLE[kind].api_version, "kind": kind, **item}, faults, known)


def metadata(item: dict[str, Any]) -> dict[str, Any]:
    """Return an object's metadata; empty where it has none."""
    metadata = item.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def version(metadata: dict[str, Any]) -> str:
    """Return the resourceVersion of metadata; empty where there is none."""
    version = metadata.get("resourceVersion")
    return version if isinstance(version, str) else ""


def status_path(kind: Kind, name: str) -> str:
    """Return the path of an object's status."""
    return f"{path(kind, name)}/status"


def path(kind: Kind, name: str) -> str:
    """Return the path of an object; a Pod's name is `namespace/name`."""
    list_path = TABLE[kind].path
    if "{namespace}" in list_path:
        namespace, _, name = name.partition("/")
        list_path = list_path.format(namespace=quote(namespace, safe=""))
    return f"{list_path}/{quote(name, safe='')}"
