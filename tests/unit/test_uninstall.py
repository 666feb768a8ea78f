"""What the agent wrote of its node into the datastore goes with it, and nothing that others wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import cli, config, uninstall
from agent.cluster import datastores, node_condition
from agent.cluster.api import Api
from agent.cluster.datastores import Datastores
from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.store import ConflictError, StoreError
from tests.networks import AGENT_OPTIONS
from tests.unit.awkward import Answer, Asked, Awkward
from tests.unit.awkward import config as client

OURS = {"type": "NetworkUnavailable", "status": "False", "reason": "TestcniIsUp"}
READY = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
AGENT = config.load(["--node", "n/1", "--datastore", "kubernetes", "--conf-dir", "/none"], {}, AGENT_OPTIONS)


class Server:
    """An API server with one Node."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node: dict[str, Any] = {"metadata": {"resourceVersion": "7"}, "status": {"conditions": [READY, OURS]}}
        self.refuse: list[int] = []
        """Codes that the next changes of the condition get."""
        self.server = Awkward(self._answer)
        api = Api(lambda: client(self.server.port, "t"))
        found = Datastores(KubernetesStore(api), KubernetesStore(api), api)
        monkeypatch.setattr(datastores, "open_all", lambda _text: found)

    def _answer(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            return (200, self.node) if self.node else (404, {"message": "not found"})
        if "status" in asked.body and self.refuse:
            return self.refuse.pop(0), {"message": "no"}
        return (200, asked.body) if self.node else (404, {"message": "not found"})

    def patches(self) -> list[Any]:
        return [asked.body for asked in self.server.asked if asked.method == "PATCH"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    it = Server(monkeypatch)
    yield it
    it.server.close()


ANNOTATION = {"metadata": {"annotations": {"testcni.io/receives": None}}}
CONDITION = {
    "metadata": {"resourceVersion": "7"},
    "status": {"conditions": [{"$patch": "delete", "type": "NetworkUnavailable"}]},
}


def test_annotation_and_condition_go(server: Server) -> None:
    assert len(list(uninstall.withdraw(AGENT))) == 2
    assert server.patches() == [ANNOTATION, CONDITION]
    assert {asked.path for asked in server.server.asked} == {"/api/v1/nodes/n%2F1", "/api/v1/nodes/n%2F1/status"}


@pytest.mark.parametrize(
    "conditions",
    [
        [READY],
        [{**OURS, "reason": "RouteCreated"}],
        [{**OURS, "status": "True"}],
        [{"type": "NetworkUnavailable", "status": "False"}],
        [{**OURS, "type": "Other"}],
        None,
    ],
)
def test_what_others_set_stays(server: Server, conditions: Any) -> None:
    server.node["status"] = {"conditions": conditions}
    list(uninstall.withdraw(AGENT))
    assert server.patches() == [ANNOTATION]


def test_a_node_that_others_change_meanwhile_is_read_again(server: Server) -> None:
    server.refuse = [409, 409]
    list(uninstall.withdraw(AGENT))
    assert server.patches() == [ANNOTATION, CONDITION, CONDITION, CONDITION]
    server.refuse = [409] * node_condition.TRIES
    with pytest.raises(ConflictError):
        list(uninstall.withdraw(AGENT))


def test_a_node_without_a_node_object_has_nothing_to_remove(server: Server) -> None:
    server.node = {}
    assert list(uninstall.withdraw(AGENT)) == []


def test_what_can_not_be_removed_is_said(server: Server) -> None:
    server.refuse = [403]
    with pytest.raises(StoreError, match="HTTP 403"):
        list(uninstall.withdraw(AGENT))


def test_of_a_folder_the_nodes_own_file_goes(tmp_path: Path) -> None:
    for name in ("n1", "n2"):
        DirectoryStore(tmp_path).publish_accepted_modes(name, "net=vxlan")
    conf = config.load(["--node", "n1", "--datastore", f"dir:{tmp_path}"], {}, AGENT_OPTIONS)
    for _ in range(2):
        assert list(uninstall.withdraw(conf)) == ["the accepted modes of node n1"]
    assert [path.name for path in tmp_path.iterdir()] == ["n2.receives"]


def test_exit_codes_differ() -> None:
    assert len({0, cli.EXIT_FAILED, cli.EXIT_USAGE, cli.EXIT_BUSY, uninstall.EXIT_DATASTORE}) == 5
