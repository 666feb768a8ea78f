"""Watches of which nothing comes, and the connections of many calls at once, over real sockets."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import yaml

from agent import app, config
from agent.cluster import api
from agent.cluster.api import Api, Request
from agent.cluster.informer import WatchTimes
from agent.cluster.kinds import KINDS
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import ENDED, FAILED, Bookmark, Change, SourceProblem, WatchRestarted
from agent.cni.server import WORKERS
from agent.host.run_dir import Lock
from agent.modes.ipip.bird.supervisor import Supervisor
from agent.modes.registry import BUILT_IN
from tests.networks import AGENT_OPTIONS
from tests.support import eventually
from tests.unit import awkward
from tests.unit.awkward import Answer, Asked, Awkward

MANY = 48  # requests at once
PAGE = {"metadata": {"resourceVersion": "10"}, "items": []}


class Silent:
    """A server of which a watch brings nothing until its time is over, or never ends while it hangs."""

    def __init__(self) -> None:
        self.hangs, self._over = threading.Event(), threading.Event()
        self.server = Awkward(self._answer)

    def _answer(self, asked: Asked) -> Answer:
        if asked.is_watch:
            return self._nothing(float(asked.query["timeoutSeconds"]))
        if self.hangs.is_set():
            self._over.wait()
        return 200, PAGE

    def _nothing(self, seconds: float) -> Iterator[bytes]:
        end = time.monotonic() + seconds
        while self.hangs.is_set() or time.monotonic() < end:
            if self._over.wait(0.05):
                return
        yield from ()

    def watches(self, kind: str) -> int:
        return sum(asked.is_watch and asked.path.endswith(kind) for asked in tuple(self.server.asked))

    def close(self) -> None:
        self._over.set()
        self.server.close()


class Followed:
    """The agent's snapshot cache of such a server, and all that it was told."""

    def __init__(self, port: int, lasts: WatchTimes, within: float) -> None:
        self.told: list[Change] = []
        self.snapshot_cache = SnapshotCache(KubernetesStore(Api(lambda: awkward.config(port, "t"), within), lasts))
        deliver = self.snapshot_cache.deliver

        def take(changes: Sequence[Change]) -> None:
            self.told += changes
            deliver(changes)

        self.snapshot_cache.deliver = take  # type: ignore[method-assign]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.snapshot_cache.run, args=(self._stop,))
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def silent() -> Iterator[Silent]:
    it = Silent()
    yield it
    it.close()


@contextlib.contextmanager
def followed(port: int, lasts: WatchTimes, within: float = 30) -> Iterator[Followed]:
    it = Followed(port, lasts, within)
    try:
        yield it
    finally:
        it.close()


def test_watches_that_are_silent_for_their_whole_time_are_well(silent: Silent) -> None:
    with followed(silent.server.port, WatchTimes(1, 1, slack=30)) as it:
        eventually(lambda: min(silent.watches(kind.lower() + "s") for kind in KINDS) >= 3)
        assert set(it.snapshot_cache.watch_restarts.all().values()) == {0}
        assert not [change for change in it.told if isinstance(change, SourceProblem | WatchRestarted)]
        for kind in KINDS:  # each new watch is news, so the age of the last news stays below a watch's time
            assert it.told.count(Bookmark(kind)) >= 2
        assert set(it.snapshot_cache.seconds_since_change()) == set(KINDS)


def test_a_watch_that_the_server_ends_early_is_counted() -> None:
    server = Awkward(lambda asked: iter(()) if asked.is_watch else (200, PAGE))
    with contextlib.closing(server), followed(server.port, WatchTimes(60, 60)) as it:
        eventually(lambda: it.snapshot_cache.watch_restarts.all()["Node", ENDED])


def test_a_server_that_hangs_is_noticed_and_its_trouble_ends_with_it(silent: Silent) -> None:
    """TCP is well: the kernel acknowledges for a server that is stopped."""
    with followed(silent.server.port, WatchTimes(1, 1, slack=0.2), within=0.5) as it:
        eventually(lambda: silent.watches("nodes"))
        silent.hangs.set()
        eventually(lambda: len(it.snapshot_cache.problems.get()) == len(KINDS))
        assert "timed out" in str(it.snapshot_cache.problems.get()["API server, Node"])
        eventually(lambda: it.snapshot_cache.watch_restarts.all()["Node", FAILED])
        silent.hangs.clear()  # and no event ever comes
        eventually(lambda: not it.snapshot_cache.problems.get())


def test_a_connection_is_kept_for_each_of_many_calls(caplog: pytest.LogCaptureFixture) -> None:
    """A pool of ten has all others make a connection, and a TLS handshake, for each request."""
    all_here = threading.Barrier(MANY)

    def answer(_asked: Asked) -> Answer:
        all_here.wait(60)
        return 200, {}

    server = Awkward(answer)
    asking = Api(lambda: awkward.config(server.port, "t"), 60, MANY)
    with contextlib.closing(server), ThreadPoolExecutor(MANY) as pool, caplog.at_level(logging.WARNING):
        for _round in range(3):
            list(pool.map(lambda _: asking.ask(Request("GET", "/version")), range(MANY)))
    assert len(server.asked) == 3 * MANY
    assert len({asked.client for asked in server.asked}) == MANY
    assert "pool is full" not in caplog.text


@pytest.fixture
def kubeconfig(silent: Silent, tmp_path: Path) -> Path:
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{silent.server.port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "t"}}
    doc = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "c"}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(doc))
    return path


def test_there_is_a_connection_for_each_thread_of_the_agent(kubeconfig: Path, tmp_path: Path) -> None:
    flags = [f"--{name}-dir={tmp_path}" for name in ("conf", "run", "state")]
    conf = config.load([*flags, f"--datastore=kubernetes:{kubeconfig}", "--node=n1"], {}, AGENT_OPTIONS)
    lock = Lock(conf.run_dir)
    agent = app.Agent(conf, lock, BUILT_IN)
    assert len(agent.parts()) + len(KINDS) <= api.AGENT_THREADS
    os.close(lock._fd)
    bird = agent.node.mode_threads["bird"]
    assert isinstance(bird, Supervisor)
    os.close(bird._wake)
    quick = agent.cluster.datastores.quick
    assert isinstance(quick, KubernetesStore)
    assert quick._api._threads == WORKERS


def test_connections_to_a_peer_that_is_gone_end_by_tcp(silent: Silent, kubeconfig: Path) -> None:
    store = KubernetesStore(Api(partial(api.from_kubeconfig, kubeconfig)))
    store.list("Node")
    found = list(connections(silent.server.port))
    assert found
    for connection in found:
        with connection:
            for level, option, value in api.KEEPALIVE:
                assert connection.getsockopt(level, option) == value


def connections(port: int) -> Iterator[socket.socket]:
    """This process's connections to a port of the loopback."""
    for path in Path("/proc/self/fd").iterdir():
        try:
            one = socket.fromfd(int(path.name), socket.AF_INET, socket.SOCK_STREAM)
        except OSError:  # the folder's own descriptor
            continue
        try:
            is_it = one.getpeername() == ("127.0.0.1", port)
        except OSError:
            is_it = False
        if is_it:
            yield one
        else:
            one.close()
