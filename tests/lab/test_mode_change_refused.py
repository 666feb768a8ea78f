"""host-gw to macvlan, whose pods would not reach each other: refused while there are pods, and done after that."""

from __future__ import annotations

import json

import pytest

from agent.host.installer import CONFLIST
from tests.lab.lab import PLUGIN, SEED_CONF, Lab, LabNode, Pod, lab, shared_conf
from tests.lab.paths import lacks
from tests.lab.test_metrics import get
from tests.support import eventually

CONF_FOLDER = "/etc/cni/net.d"
OPTIONS = ("--conflist", "/opt/testcni/conflist")


def wants(node: LabNode, conf: str) -> None:
    """The conflist that the agent is to install, replaced as a whole."""
    path = node.path(OPTIONS[1])
    plugins = {"cniVersion": "1.0.0", "name": "testcni", "plugins": [json.loads(conf)]}
    path.with_suffix(".new").write_text(json.dumps(plugins))
    path.with_suffix(".new").rename(path)


def has(it: Lab) -> list[str]:
    """The mode of the conflist that each node's runtime has; empty: there is none."""
    paths = [node.path(f"{CONF_FOLDER}/{CONFLIST}") for node in it.nodes]
    docs = [json.loads(path.read_text()) if path.exists() else {"plugins": [{"mode": ""}]} for path in paths]
    return [doc["plugins"][0].get("mode", "host-gw") for doc in docs]


def said(it: Lab) -> list[str]:
    """Return what each node announces of the network."""
    files = [it.datastore / f"{node.name}.receives" for node in it.nodes]
    return [path.read_text().strip().partition("=")[2] if path.exists() else "" for path in files]


def reaches(pod: Pod, other: Pod) -> bool:
    return pod.exec("ping", "-c1", "-W2", other.address, check=False).returncode == 0


def test_the_last_pod_that_goes_lets_all_nodes_change() -> None:
    if why := lacks("macvlan"):
        pytest.skip(why)
    with lab(2, conf=None, agents=False, program="tests.lab.short_grace") as it:
        one, two = it.nodes
        for node in it.nodes:
            node.path("/opt/testcni/bin").mkdir(parents=True)
            (node.path("/opt/testcni/bin") / "testcni").write_bytes(PLUGIN.read_bytes())
            wants(node, SEED_CONF)
            node.start_agent(*OPTIONS)
        eventually(lambda: (has(it), said(it)) == (["host-gw"] * 2, ["host-gw"] * 2))
        a, b = one.add_pod("a"), two.add_pod("b")
        for node in it.nodes:
            wants(node, shared_conf("macvlan")(node))
        for node in it.nodes:
            eventually(lambda node=node: "the mode macvlan is refused" in str(node.problems()))
            status, why = get(node, "/readyz")
            assert (status, "network testcni (macvlan) is not prepared" in why) == (503, True)
            assert "pods on this node are in the mode host-gw" in why
        later = one.add_pod("later")
        assert reaches(later, b)
        assert reaches(b, a)
        assert (has(it), said(it)) == (["host-gw"] * 2, ["host-gw"] * 2)
        for pod in (a, later):
            one.delete_pod(pod)
        eventually(lambda: said(it) == ["", "host-gw"])
        assert "node node2 announces the mode host-gw" in str(one.problems())
        assert has(it) == ["host-gw"] * 2
        two.delete_pod(b)
        eventually(lambda: (has(it), said(it)) == (["macvlan"] * 2, ["macvlan"] * 2))
        c, d = one.add_pod("c"), two.add_pod("d")
        assert reaches(c, d)
        eventually(lambda: "testcni0" not in one.space.exec("ip", "link").stdout)
        assert [node.problems() for node in it.nodes] == [[], []]
        for node in it.nodes:
            assert get(node, "/readyz") == (200, "ok\n")
