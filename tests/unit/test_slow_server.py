"""The annotations of a pod while the API server is slow, hangs or refuses, over real sockets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from agent.cluster.api import Api, ApiError
from agent.cluster.kubernetes_store import KubernetesStore
from agent.codec.cni_args import PodIdentity
from agent.errors import CniError, Code
from agent.ipam.reservations.claimant import ClaimContext
from agent.ipam.reservations.claims import ReservationClaims
from agent.ipam.reservations.pod_annotations import AddressAnnotations
from agent.model.cluster import Snapshot
from agent.model.node_status import NodeStatus, ReservationsInProgress
from agent.runtime.deadline import Deadline
from agent.runtime.observable import Observable
from tests.networks import network_of
from tests.unit import awkward
from tests.unit.awkward import Answer, Asked, Awkward

POD = PodIdentity("shop/web-0")
PODS = "/api/v1/namespaces/shop/pods/web-0"
FOUND = {"metadata": {"name": "web-0", "namespace": "shop", "annotations": {"testcni.io/sticky": "true"}}}
SLOW = 0.2  # seconds that a request waits here


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set when the test ends: requests that hang return then."""
    event = threading.Event()
    yield event
    event.set()


def read(
    answer: Callable[[Asked], Answer], within: float
) -> tuple[AddressAnnotations | CniError | None, list[str]]:
    """Read the pod's annotations, and return them or the error, with the requests that this took."""
    server = Awkward(answer)
    with contextlib.closing(server):
        store = KubernetesStore(Api(lambda: awkward.config(server.port, "t"), SLOW))
        busy: Observable[ReservationsInProgress] = Observable(frozenset())
        context = ClaimContext("n1", Observable(Snapshot()), Observable(NodeStatus()), busy)
        claims = ReservationClaims(store, context, 0)
        try:
            found = claims.annotations(POD, network_of("testcni"), Deadline.after(within))
        except CniError as error:
            return error, [asked.path for asked in server.asked]
        return found, [asked.path for asked in server.asked]


def test_a_pod_gets_what_it_asks_for_when_a_slow_server_answers_at_last(over: threading.Event) -> None:
    slow = iter([True, True])

    def answer(asked: Asked) -> Answer:
        if next(slow, False):
            over.wait()
        return (200, FOUND) if asked.path == PODS else (404, {})

    found, asked = read(answer, 60)
    assert isinstance(found, AddressAnnotations)
    assert (found.sticky, asked.count(PODS)) == (True, 3)


def test_a_body_that_does_not_come_is_a_slow_answer_too(over: threading.Event) -> None:
    def hang() -> Iterator[bytes]:
        over.wait()
        yield b"{}"

    slow = iter([hang()])
    found, asked = read(lambda _asked: next(slow, (404, {})), 60)
    assert (found, asked) == (None, [PODS, PODS])


def test_a_server_that_hangs_fails_the_add_when_its_time_is_over(over: threading.Event) -> None:
    def answer(_asked: Asked) -> Answer:
        over.wait()
        return 404, {}

    error, asked = read(answer, 2 * SLOW)
    assert isinstance(error, CniError)
    assert (error.code, set(asked)) == (Code.TRY_AGAIN, {PODS})
    assert "timed out" in str(error)
    assert len(asked) >= 2


def test_a_refusal_is_an_answer_and_the_runtime_tries_again() -> None:
    error, asked = read(lambda _asked: (503, {"message": "etcd is away"}), 60)
    assert isinstance(error, CniError)
    assert (error.code, asked) == (Code.TRY_AGAIN, [PODS])
    assert "etcd is away" in str(error)


def test_a_server_that_is_not_there_is_no_slow_server() -> None:
    server = Awkward(lambda _asked: (404, {}))
    server.close()
    store = KubernetesStore(Api(lambda: awkward.config(server.port, "t"), SLOW))
    with pytest.raises(ApiError, match="refused") as caught:
        store.get("Pod", POD.name)
    assert not caught.value.timed_out
