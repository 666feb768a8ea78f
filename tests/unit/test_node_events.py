"""What the cluster hears of a node: the condition once, and an Event for each problem that lasts."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from agent.cluster.api import Api
from agent.cluster.pod_events import PodEventQueue
from agent.model.cluster import Node, Snapshot
from agent.model.node_status import NodeStatus, PodEvent
from agent.model.node_view import NodeView
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.publish import node_events
from agent.publish.node_events import NodeEventWriter
from agent.runtime.observable import Observable
from tests.fake_clock import FakeClock
from tests.networks import network_of
from tests.unit.awkward import Answer, Asked, Awkward, config

READY = NodeStatus(synced=True, blocks={network_of("n"): (ipaddress.ip_network("10.244.1.0/24"),)})
PROBLEM = Problem("node other", "is not on-link", "put it there")


class Told:
    """A writer of events, and what the server heard."""

    def __init__(self) -> None:
        self.refuse = False
        self.named: set[str] = set()
        """Of the Events that were given a name."""
        self.patched = 0
        """PATCHes that were not refused."""
        self.server = Awkward(self._answer)
        self.status: Observable[NodeStatus] = Observable(NodeStatus())
        self.pod_events = PodEventQueue()
        self.snapshot: Observable[Snapshot] = Observable(Snapshot(nodes={"node/1": Node("node/1")}))
        self.clock = FakeClock()
        api = Api(lambda: config(self.server.port, "t"))
        view = NodeView("node/1", self.snapshot, self.status)
        self.writer = NodeEventWriter(
            api, view, self.pod_events, PartProblems("announcer").report_error, self.clock
        )

    def _answer(self, asked: Asked) -> Answer:
        if self.refuse:
            return 503, {"message": "away"}
        self.patched += asked.method == "PATCH"
        name = asked.body["metadata"].get("name") if asked.method == "POST" else None
        if name in self.named:
            return 409, {"message": "already exists"}
        self.named |= {name} if name else set()
        return 200, asked.body

    def node(self, **fields: Any) -> None:
        """The API server shows the Node."""
        self.snapshot.publish(Snapshot(nodes={"node/1": Node("node/1", **fields)}))

    def after(self, seconds: float) -> None:
        """Let that much time pass, with a round each second."""
        for _ in range(int(seconds)):
            self.clock.time += 1
            self.writer.round()

    def all(self, method: str) -> list[Any]:
        return [asked.body for asked in tuple(self.server.asked) if asked.method == method]


@pytest.fixture
def told() -> Iterator[Told]:
    it = Told()
    yield it
    it.server.close()


def test_the_condition_is_cleared_once_when_the_node_is_ready(told: Told) -> None:
    told.after(10)
    assert told.server.asked == []
    told.status.publish(READY)
    told.after(1)
    told.status.publish(NodeStatus())
    told.after(1)
    told.status.publish(READY)
    told.after(60)
    (patch,) = told.all("PATCH")
    (condition,) = patch["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == (
        "NetworkUnavailable", "False", "TestcniIsUp",
    )  # fmt: skip
    assert told.server.asked[0].path == "/api/v1/nodes/node%2F1/status"


def test_what_wakes_it_is_the_status_its_own_node_and_an_event_of_a_pod(told: Told) -> None:
    rounds: list[float] = []
    stop, clock = threading.Event(), told.clock
    told.status.listen(lambda: None)
    other = Node("other")
    clock.at(1.0, lambda: told.status.publish(NodeStatus(routes=1)))
    clock.at(2.0, lambda: told.snapshot.update(lambda s: replace(s, nodes={**s.nodes, "other": other})))
    clock.at(3.0, lambda: told.node(created="2026-01-31T12:00:00Z"))
    clock.at(4.0, lambda: told.pod_events.put(PodEvent("shop/web-0", "", "AddressNotGiven", "none is left")))
    clock.at(9.5, stop.set)
    write = told.writer._write
    told.writer._write = lambda: (rounds.append(clock.elapsed), write())[1]  # type: ignore[method-assign, func-returns-value]
    told.writer.run(stop)
    assert rounds == [0.0, 1.0, 3.0, 4.0, 9.0]


def test_a_problem_that_lasts_is_an_event_once_until_it_comes_again(told: Told) -> None:
    told.status.publish(NodeStatus(problems=(PROBLEM,)))
    told.after(30)
    (event,) = told.all("POST")
    assert (event["type"], event["message"]) == ("Warning", str(PROBLEM))
    assert event["involvedObject"]["name"] == "node/1"
    told.status.publish(NodeStatus())
    told.after(1)
    told.status.publish(NodeStatus(problems=(PROBLEM,)))
    told.after(node_events.LASTING + 1)
    assert len(told.all("POST")) == 2


def test_what_solves_itself_at_once_is_no_event(told: Told) -> None:
    told.status.publish(NodeStatus(problems=(PROBLEM,)))
    told.after(node_events.LASTING - 1)
    told.status.publish(NodeStatus())
    told.after(60)
    assert told.all("POST") == []


def test_a_flood_of_problems_is_no_flood_of_events(told: Told) -> None:
    problems = tuple(Problem(f"node {n}", "is bad", "mend it") for n in range(100))
    told.status.publish(NodeStatus(problems=problems))
    at_once, every = node_events.EVENTS
    told.after(node_events.LASTING + 1)
    assert len(told.all("POST")) == at_once
    told.after(every)
    assert len(told.all("POST")) == at_once + 1


def test_an_api_server_that_is_away_hears_of_it_later(told: Told) -> None:
    told.refuse = True
    told.status.publish(READY)
    told.after(3)
    assert len(told.all("PATCH")) == 3
    told.refuse = False
    told.after(10)
    assert told.patched == 1


def test_a_pod_hears_of_its_trouble_once_in_a_while(told: Told) -> None:
    pod_event = PodEvent("shop/web-0", "0f0e", "AddressNotGiven", "10.244.1.7 is reserved")
    for _ in range(3):
        told.pod_events.put(pod_event)
    told.pod_events.put(PodEvent("shop/web-1", "", "AddressNotGiven", "x" * 3000))
    told.after(1)
    told.pod_events.put(pod_event)
    told.after(1)
    first, second = told.all("POST")
    assert first["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "0f0e",
    }  # fmt: skip
    assert (first["metadata"]["namespace"], first["reason"]) == ("shop", "AddressNotGiven")
    assert len(second["message"]) == 1024
    path = next(asked.path for asked in told.server.asked if asked.method == "POST")
    assert path.startswith("/api/v1/namespaces/shop/events")
    told.after(node_events.POD_EVENT_EVERY)
    told.pod_events.put(pod_event)
    told.after(1)
    assert len(told.all("POST")) == 3


def test_what_is_said_once_is_one_event_also_after_a_restart(told: Told) -> None:
    pod_event = PodEvent("shop/web-0", "0f0e", "AddressOutsideBlocks", "blocks: 10.244.1.0/24", once="10.244.7.2")
    told.pod_events.put(pod_event)
    told.pod_events.put(replace(pod_event, message="blocks: none"))  # as the next agent has other words
    told.pod_events.put(replace(pod_event, once="fd00::2"))
    told.pod_events.put(replace(pod_event, pod="shop/web-1", uid="0f0f"))
    told.after(1)
    assert len(told.all("POST")) == 4
    assert len(told.named) == 3
    told.pod_events.put(replace(pod_event, reason="AddressNotGiven", once=""))
    told.after(1)
    assert "name" not in told.all("POST")[4]["metadata"], "what comes again is an Event of its own"


def test_a_condition_that_is_set_again_is_cleared_again(told: Told) -> None:
    told.status.publish(READY)
    told.after(1)
    told.node(unavailable=False)
    told.after(1)
    told.node(unavailable=True)  # a route controller
    told.after(1)
    assert len(told.all("PATCH")) == 2
    told.node(created="2026-01-31T12:00:00Z")  # made anew
    told.after(1)
    assert len(told.all("PATCH")) == 3


def test_two_controllers_do_not_fight_at_full_speed(told: Told) -> None:
    told.status.publish(READY)
    told.after(1)
    for number in range(60):
        told.node(unavailable=bool(number % 2))
        told.writer.round()
    assert len(told.all("PATCH")) == node_events.CLEARS[0]


def test_a_problem_is_told_again_when_its_event_is_about_to_go(told: Told) -> None:
    told.status.publish(NodeStatus(problems=(PROBLEM,)))
    told.after(node_events.REPEAT_AFTER)
    assert len(told.all("POST")) == 1
    told.after(node_events.LASTING + 1)
    assert len(told.all("POST")) == 2


def test_a_node_that_is_made_again_hears_of_its_problems(told: Told) -> None:
    told.status.publish(NodeStatus(problems=(PROBLEM,)))
    told.after(node_events.LASTING + 1)
    assert len(told.all("POST")) == 1
    told.snapshot.publish(Snapshot())
    told.node(created="2026-01-31T12:00:00Z")
    told.after(1)
    assert len(told.all("POST")) == 2
