"""The installer in a whole agent: a node gets plugin and conflist by itself, and only then."""

from __future__ import annotations

import json

from tests.lab.lab import PLUGIN, SEED_CONF, lab
from tests.support import eventually


def test_an_agent_installs_plugin_and_conflist_when_the_node_is_ready() -> None:
    with lab(1, conf=None, agents=False) as it:
        node = it.nodes[0]
        node.path("/opt/cni/bin/testcni").unlink()
        bundle = node.path("/opt/testcni/bin")
        bundle.mkdir(parents=True)
        (bundle / "testcni").write_bytes(PLUGIN.read_bytes())
        conflist = {"cniVersion": "1.0.0", "name": "testcni", "plugins": [json.loads(SEED_CONF)]}
        node.path("/opt/testcni/conflist").write_text(json.dumps(conflist))
        it.delete_node(node)
        node.start_agent("--conflist", "/opt/testcni/conflist")
        eventually(lambda: node.path("/opt/cni/bin/testcni").exists())
        eventually(lambda: "has no Node object" in str(node.problems()))
        installed = node.path("/etc/cni/net.d/05-testcni.conflist")
        assert not installed.exists(), "a node that can't take pods must not look ready"
        it.put_node(node)
        eventually(installed.exists)
        node.wait_ready()
        assert node.add_pod("a").address == "10.244.1.2"
