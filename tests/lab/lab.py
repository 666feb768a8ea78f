"""The lab: nodes as namespaces on a switch, an agent in each, and pods by the real plugin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from agent import ctl
from agent.modes.registry import BUILT_IN
from tests.lab.agents import ForkedAgent, StartedAgent
from tests.lab.runner import Cache, Conf, Runner, RunnerError, load
from tests.lab.segment import GATEWAY, PREFIX, UNDERLAY, Segment
from tests.lab.space import PATIENCE, REPO, Space

SERVICE_TABLE = "ip kube"
"""The nft table of rules as kube-proxy sets them."""
CONF_FILE = "/etc/cni/net.d/10-testcni.conf"
SOCKET = "/run/testcni/agent.sock"
PLUGIN = REPO / "build/testcni"
READY_WITHIN = 60.0 * PATIENCE  # seconds
SEED_CONF = """{
  "cniVersion": "0.3.0",
  "name": "testcni",
  "type": "testcni",
  "bridge": "testcni0",
  "subnet": "10.244.0.0/16"
}
"""
VXLAN_CONF = """{
  "cniVersion": "0.3.0",
  "name": "testcni",
  "type": "testcni",
  "mode": "vxlan",
  "subnet": "10.244.0.0"
}
"""
IPIP_CONF = """{
  "cniVersion": "0.3.0",
  "name": "testcni",
  "type": "testcni",
  "mode": "ipip",
  "subnet": "10.244.0.0/16"
}
"""
Say = Callable[[str], None]
OwnConf = Callable[["LabNode"], str]
"""A conf that differs from node to node."""


def conf_of(mode: str) -> str | OwnConf:
    """The seed's conf of a mode."""
    if BUILT_IN.options[mode].needs_parent:
        return shared_conf(mode)
    return {"host-gw": SEED_CONF, "vxlan": VXLAN_CONF, "ipip": IPIP_CONF}[mode]


def shared_conf(mode: str, **more: Any) -> OwnConf:
    """The seed's conf of a mode whose pods are on the nodes' subnet: ranges are divided by hand."""

    def conf(node: LabNode) -> str:
        ipam = {"rangeStart": f"{UNDERLAY}.{node.number + 1}.10", "rangeEnd": f"{UNDERLAY}.{node.number + 1}.250"}
        subnet = f"{UNDERLAY}.0.0/{PREFIX}"
        seed = {"cniVersion": "0.3.0", "name": "testcni", "type": "testcni", "mode": mode, "subnet": subnet}
        return json.dumps({**seed, "ipam": ipam, **more})

    return conf


class LabError(RuntimeError):
    """The lab could not be brought up; says what and shows the agent's last words."""


