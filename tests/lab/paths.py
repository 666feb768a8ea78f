"""The modes as tests of paths see them: their confs, and as whom a packet's receiver sees its sender."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from tests.lab.lab import IPIP_CONF, SEED_CONF, VXLAN_CONF, OwnConf, shared_conf

OWN_SUBNET = json.dumps({
    "cniVersion": "1.0.0", "name": "testcni", "type": "testcni", "mode": "ipvlan", "linkMode": "l3",
    "subnet": "10.244.0.0/16",
})  # fmt: skip


SIXTH_CONF = json.dumps({**json.loads(SEED_CONF), "mode": "p2p", "peerMetric": 50})
"""A mode that the agent does not have: tests/lab/sixth_mode.py."""


@dataclass(frozen=True)
class Way:
    """A mode, or a kind of it. Seen are `pod`, `node` (its address), or `gateway` (its address in the block)."""

    name: str
    conf: str | OwnConf
    pod_at_node: str = "pod"
    """As whom another node sees a pod; pods see each other, and the pod's own node sees it, as `pod`."""
    pod_outside: str = "node"
    node_at_pod: frozenset[str] = frozenset({"node"})
    """As whom a pod sees its own node."""
    node_at_far_pod: str = "node"
    service: str = "pod"
    """As whom the backend of a Service sees pods."""
    reached: bool = False
    """True if the outside, which knows no pods, reaches them: they are on its own subnet."""
    program: str = "agent"
    """The Python module that is run as the agent."""
    kind: str = ""
    """Of the device that the kernel must have."""

    @property
    def lacks(self) -> str:
        """Why it can't be tested here; empty: it can."""
        if self.name == "ipip" and not shutil.which("bird"):
            return "BIRD is not installed (Debian: bird2)"
        return lacks(self.kind) if self.kind else ""


@functools.cache
def lacks(kind: str) -> str:
    """Why this kernel has no devices of a kind; empty: it has."""
    script = f"ip link add one type veth peer name two && ip link add three link one type {kind}"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=False)
    return f"this kernel has no {kind}: {done.stderr.strip()}" if done.returncode else ""


def _tunnelled(name: str, conf: str, **more: Any) -> Way:
    seen = frozenset({"node", "gateway"})
    return Way(name, conf, pod_at_node="node", node_at_pod=seen, node_at_far_pod="gateway", **more)


def _shared(kind: str, mode: str) -> Way:
    return Way(
        f"{kind}-{mode}",
        shared_conf(kind, linkMode=mode),
        pod_outside="pod",
        service="node",
        reached=True,
        kind=kind,
    )


WAYS = (
    Way("host-gw", SEED_CONF, node_at_pod=frozenset({"gateway"})),
    _tunnelled("vxlan", VXLAN_CONF),
    _tunnelled("vxlan-kernel", json.dumps({**json.loads(VXLAN_CONF), "vxlanBackend": "kernel"})),
    _tunnelled("ipip", IPIP_CONF),
    _shared("macvlan", "bridge"),
    _shared("ipvlan", "l2"),
    _shared("ipvlan", "l3s"),
    Way("p2p", SIXTH_CONF, program="tests.lab.sixth_mode"),
    Way("ipvlan-l3", OWN_SUBNET, service="node", kind="ipvlan"),
)
