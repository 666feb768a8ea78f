"""NetworkPolicies are not enforced, and it is said once in a cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agent import ctl
from agent.cluster.api import Api
from agent.model.problem_board import PartProblems
from agent.publish import network_policies
from agent.publish.network_policies import NetworkPolicies
from tests.fake_clock import FakeClock
from tests.unit.awkward import Answer, Asked, Awkward, config

REPORT_ERROR = PartProblems("policies").report_error


class Cluster:
    """An API server with NetworkPolicies and Events."""

    def __init__(self) -> None:
        self.policies: list[dict[str, Any]] = []
        self.events: dict[str, Any] = {}
        self.status = 200
        self.server = Awkward(self._answer)

    def _answer(self, asked: Asked) -> Answer:
        if self.status != 200:
            return self.status, {"message": "no"}
        if asked.method == "GET":
            assert (asked.path, asked.query) == (network_policies.PATH, {"limit": "1"})
            return 200, {"items": self.policies[:1]}
        name = asked.body["metadata"]["name"]
        if name in self.events:
            return 409, {"message": "it exists"}
        self.events[name] = asked.body
        return 201, asked.body

    def policy(self, name: str) -> None:
        self.policies.append({"metadata": {"namespace": "shop", "name": name, "uid": f"u-{name}"}})

    def look(self, node: str) -> NetworkPolicies:
        return NetworkPolicies(Api(lambda: config(self.server.port, "t")), node, REPORT_ERROR)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    it = Cluster()
    yield it
    it.server.close()


def test_without_a_policy_nothing_is_said(cluster: Cluster) -> None:
    one = cluster.look("one")
    one.once()
    assert (one.note, cluster.events) == ("", {})


def test_several_agents_make_one_event_about_the_policy(cluster: Cluster) -> None:
    cluster.policy("deny")
    agents = [cluster.look(name) for name in ("one", "two", "three")]
    for agent in agents:
        agent.once()
        agent.once()
    (event,) = cluster.events.values()
    assert event["involvedObject"]["kind"] == "NetworkPolicy"
    assert (event["involvedObject"]["uid"], event["metadata"]["namespace"]) == ("u-deny", "shop")
    assert (event["reason"], event["source"]["host"]) == ("NetworkPolicyNotEnforced", "one")
    assert sum(asked.method == "POST" for asked in cluster.server.asked) == 3, "none tells twice in an hour"
    assert {agent.note for agent in agents} == {f"{network_policies.MESSAGE} (there is shop/deny)"}
    cluster.policies.clear()
    agents[0].once()
    assert agents[0].note == ""


def test_another_first_policy_is_told_of_too(cluster: Cluster) -> None:
    cluster.policy("deny")
    one = cluster.look("one")
    one.once()
    cluster.policies.clear()
    cluster.policy("allow")
    one.once()
    assert len(cluster.events) == 2


@pytest.mark.parametrize("status", [403, 404, 500])
def test_who_may_not_list_them_says_nothing_and_goes_on(cluster: Cluster, status: int) -> None:
    cluster.status = status
    clock, stop = FakeClock(), threading.Event()
    one = NetworkPolicies(Api(lambda: config(cluster.server.port, "t")), "one", REPORT_ERROR, clock=clock)
    every = network_policies.EVERY

    def allow() -> None:
        assert len(cluster.server.asked) == 4 if status < 500 else len(cluster.server.asked) > 30
        assert one.note == ""
        cluster.policy("deny")
        cluster.status = 200

    clock.at(3.1 * every, allow)  # after three pauses (3.0 at most), before the fourth ends (3.2 at least)
    clock.at(5 * every, stop.set)
    one.run(stop)
    assert one.note
    assert cluster.events


@pytest.mark.parametrize("items", [None, {}, [7], []])
def test_an_answer_without_sense_is_no_policy(cluster: Cluster, items: Any) -> None:
    cluster.server.answer = lambda _asked: (200, {"items": items})
    one = cluster.look("one")
    one.once()
    assert one.note == ""


def test_status_shows_the_note_and_the_node_stays_healthy() -> None:
    doc: dict[str, Any] = {
        "node": "one", "synced": True, "problems": [], "nodes": 1, "routes": 0, "attachments": 0,
        "uptimeSeconds": 1.0, "datastore": "kubernetes", "networks": [], "notes": [network_policies.MESSAGE],
    }  # fmt: skip
    text = ctl.render(doc, colour=False)
    assert "healthy" in text
    assert f"  note: {network_policies.MESSAGE}" in text