class Pod:
    """A network namespace of a node that the plugin has connected."""

    def __init__(self, node: LabNode, name: str, result: Mapping[str, Any]) -> None:
        self.node = node
        self.name = name
        self.result = result

    @property
    def address(self) -> str:
        """Its first address."""
        return str(self.result["ips"][0]["address"]).partition("/")[0]

    @property
    def netns(self) -> str:
        """The path of its namespace, inside the node."""
        return f"/run/netns/{self.name}"

    def argv(self, *command: str) -> list[str]:
        """The command line that runs `command` in the pod."""
        return self.node.space.argv("nsenter", f"--net={self.netns}", *command)

    def exec(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the pod."""
        return self.node.space.exec("nsenter", f"--net={self.netns}", *command, check=check)


class LabNode:
    """A node: its namespaces, its agent, its pods."""

    AGENT: ClassVar[type[StartedAgent | ForkedAgent]] = StartedAgent
    """The class that starts its agent."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab = lab
        self.number = number
        self.name = f"node{number}"
        self.address = f"{UNDERLAY}.{number // 250}.{number % 250 + 1}"
        self.block = f"10.244.{number}.0/24"
        self.log = lab.folder / f"{self.name}.log"
        self.space = Space(self.name, lab.folder / self.name, [lab.datastore])
        self.runner = Runner(self._execute, cache=Cache(lab.folder / f"{self.name}.cache"))
        self.pods: dict[str, Pod] = {}
        self.program = "agent"
        """The Python module that is the agent."""
        self._agent: StartedAgent | ForkedAgent | None = None

    @property
    def agent_pid(self) -> int:
        """The agent's process."""
        assert self._agent
        return self._agent.pid

    def path(self, inside: str) -> Path:
        """A path of the node, seen from outside."""
        return self.space.root / inside.lstrip("/")

    def conf(self) -> Conf:
        """The conf that the runtime of this node would use."""
        return load(self.path("/etc/cni/net.d"))

    def start_agent(self, *options: str) -> None:
        """Start the agent; it is not waited for."""
        datastore, ebpf = f"dir:{self.lab.datastore}", str(REPO / "build/ebpf")
        # no test waits for a resync, which hides that nothing else noticed a change
        options = ("--node", self.name, "--datastore", datastore, "--ebpf", ebpf, "--resync", "3600", *options)
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        self._agent = self.AGENT(self.space, self.program, options, environment, self.log)

    def stop_agent(self, number: int = signal.SIGTERM) -> int:
        """End the agent by a signal; its exit code."""
        assert self._agent
        self._agent.send_signal(number)
        code = self._agent.wait(60)
        self._agent = None
        return code

    def wait_agent(self, within: float = 60) -> int:
        """Wait until the agent ends by itself; its exit code."""
        assert self._agent
        code = self._agent.wait(within)
        self._agent = None
        return code

    def reap(self) -> None:
        """Wait for an agent that was ended with the node."""
        if self._agent:
            self._agent.wait()

    def wait_ready(self, within: float = READY_WITHIN) -> None:
        """Wait until the plugin's STATUS is true; raises LabError with the agent's last words."""
        conf = self.conf()
        conf = Conf(conf.name, "1.1.0", conf.plugins, conf.path)
        end = time.monotonic() + within
        while self._begins() and time.monotonic() < end:  # cheaper than to run the plugin
            time.sleep(0.02)
        while True:
            try:
                self.runner.status(conf)
            except RunnerError as error:
                if time.monotonic() > end or (self._agent and self._agent.poll() is not None):
                    words = "\n".join(self.log.read_text().splitlines()[-8:])
                    raise LabError(
                        f"{self.name} is not ready: {error}\nits agent's last words:\n{words}"
                    ) from error
                time.sleep(0.05)
            else:
                return

    def _begins(self) -> bool:
        """Return whether the agent runs and has no socket yet."""
        return not self.path(SOCKET).exists() and self._agent is not None and self._agent.poll() is None

    def bird_routes(self) -> dict[str, str]:
        """Gateways (or devices) by block of the routes that BIRD has made."""
        listed = json.loads(self.space.exec("ip", "-j", "route", "show", "proto", "bird").stdout or "[]")
        return {r["dst"]: r.get("gateway", r["dev"]) for r in listed if r.get("type", "unicast") == "unicast"}

    def ask(self) -> dict[str, Any]:
        """Return what the agent says of itself (testcnictl status). Raises OSError, ValueError."""
        return ctl.ask(self.path(SOCKET))

    def problems(self) -> list[str]:
        """The problems that a person must fix on this node, as its agent reports them."""
        try:
            return ["{where}: {what}; {remedy}".format(**problem) for problem in self.ask()["problems"]]
        except (OSError, ValueError) as error:
            return [f"no agent answers: {error}; see {self.log}"]

    def add_netns(self, name: str) -> str:
        """Create a network namespace as `ip netns add` does; its path inside the node."""
        self.space.exec("ip", "netns", "add", name)
        return f"/run/netns/{name}"

    def add_pod(self, name: str, *, args: str = "", capabilities: Mapping[str, Any] | None = None) -> Pod:
        """A pod, connected by the conf of the node. Raises RunnerError, and then leaves nothing."""
        netns = self.add_netns(name)
        try:
            result = self.runner.add(self.conf(), name, netns, args=args, capabilities=capabilities)
        except RunnerError:
            self.space.exec("ip", "netns", "delete", name)
            raise
        self.pods[name] = Pod(self, name, result)
        return self.pods[name]

    def delete_pod(self, pod: Pod) -> None:
        """Disconnect and remove a pod."""
        self.runner.delete(self.conf(), pod.name, pod.netns)
        self.space.exec("ip", "netns", "delete", pod.name)
        del self.pods[pod.name]

    def tidy(self) -> None:
        """Remove all pods, other network namespaces, and the rules of a Service."""
        for pod in list(self.pods.values()):
            self.delete_pod(pod)
        self.space.exec("ip", "-all", "netns", "delete")
        self.space.exec("nft", f"add table {SERVICE_TABLE}; delete table {SERVICE_TABLE}")

    def _execute(self, path: str, environment: Mapping[str, str], stdin: str) -> tuple[int, str, str]:
        if not os.path.lexists(self.path(path)):
            raise FileNotFoundError(path)
        done = self.space.exec(path, check=False, stdin=stdin, env={"PATH": os.environ["PATH"], **environment})
        return done.returncode, done.stdout, done.stderr


class Lab(Segment):
    """Nodes on a switch, an agent in each."""

    def __init__(self) -> None:
        self.nodes: list[LabNode] = []
        self.pod_cidrs = True
        super().__init__()
        self.datastore = self.folder / "cluster"
        self.datastore.mkdir(mode=0o700)

    def up(
        self,
        nodes: int,
        *,
        conf: str | Mapping[str, Any] | OwnConf | None = SEED_CONF,
        pod_cidrs: bool = True,
        agents: bool = True,
        program: str = "agent",
        say: Say = lambda _text: None,
    ) -> Self:
        """Bring it up: namespaces, Node objects, confs, and agents that are ready. Raises LabError.

        `program`: the Python module that is run as the agent.
        """
        if not 1 <= nodes <= 250:
            raise LabError(f"{nodes} nodes: 1 to 250 have a block of 10.244.0.0/16 each")
        say(f"{nodes} nodes, a switch and an outside, each a namespace")
        if not PLUGIN.exists():
            raise LabError(f"{PLUGIN} is not there: make plugin")
        self.pod_cidrs = pod_cidrs
        self.nodes = [LabNode(self, number) for number in range(1, nodes + 1)]
        self.begin(*(node.space for node in self.nodes))
        self.each(lambda node: self.plug(node.space, node.address))
        for node in self.nodes:
            node.program = program
            self.put_node(node)
            node.path("/opt/cni/bin/testcni").write_bytes(PLUGIN.read_bytes())
            node.path("/opt/cni/bin/testcni").chmod(0o755)
            if conf:
                node.path(CONF_FILE).write_text(_text(conf, node))
        if not pod_cidrs:
            self.put("pool", {
                "apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": "pods"},
                "spec": {"cidr": "10.244.0.0/16", "blockSize": 24},
            })  # fmt: skip
        if agents:
            say("an agent on each node")
            self.each(lambda node: node.start_agent())
            if conf:
                self.each(LabNode.wait_ready)
        return self

    def each(self, do: Callable[[LabNode], Any], nodes: Sequence[LabNode] | None = None) -> list[Any]:
        """Do something on all nodes at once; the results in their order."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(do, self.nodes if nodes is None else nodes))

    def wait_converged(self, within: float = READY_WITHIN) -> float:
        """Wait until BIRD has a route to each other node's block on each node; the seconds. Raises LabError."""
        began = time.monotonic()
        for node in self.nodes:
            wanted = {other.block for other in self.nodes} - {node.block}
            while missing := wanted - node.bird_routes().keys():
                if time.monotonic() - began > within:
                    raise LabError(f"{node.name} has no route to {', '.join(sorted(missing))}: {node.problems()}")
                time.sleep(0.02)
        return time.monotonic() - began

    def put(self, name: str, doc: Mapping[str, Any]) -> None:
        """Write a manifest into the datastore, whole or not at all."""
        hidden = self.datastore / f".{name}.new"
        hidden.write_text(yaml.safe_dump(dict(doc), sort_keys=False))
        hidden.rename(self.datastore / f"{name}.yaml")

    def put_node(self, node: LabNode, *, internal: Sequence[str] | None = None, block: str | None = None) -> None:
        """Write a node's Node object, with other InternalIPs or another podCIDR than its own if they are given."""
        block = block or node.block
        spec = {"podCIDR": block, "podCIDRs": [block]} if self.pod_cidrs else {}
        internal = [node.address] if internal is None else internal
        addresses = [
            *({"type": "InternalIP", "address": address} for address in internal),
            {"type": "Hostname", "address": node.name},
        ]
        self.put(
            f"node-{node.name}",
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name},
                "spec": spec,
                "status": {"addresses": addresses},
            },
        )

    def delete_node(self, node: LabNode) -> None:
        """Remove a node's Node object."""
        (self.datastore / f"node-{node.name}.yaml").unlink()

    def readdress(self, node: LabNode, address: str) -> None:
        """Give a node another address on the underlay, and say so in its Node object."""
        node.space.batch([
            "address flush dev eth0 scope global",
            f"address add {address}/{PREFIX} dev eth0",
            f"route replace default via {GATEWAY}",
        ])  # fmt: skip
        node.address = address
        self.put_node(node)

    def tidy(self) -> None:
        """Remove all pods, other network namespaces, and the Service that tests serve: for the next one."""
        self.each(LabNode.tidy)

    def down(self) -> None:
        """End it, agents included."""
        super().down()
        for node in self.nodes:
            node.reap()


def _text(conf: str | Mapping[str, Any] | OwnConf, node: LabNode) -> str:
    if isinstance(conf, str):
        return conf
    return json.dumps(conf) if isinstance(conf, Mapping) else conf(node)


@contextmanager
def lab(nodes: int, **options: Any) -> Iterator[Lab]:
    """A lab that is up for the length of a block."""
    with Lab() as it:
        yield it.up(nodes, **options)
