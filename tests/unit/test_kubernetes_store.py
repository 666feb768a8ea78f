"""The Kubernetes datastore against an API server that does everything wrong that one can do."""

from __future__ import annotations

import ipaddress
import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.configuration import Configuration
from kubernetes.config.incluster_config import InClusterConfigLoader

from agent.cluster import api, informer
from agent.cluster.api import Api, ApiError
from agent.cluster.informer import WatchTimes
from agent.cluster.kinds import KINDS
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.store import (
    Bookmark,
    Change,
    ConflictError,
    Deleted,
    Listed,
    NotFoundError,
    SourceProblem,
    StatusChanged,
    StoreError,
    Upserted,
    WatchRestarted,
)
from agent.model.cluster import IPBlock, IPPool, Node, Resource
from agent.model.usage import PoolCounts
from tests.support import WITHIN, eventually
from tests.unit.awkward import Answer, Asked, Awkward, config

TIMES = WatchTimes(first_wait=0.05, longest_wait=1.5)
SHORT = 0.2  # seconds in which a loop without waits makes a hundred requests


def node(name: str, block: str = "10.244.1.0/24", version: str = "1") -> dict[str, Any]:
    """As a list has it: without kind."""
    return {"metadata": {"name": name, "resourceVersion": version}, "spec": {"podCIDRs": [block]}}


def page(*items: dict[str, Any], version: str = "10", more: str = "") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version, "continue": more}, "items": list(items)}


