"""Objects for folders, and what a watch of one has delivered."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from agent.cluster.directory_store import DirectoryStore, DirectoryTimes
from agent.cluster.kinds import KINDS, Kind, kind_of
from agent.cluster.objects import to_doc
from agent.cluster.store import Change, Deleted, Listed, SourceProblem, Upserted
from agent.model.cluster import IPBlock, IPPool, Node, Resource
from agent.model.problem import Problem

SOON = 5.0  # seconds: well below the watch's own LOOK_AGAIN, so what is seen was seen by inotify
QUICK = DirectoryTimes(poll=0.02)
"""A watch that ends soon, as many are stopped."""
State = dict[tuple[Kind, str], Resource]


def node(name: str, number: int = 1) -> Node:
    address = ipaddress.ip_address(f"192.0.2.{number}")
    return Node(name, (address,), (ipaddress.ip_network(f"10.244.{number}.0/24"),))


def block(number: int, owner: str = "n1") -> IPBlock:
    return IPBlock(ipaddress.ip_network(f"10.9.{number}.0/24"), owner, "pool")


POOL = IPPool("pool", ipaddress.ip_network("10.9.0.0/16"), 24)


def text(*objs: Resource) -> str:
    return yaml.safe_dump_all([to_doc(obj) for obj in objs], sort_keys=False)


def listed(store: DirectoryStore) -> State:
    return {(kind, obj.name): obj for kind in KINDS for obj in store.list(kind)}


class SnapshotCache:
    """What a watch has delivered: all of it, and what follows from it."""

    def __init__(self, path: Path, times: DirectoryTimes) -> None:
        self.history: list[Change] = []
        self.state: State = {}
        self.troubles: dict[str, Problem] = {}
        self.stop = threading.Event()
        self._told = threading.Condition()
        self.thread = threading.Thread(target=DirectoryStore(path, times).watch, args=(self._deliver, self.stop))

    def _deliver(self, changes: Sequence[Change]) -> None:
        with self._told:
            for change in changes:
                self._apply(change)
            self.history += changes
            self._told.notify_all()

    def _apply(self, change: Change) -> None:
        match change:
            case Listed(kind, objects):
                self.state = {key: obj for key, obj in self.state.items() if key[0] != kind}
                self.state.update({(kind, obj.name): obj for obj in objects})
            case Upserted(obj):
                self.state[(kind_of(obj), obj.name)] = obj
            case Deleted(kind, name):
                del self.state[(kind, name)]
            case SourceProblem(source, None):
                del self.troubles[source]
            case SourceProblem(source, problem):
                assert problem
                self.troubles[source] = problem

    def until(self, true: Callable[[], bool]) -> None:
        with self._told:
            assert self._told.wait_for(true, SOON), f"{self.state=} {self.troubles=}"

    def until_names(self, *names: str) -> None:
        self.until(lambda: sorted(name for _kind, name in self.state) == sorted(names))

    def gone(self) -> list[Deleted]:
        return [change for change in self.history if isinstance(change, Deleted)]


@contextmanager
def following(path: Path, times: DirectoryTimes = QUICK) -> Iterator[SnapshotCache]:
    snapshot_cache = SnapshotCache(path, times)
    snapshot_cache.thread.start()
    try:
        yield snapshot_cache
    finally:
        snapshot_cache.stop.set()
        snapshot_cache.thread.join(SOON)
        assert not snapshot_cache.thread.is_alive()
