"""Open the datastore that the option --datastore names: `dir:PATH`, `kubernetes` or `kubernetes:KUBECONFIG`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cluster.directory_store import DirectoryStore
from agent.cluster.store import Datastore
from agent.ip import Address

if TYPE_CHECKING:
    from agent.cluster.api import Api

ADD_WAITS = 2.0  # seconds that one request of an ADD waits for its answer


@dataclass(frozen=True, slots=True)
class Datastores:
    """A cluster's datastore, as the parts of an agent use it."""

    store: Datastore
    quick: Datastore
    """The same datastore for an ADD, which can't wait long for an answer."""
    api: Api | None = None
    """The API server behind it; None for a directory."""


def open_all(text: str, adds: int = 1) -> Datastores:
    """Open the datastore that the option names; `adds` is how many ADDs may use it at the same time."""
    kind, _, where = text.partition(":")
    if kind == "dir":
        directory = DirectoryStore(Path(where))
        return Datastores(directory, directory)
    # the client costs 30 MiB and 0.3 s: only those who use it pay
    from agent.cluster import api  # noqa: PLC0415
    from agent.cluster.kubernetes_store import KubernetesStore  # noqa: PLC0415

    load = partial(api.from_kubeconfig, Path(where)) if where else api.from_cluster
    server = api.Api(load)
    return Datastores(KubernetesStore(server), KubernetesStore(api.Api(load, ADD_WAITS, adds)), server)


def server_addresses(text: str) -> frozenset[Address]:
    """Return the known addresses of the API server behind the datastore that the option names."""
    kind, _, where = text.partition(":")
    if kind == "dir":
        return frozenset()
    from agent.cluster import server_address  # noqa: PLC0415 - see above

    return server_address.addresses(where)