def event(kind: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    things: list[Any] = []
    yield things
    for thing in reversed(things):
        thing.close()


class Followed:
    """A watch of nodes in a thread, and what it delivered."""

    def __init__(self, store: KubernetesStore) -> None:
        self.changes: list[Change] = []
        self.stop = threading.Event()
        self._store = store
        self._thread = threading.Thread(target=store.watch, args=(self._take, self.stop))
        self._thread.start()

    def _take(self, changes: Sequence[Change]) -> None:
        self.changes += changes

    def close(self) -> None:
        self.stop.set()
        began = time.monotonic()
        self._thread.join()
        assert time.monotonic() - began < 15, "it ends at once, whatever the server does"

    def until(self, wanted: Callable[[list[Change]], object], within: float = WITHIN) -> list[Change]:
        """The changes of nodes, once `wanted` is true of them."""

        def look() -> tuple[list[Change]]:
            found = self.of_nodes()
            assert wanted(found), found
            return (found,)

        return eventually(look, within, ignore=(AssertionError,))[0]

    def of_nodes(self) -> list[Change]:
        def is_other(change: Change) -> bool:
            return isinstance(change, Bookmark | WatchRestarted) or (
                isinstance(change, Listed | Deleted) and change.kind != "Node"
            )

        return [change for change in tuple(self.changes) if not is_other(change)]


def serve(
    opened: list[Any], answer: Callable[[Asked], Answer], times: WatchTimes = TIMES
) -> tuple[Awkward, KubernetesStore]:
    """A server whose pools and blocks are well and whose nodes are as `answer` says."""

    def both(asked: Asked) -> Answer:
        if asked.method == "GET" and asked.path != "/api/v1/nodes":
            return held() if asked.is_watch else (200, page())
        return answer(asked)

    server = Awkward(both)
    opened.append(server)
    return server, KubernetesStore(Api(lambda: config(server.port, "t")), times)


def follow(
    opened: list[Any], answer: Callable[[Asked], Answer], times: WatchTimes = TIMES
) -> tuple[list[Asked], Followed]:
    server, store = serve(opened, answer, times)
    followed = Followed(store)
    opened.append(followed)
    return server.asked, followed


def held(*lines: bytes) -> Iterator[bytes]:
    """Lines of a watch that then goes on in silence."""
    yield from lines
    time.sleep(20)


def of_nodes(asked: list[Asked], *, watches: bool) -> list[Asked]:
    return [one for one in tuple(asked) if one.path == "/api/v1/nodes" and one.is_watch == watches]


def names(change: Change) -> list[str]:
    assert isinstance(change, Listed)
    return [obj.name for obj in change.objects]


def test_what_a_node_announces_is_an_annotation(opened: list[Any]) -> None:
    server, store = serve(opened, lambda asked: (200, asked.body))
    store.publish_accepted_modes("n/1", "net=vxlan")
    store.publish_accepted_modes("n/1", "")
    asked, removed = server.asked
    assert (asked.method, asked.path) == ("PATCH", "/api/v1/nodes/n%2F1/status")
    assert asked.body == {"metadata": {"annotations": {"testcni.io/receives": "net=vxlan"}}}
    assert removed.body == {"metadata": {"annotations": {"testcni.io/receives": None}}}


def test_pages_then_events_then_resumption_where_it_ended(opened: list[Any]) -> None:
    watches = iter([
        iter([event("ADDED", node("c", version="12")), event("BOOKMARK", node("", version="15"))]),
        held(event("DELETED", node("a", version="16"))),
    ])  # fmt: skip

    def answer(asked: Asked) -> Answer:
        if asked.is_watch:
            return next(watches)
        return (200, page(node("b"), version="11") if "continue" in asked.query else page(node("a"), more="x"))

    asked, followed = follow(opened, answer)
    listed, added, gone = followed.until(lambda changes: len(changes) == 3)
    assert names(listed) == ["a", "b"]
    assert isinstance(added, Upserted)
    assert added.obj.name == "c"
    assert gone == Deleted("Node", "a")
    assert [one.query["resourceVersion"] for one in of_nodes(asked, watches=True)] == ["11", "15"]
    assert len(of_nodes(asked, watches=False)) == 2, "one list of two pages, and no other"


@pytest.mark.parametrize("how", ["status", "event"])
def test_a_version_that_expired_means_a_new_list(opened: list[Any], how: str) -> None:
    lists = iter([page(node("old")), page(node("new"), version="20")])
    expired = {"code": 410, "message": "too old resource version"}

    def answer(asked: Asked) -> Answer:
        if not asked.is_watch:
            return 200, next(lists)
        if asked.query["resourceVersion"] == "20":
            return held()
        return (410, expired) if how == "status" else iter([event("ERROR", expired)])

    _asked, followed = follow(opened, answer)
    changes = followed.until(lambda changes: sum(isinstance(change, Listed) for change in changes) == 2)
    assert [names(change) for change in changes if isinstance(change, Listed)] == [["old"], ["new"]]


def test_a_server_that_fails_is_asked_more_and_more_seldom_and_told(opened: list[Any]) -> None:
    asked, followed = follow(
        opened, lambda _asked: (500, {"message": "etcd is away"}), WatchTimes(first_wait=SHORT / 2)
    )
    changes = followed.until(lambda changes: changes)
    time.sleep(SHORT)
    assert len(of_nodes(asked, watches=False)) < 10
    assert isinstance(changes[0], SourceProblem)
    assert "HTTP 500: etcd is away" in str(changes[0].problem)


def test_a_server_that_comes_back_ends_the_trouble(opened: list[Any]) -> None:
    well = threading.Event()

    def answer(asked: Asked) -> Answer:
        if not well.is_set():
            return 503, b"<html>no JSON"
        return held() if asked.is_watch else (200, page(node("a")))

    _asked, followed = follow(opened, answer)
    followed.until(lambda changes: changes)
    well.set()
    changes = followed.until(lambda changes: SourceProblem("API server, Node", None) in changes)
    assert any(isinstance(change, Listed) for change in changes)


def test_a_server_that_is_not_there_is_no_trouble_for_long(opened: list[Any]) -> None:
    server = Awkward(lambda asked: held() if asked.is_watch else (200, page()))
    server.close()
    store = KubernetesStore(Api(lambda: config(server.port, "t")))
    followed = Followed(store)
    opened.append(followed)
    (trouble, *_) = followed.until(lambda changes: changes)
    assert isinstance(trouble, SourceProblem)
    assert "Connection refused" in str(trouble.problem)


def test_a_server_that_answers_one_kind_again_is_asked_for_the_others(
    opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = iter([0.3])  # of whichever kind fails first; the others are in for longer
    failures: Iterator[Answer] = iter([(503, {})] * len(KINDS))
    monkeypatch.setattr(informer, "wait_random_exponential", lambda **_: lambda _state: next(waits, 30.0))

    def answer(asked: Asked) -> Answer:
        return held() if asked.is_watch else next(failures, (200, page()))

    server = Awkward(answer)
    opened.append(server)
    followed = Followed(KubernetesStore(Api(lambda: config(server.port, "t")), TIMES))
    opened.append(followed)
    followed.until(lambda _: len([c for c in tuple(followed.changes) if isinstance(c, Listed)]) == len(KINDS))


def test_too_many_requests_are_not_answered_by_more(opened: list[Any]) -> None:
    asked, followed = follow(opened, lambda _asked: (429, {"message": "slow down"}))
    followed.until(lambda changes: changes)
    time.sleep(SHORT)
    assert len(of_nodes(asked, watches=False)) == 1


@pytest.mark.parametrize(
    "lines",
    [(), (b"no JSON\n",), (b"[]\n",), (b'{"type":"ADDED","object":7}\n',), (event("ERROR", {"code": 500}),)],
    ids=["nothing", "garbage", "a list", "no object", "an error"],
)
def test_a_watch_that_is_worth_nothing_is_no_hot_loop(opened: list[Any], lines: tuple[bytes, ...]) -> None:
    times = WatchTimes(first_wait=SHORT)
    asked, followed = follow(opened, lambda one: iter(lines) if one.is_watch else (200, page(node("a"))), times)
    followed.until(lambda changes: any(isinstance(change, SourceProblem) for change in changes))
    time.sleep(SHORT)
    assert len(of_nodes(asked, watches=True)) < 8
    assert len(of_nodes(asked, watches=False)) == 1


def test_a_watch_that_ended_at_once_is_a_problem_until_the_next_one_lasts(opened: list[Any]) -> None:
    """So does a new cluster's API server, as it begins to serve a kind; no event may come for minutes."""
    ends = iter([iter(())])

    asked, followed = follow(opened, lambda one: next(ends, held()) if one.is_watch else (200, page(node("a"))))
    followed.until(lambda changes: any(isinstance(change, SourceProblem) for change in changes))
    changes = followed.until(lambda changes: changes[-1] == SourceProblem("API server, Node", None))
    assert "ended the watch at once" in str(next(one for one in changes if isinstance(one, SourceProblem)))
    assert len(of_nodes(asked, watches=True)) == 2


@pytest.mark.parametrize("end", [(), (event("ERROR", {"code": 410}),)], ids=["it ends", "it expires"])
def test_a_watch_that_ends_after_each_event_is_no_hot_loop(opened: list[Any], end: tuple[bytes, ...]) -> None:
    versions = itertools.count(11)

    def answer(one: Asked) -> Answer:
        if one.is_watch:
            return iter((event("MODIFIED", node("a", version=str(next(versions)))), *end))
        return 200, page(node("a"))

    asked, followed = follow(opened, answer)
    followed.until(lambda _changes: len(of_nodes(asked, watches=True)) >= TIMES.burst)
    time.sleep(SHORT)
    assert len(of_nodes(asked, watches=True)) <= TIMES.burst + 1
    assert len(of_nodes(asked, watches=False)) <= TIMES.burst + 1


def test_a_connection_that_breaks_in_the_middle_of_an_event_loses_nothing(opened: list[Any]) -> None:
    whole = event("ADDED", node("b", version="12"))
    watches = iter([iter([whole[: len(whole) // 2]]), held(whole)])
    _asked, followed = follow(opened, lambda one: next(watches) if one.is_watch else (200, page()))
    followed.until(lambda changes: any(isinstance(change, Upserted) for change in changes))


def test_events_that_come_in_pieces_are_whole(opened: list[Any]) -> None:
    data = event("ADDED", node("b", version="12")) + event("ADDED", node("c", version="13"))
    pieces = (data[n : n + 7] for n in range(0, len(data), 7))
    _asked, followed = follow(opened, lambda one: held(*pieces) if one.is_watch else (200, page()))
    changes = followed.until(lambda changes: len(changes) == 3)
    assert [change.obj.name for change in changes if isinstance(change, Upserted)] == ["b", "c"]


def test_a_token_that_was_rotated_is_read_again(opened: list[Any]) -> None:
    tokens = iter(["old", "new"])

    def answer(asked: Asked) -> Answer:
        if asked.token != "new":  # noqa: S105
            return 401, {"message": "Unauthorized"}
        return held() if asked.is_watch else (200, page(node("a")))

    server = Awkward(answer)
    opened.append(server)
    store = KubernetesStore(Api(lambda: config(server.port, next(tokens))))
    with pytest.raises(ApiError, match="HTTP 401: Unauthorized"):
        store.list("Node")
    assert [obj.name for obj in store.list("Node")] == ["a"]


@pytest.mark.parametrize("token", [None, b"", b"\xff\xfe", b"secret\n", b"sec\0ret", "\u00fcsecret".encode()])
def test_a_token_that_can_not_be_used_for_a_moment_is_trouble_and_is_not_told(
    opened: list[Any], tmp_path: Path, token: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read anew once a minute, in the middle of a request."""
    server = Awkward(lambda asked: held() if asked.is_watch else (200, page(node("a"))))
    opened.append(server)
    file = tmp_path / "token"
    file.write_text("good")

    def load() -> Configuration:
        configuration = config(server.port, "")
        loader = InClusterConfigLoader(str(file), str(file), environ={})
        loader.host, loader.ssl_ca_cert = configuration.host, None
        loader._token_refresh_period = timedelta(0)
        loader._read_token_file()
        loader._set_config(configuration)
        return configuration

    store = KubernetesStore(Api(load))
    assert [obj.name for obj in store.list("Node")] == ["a"]
    if token is None:
        file.unlink()
    else:
        file.write_bytes(token)
    followed = Followed(store)
    opened.append(followed)
    changes = followed.until(lambda changes: any(isinstance(change, SourceProblem) for change in changes))
    assert "secret" not in f"{changes}{caplog.text}"
    file.write_text("good")
    followed.until(lambda changes: any(isinstance(change, Listed) for change in changes))


def test_an_api_server_whose_certificate_is_refused_is_trouble_until_it_is_good(opened: list[Any]) -> None:
    """The agent ended, and ended again: pods could neither come nor go until the certificate was renewed."""
    server = Awkward(lambda asked: held() if asked.is_watch else (200, page(node("a"))))
    opened.append(server)
    loaded: list[Configuration] = []

    def load() -> Configuration:
        loaded.append(config(server.port, "t"))
        if len(loaded) <= len(KINDS):  # a server that does not speak TLS is refused as one of another CA is
            loaded[-1].host = f"https://127.0.0.1:{server.port}"
        return loaded[-1]

    with pytest.raises(ApiError, match=r"GET /api/v1/nodes: \[SSL") as refused:
        KubernetesStore(Api(load)).list("Node")
    assert refused.value.outcome_unknown
    followed = Followed(KubernetesStore(Api(load), TIMES))
    opened.append(followed)
    changes = followed.until(lambda changes: any(isinstance(change, Listed) for change in changes))
    assert any(isinstance(change, SourceProblem) and "SSL" in str(change.problem) for change in changes)
    assert len(loaded) > len(KINDS), "it is read anew, as the CA may have been rotated"


def test_who_is_told_to_end_when_the_server_has_just_ended_the_watch_ends_well(opened: list[Any]) -> None:
    server = Awkward(lambda _asked: iter((event("ADDED", node("a")),)))
    opened.append(server)
    over = Api(lambda: config(server.port, "t")).watch("/api/v1/nodes", {"watch": "1"}, 5)
    assert len(list(over)) == 1
    over.close()


def test_who_is_told_to_end_when_the_connection_has_just_been_reset_ends_well(opened: list[Any]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    opened.append(listener)
    reset = threading.Event()

    def serve() -> None:
        connection, _address = listener.accept()
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        reset.wait()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    watch = Api(lambda: config(listener.getsockname()[1], "t")).watch("/api/v1/nodes", {"watch": "1"}, 5)
    reset.set()
    thread.join()
    watch.close()


def test_an_object_that_can_not_be_used_keeps_its_last_good_state(opened: list[Any]) -> None:
    bad = {**node("a", "10.244.1.7/24", "12"), "kind": "Node"}
    watch = held(event("MODIFIED", bad), event("MODIFIED", node("a", "10.244.9.0/24", "13")))
    lists = page(node("a"), node("b", "nonsense"))
    _asked, followed = follow(opened, lambda one: watch if one.is_watch else (200, lists))
    changes = followed.until(lambda changes: any(isinstance(change, Upserted) for change in changes))
    assert names(changes[0]) == ["a", "b"]  # the one without the podCIDR that can't be used
    told = [str(change.problem) for change in changes if isinstance(change, SourceProblem) and change.problem]
    assert [text[: text.index(":")] for text in told] == ["Node b spec.podCIDRs[0]", "Node a spec.podCIDRs[0]"]
    followed.until(lambda changes: SourceProblem("Node a", None) in changes)
    assert [change.obj for change in changes if isinstance(change, Upserted)] == [
        Node("a", blocks=(ipaddress.ip_network("10.244.9.0/24"),))
    ]


def test_an_event_that_changes_nothing_of_ours_is_not_delivered(opened: list[Any]) -> None:
    same = {**node("a", version="12"), "status": {"images": []}}
    watch = held(event("MODIFIED", same), event("DELETED", node("a", version="13")))
    _asked, followed = follow(opened, lambda one: watch if one.is_watch else (200, page(node("a"))))
    changes = followed.until(lambda changes: Deleted("Node", "a") in changes)
    assert len(changes) == 2


def test_a_status_of_a_pool_is_not_a_change_of_the_pool(opened: list[Any]) -> None:
    def pool(version: str, used: int, size: int = 24) -> dict[str, Any]:
        spec, status = {"cidr": "10.8.0.0/16", "blockSize": size}, {"used": used, "free": 1, "blocks": 1}
        return {"metadata": {"name": "p", "resourceVersion": version}, "spec": spec, "status": status}

    def answer(asked: Asked) -> Answer:
        if not asked.path.endswith("/ippools"):
            return held() if asked.is_watch else (200, page())
        if asked.is_watch:
            return held(event("MODIFIED", pool("11", 7)), event("MODIFIED", pool("12", 7, 26)))
        return 200, page(pool("10", 0))

    server = Awkward(answer)
    opened.append(server)
    followed = Followed(KubernetesStore(Api(lambda: config(server.port, "t")), TIMES))
    opened.append(followed)

    def of_pools() -> list[Change]:
        return [
            c for c in followed.changes if isinstance(c, Upserted | StatusChanged) and isinstance(c.obj, IPPool)
        ]

    followed.until(lambda _changes: len(of_pools()) == 2)
    seen, changed = of_pools()
    assert isinstance(seen, StatusChanged)
    assert seen.obj.status.counts == PoolCounts(7, 1, 1)
    assert isinstance(changed, Upserted)
    assert changed.obj.block_size == 26  # type: ignore[union-attr]


def test_missing_definitions_are_told_with_the_remedy(opened: list[Any]) -> None:
    _asked, followed = follow(opened, lambda _asked: (404, {"message": "the server could not find it"}))
    (trouble, *_) = followed.until(lambda changes: changes)
    assert isinstance(trouble, SourceProblem)
    assert trouble.problem
    assert "kubectl apply" in trouble.problem.remedy


BLOCK = IPBlock(ipaddress.ip_network("10.244.3.0/24"), "n", "p")


def test_writing(opened: list[Any]) -> None:
    def answer(asked: Asked) -> Answer:
        return (200, {"status": "Success"} if asked.method == "DELETE" else asked.body)

    server, store = serve(opened, answer)
    assert store.create(BLOCK) == BLOCK
    assert store.update(BLOCK) == BLOCK
    store.delete("IPBlock", "odd/name?")
    assert [(one.method, one.path) for one in server.asked] == [
        ("POST", "/apis/testcni.io/v1/ipblocks"),
        ("PUT", "/apis/testcni.io/v1/ipblocks/10-244-3-0-24"),
        ("DELETE", "/apis/testcni.io/v1/ipblocks/odd%2Fname%3F"),
    ]


def test_a_delete_of_what_is_known_is_one_of_that_very_object(opened: list[Any]) -> None:
    server, store = serve(opened, lambda _asked: (200, {"status": "Success"}))
    store.delete("IPBlock", BLOCK.name, replace(BLOCK, uid="u-1"))
    store.delete("IPBlock", BLOCK.name, replace(BLOCK, resource_version="77"))
    assert [one.body["preconditions"] for one in server.asked] == [{"uid": "u-1"}, {"resourceVersion": "77"}]


@pytest.mark.parametrize(("status", "outcome_unknown"), [(403, False), (409, False), (500, True), (504, True)])
def test_what_was_refused_was_not_done(opened: list[Any], status: int, outcome_unknown: bool) -> None:
    _server, store = serve(opened, lambda _asked: (status, {"message": "because"}))
    with pytest.raises(StoreError) as caught:
        store.delete("IPBlock", "x")
    assert caught.value.outcome_unknown == outcome_unknown


@pytest.mark.parametrize(
    ("status", "error"), [(409, ConflictError), (404, NotFoundError), (422, ApiError), (500, ApiError)]
)
def test_refusals(opened: list[Any], status: int, error: type[StoreError]) -> None:
    _server, store = serve(opened, lambda _asked: (status, {"message": "because"}))
    calls: list[Callable[[], Resource | None]] = [
        lambda: store.create(BLOCK), lambda: store.update(BLOCK), lambda: store.delete("IPBlock", "x"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(error, match=f"HTTP {status}: because"):
            call()


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"metadata": 7}', b'{"metadata": {}, "items": {}}', b"\xff"])
def test_answers_without_sense_are_errors(opened: list[Any], answer: bytes) -> None:
    _server, store = serve(opened, lambda _asked: (200, answer))
    with pytest.raises(StoreError):
        store.list("Node")


def test_no_configuration_is_a_trouble_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ApiError, match="Service host/port is not set"):
        KubernetesStore(Api(api.from_cluster)).list("Node")


def test_only_what_is_needed_of_a_node_is_kept(opened: list[Any]) -> None:
    big = {**node("a"), "status": {"images": [{"names": ["x" * 200]}] * 50}}
    _server, store = serve(opened, lambda _asked: (200, page(big)))
    (found,) = store.list("Node")
    assert found == Node("a", (), found.blocks)  # type: ignore[union-attr]
