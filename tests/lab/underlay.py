"""The eBPF programs of ours at a node's underlay device, in whichever way they are attached."""

from __future__ import annotations

import sys

from tests.lab.lab import LabNode
from tests.lab.space import REPO

SCRIPT = """
import sys
from agent.kernel import ip_links, netlink, tc, tcx
from agent.modes.ipip import device
nl = netlink.host()
index = ip_links.link(nl, "eth0").index
for hook, name in device.PROGRAMS.items():
    if sys.argv[1] == "take":
        taken = (tcx.known() and tcx.detach(index, {hook: name})) or tc.detach(nl, index, {hook: name})
    else:
        taken = (tcx.known() and tcx.attached(index, hook, name)) or tc.attached(nl, index, hook)
    if taken:
        print(name)
"""


def programs(node: LabNode) -> list[str]:
    """Their names."""
    return _run(node, "list")


def take(node: LabNode) -> list[str]:
    """Detach them, behind the agent's back; their names."""
    return _run(node, "take")


def _run(node: LabNode, what: str) -> list[str]:
    argv = (sys.executable, "-c", SCRIPT, what)
    return node.space.exec(*argv, env={"PYTHONPATH": str(REPO)}).stdout.split()
