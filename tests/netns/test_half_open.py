"""An API server that is gone without a word: packets are dropped, and nothing says that the connection is dead."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

from kubernetes.client.configuration import Configuration

from agent.cluster import api
from agent.cluster.api import Api
from agent.cluster.informer import WatchTimes
from agent.cluster.kinds import KINDS
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import FAILED
from tests.netns.node import command
from tests.support import eventually
from tests.unit import awkward
from tests.unit.awkward import Answer, Asked, Awkward

FASTER = {
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 1,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 2000,
}
"""The agent's own options at a tenth of their time."""


def quick(port: int) -> Configuration:
    configuration = awkward.config(port, "t")
    configuration.socket_options = [
        (level, option, FASTER.get((level, option), value)) for level, option, value in api.KEEPALIVE
    ]
    return configuration


def test_watches_of_a_server_whose_packets_are_dropped_end_by_tcp() -> None:
    command("ip", "link", "set", "lo", "up")
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    def answer(asked: Asked) -> Answer:
        return nothing() if asked.is_watch else (200, {"metadata": {"resourceVersion": "10"}, "items": []})

    server, stop = Awkward(answer), threading.Event()
    store = KubernetesStore(Api(lambda: quick(server.port), 0.5), WatchTimes(3600, 3600))  # only TCP can notice
    snapshot_cache = SnapshotCache(store)
    thread = threading.Thread(target=snapshot_cache.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: sum(asked.is_watch for asked in tuple(server.asked)) == len(KINDS))
        command("nft", "add", "table", "ip", "gone")
        command("nft", "add", "chain", "ip", "gone", "in", "{ type filter hook input priority 0; }")
        command("nft", "add", "rule", "ip", "gone", "in", "tcp", "dport", str(server.port), "drop")
        eventually(lambda: all(snapshot_cache.watch_restarts.all()[kind, FAILED] for kind in KINDS))
        eventually(lambda: len(snapshot_cache.problems.get()) == len(KINDS))
        command("nft", "delete", "table", "ip", "gone")
        eventually(lambda: not snapshot_cache.problems.get())
    finally:
        over.set()
        stop.set()
        thread.join()
        server.close()
