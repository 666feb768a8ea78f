"""testcni-uninstall: what an agent and its pods left is gone, and nothing foreign with it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from agent.model.marks import ROUTE_PROTOCOL
from tests.lab.lab import PLUGIN, SEED_CONF, VXLAN_CONF, LabNode, lab
from tests.lab.state import difference, net_state
from tests.support import eventually

OPTIONS = ("--conflist", "/opt/testcni/conflist")


def uninstall(node: LabNode, datastore: str = "") -> subprocess.CompletedProcess[str]:
    store = datastore or f"dir:{node.lab.datastore}"
    argv = (sys.executable, "-m", "agent.uninstall", "--node", node.name, "--datastore", store, *OPTIONS)
    return node.space.exec(*argv, check=False)


@pytest.mark.parametrize("conf", [SEED_CONF, VXLAN_CONF], ids=["host-gw", "vxlan"])
def test_nothing_of_ours_is_left_and_all_that_is_foreign(conf: str) -> None:
    with lab(2, conf=None, agents=False) as it:
        node, other = it.nodes
        for one in it.nodes:
            one.path("/opt/cni/bin/testcni").unlink()
            one.path("/opt/testcni/bin").mkdir(parents=True)
            (one.path("/opt/testcni/bin") / "testcni").write_bytes(PLUGIN.read_bytes())
            plugins = {"cniVersion": "1.0.0", "name": "testcni", "plugins": [json.loads(conf)]}
            one.path("/opt/testcni/conflist").write_text(json.dumps(plugins))
        node.path("/etc/cni/net.d/99-other.conf").write_text("{}")
        node.path("/opt/cni/bin/portmap").write_text("somebody else's")
        node.space.batch(["link add foreign0 type bridge", "route add 198.51.100.0/24 via 172.18.255.254"])
        before = net_state(node)
        for one in it.nodes:
            one.start_agent(*OPTIONS)
            eventually(one.path("/etc/cni/net.d/05-testcni.conflist").exists)
            one.wait_ready()
        node.add_pod("a")
        other.add_pod("b")
        eventually(lambda: f"proto {ROUTE_PROTOCOL}" in node.space.exec("ip", "-N", "route").stdout)
        busy = uninstall(node)
        assert (busy.returncode, "an agent serves" in busy.stderr) == (3, True)
        said = it.datastore / f"{node.name}.receives"
        eventually(said.exists)
        node.stop_agent()
        away = uninstall(node, "kubernetes")
        assert (away.returncode, "but the datastore still has" in away.stderr) == (4, True), away.stderr
        assert "removed /etc/cni/net.d/05-testcni.conflist" in away.stdout, "the node is cleaned all the same"
        assert said.exists()
        done = uninstall(node)
        assert done.returncode == 0, done.stderr
        assert not said.exists()
        assert (it.datastore / f"{other.name}.receives").exists()
        gone = [line for line in difference(before, net_state(node)) if "/run/netns" not in line]
        assert [line for line in gone if "agent.lock" not in line] == []
        assert node.path("/opt/cni/bin/portmap").read_text() == "somebody else's"
        assert not node.path("/opt/cni/bin/testcni").exists()
        again = uninstall(node)
        assert again.returncode == 0, "it may be repeated"
