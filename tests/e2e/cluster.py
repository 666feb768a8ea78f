"""A whole Kubernetes on one machine: a control plane, and nodes with containerd, kubelet and kube-proxy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from agent.cluster.store import StoreError
from tests import support
from tests.e2e import images, programs
from tests.e2e.control import PODS, ControlError, ControlPlane
from tests.e2e.machine import Disk, Machine, remove_groups
from tests.lab.segment import GATEWAY, PREFIX, UNDERLAY, Segment
from tests.lab.space import REPO, Space, SpaceError, end_all

T = TypeVar("T")
MANIFESTS = REPO / "manifests"
DEFAULT = "host-gw"
ON_THE_SUBNET = ("macvlan", "ipvlan")  # modes whose pods are on the nodes' own
EXAMPLE_SUBNET, EXAMPLE_POOL = "192.168.64.0/24", "192.168.64.128/25"  # of the overlays macvlan and ipvlan
POOL = f"{UNDERLAY}.128.0/22"
CONTAINERD = """version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%s"
  restrict_oom_score_adj = true
  disable_apparmor = true
"""
KUBELET: dict[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "failCgroupV1": False,
    "cgroupDriver": "cgroupfs",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "staticPodPath": "/etc/kubernetes/manifests",
    "authentication": {"anonymous": {"enabled": True}},
    "authorization": {"mode": "AlwaysAllow"},  # exec and logs come from the API server without a certificate
    "failSwapOn": False,
    "enforceNodeAllocatable": [],
    "localStorageCapacityIsolation": False,
    "imageGCHighThresholdPercent": 100,
    "evictionHard": {"memory.available": "50Mi"},
    "maxPods": 110,
    "nodeStatusUpdateFrequency": "5s",
    "syncFrequency": "10s",  # how long a ConfigMap takes to its pods is kubelet's: a minute by default
    "clusterDNS": ["10.96.0.10"],
    "clusterDomain": "cluster.local",
    "registryPullQPS": 0,
}
Say = Callable[[str], None]


class ClusterNode:
    """A machine with a kubelet."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.name = f"node{number}"
        self.address = f"{UNDERLAY}.0.{number}"
        self._cluster = cluster
        folder = cluster.folder / self.name
        self.disk = Disk(f"{self.name}-disk", folder)
        cluster.begin(self.disk)
        self._logs = cluster.folder / "logs"
        self._logs.mkdir(exist_ok=True)
        self.machine = self._switch_on()

    def _switch_on(self) -> Machine:
        shared = [self._cluster.control.folder, programs.build(), images.folder()]
        machine = Machine(self.name, self.disk, self._cluster.id, shared)
        self._cluster.begin(machine)
        self._cluster.plug(machine, self.address)
        return machine

    def start(self) -> None:
        """containerd with the images, kubelet and kube-proxy."""
        path = self.machine.root
        (path / "etc/containerd/config.toml").write_text(CONTAINERD % images.PAUSE)
        (path / "etc/kubernetes/manifests").mkdir(parents=True, exist_ok=True)
        self._run("containerd", "containerd")
        eventually(lambda: self.machine.exec("ctr", "version", check=False).returncode == 0, 30)
        for archive in images.archives() if not self._has_images() else ():
            self.machine.exec("ctr", "-n", "k8s.io", "images", "import", str(archive), timeout=300)
        (path / "run/kubelet.json").write_text(json.dumps(KUBELET))
        for name in ("kubelet", "kube-proxy") if self._cluster.proxy else ("kubelet",):
            self._run(name, *self._argv(name))

    def _argv(self, name: str) -> list[str]:
        program, control = f"{programs.build()}/{name}", self._cluster.control
        if name == "kubelet":
            return [
                program, "--config", "/run/kubelet.json", "--hostname-override", self.name,
                "--node-ip", self.address, "--kubeconfig", str(control.kubeconfig(f"system:node:{self.name}")),
            ]  # fmt: skip
        return [
            program, "--kubeconfig", str(control.kubeconfig("system:kube-proxy")), "--cluster-cidr", PODS,
            "--hostname-override", self.name, "--proxy-mode", self._cluster.proxy, "--conntrack-max-per-core", "0",
        ]  # fmt: skip

    def _has_images(self) -> bool:
        return images.TESTCNI in self.machine.exec("ctr", "-n", "k8s.io", "images", "ls", "-q").stdout

    def load(self, archive: str, name: str, others: Sequence[str]) -> None:
        """Import an image, and give it other names as well."""
        self.machine.exec("ctr", "-n", "k8s.io", "images", "import", archive, timeout=300)
        for other in others:
            self.machine.exec("ctr", "-n", "k8s.io", "images", "tag", "--force", name, other)

    def crash(self) -> None:
        """Switch it off without a word: every process ends, its disk stays."""
        end_all([self.machine.pid])
        self.machine.reap()
        remove_groups(f"{self._cluster.id}/{self.name}")  # else cAdvisor looks for their containers for minutes
        self._cluster.unplug(self.machine)  # the kernel would, when it comes to it

    def boot(self) -> None:
        """Switch it on again."""
        self.machine = self._switch_on()
        self.start()

    def restart(self, *programs: str, address: str = "") -> None:
        """End some of its programs, perhaps give it another address, and start them again."""
        for name in programs:
            self.machine.exec("pkill", "-KILL", "-x", name, check=False)
        if address:
            self.machine.batch([
                "address flush dev eth0 scope global",
                f"address add {address}/{PREFIX} dev eth0",
                f"route replace default via {GATEWAY}",
            ])  # fmt: skip
            self.address = address
        for name in programs:
            self._run(name, *self._argv(name))

    def attachments(self) -> list[dict[str, Any]]:
        """Return what the agent has on file: an entry for each pod interface."""
        found = self.machine.exec("sh", "-c", "head -qn1 /run/testcni/attachments/*.* 2>/dev/null || true").stdout
        return [json.loads(line) for line in found.splitlines()]

    def address_of(self, pod: str) -> str:
        """The address of a pod, given as namespace/name, from the agent's files; empty: there is none."""
        found = (one for one in self.attachments() if one["pod"] == pod)
        return next((str(one["leases"][0]["address"]) for one in found), "")

    def state(self) -> dict[str, str]:
        """Return what testcni could leave behind: links, routes, nft, plugins, confs."""
        run = self.machine.exec
        return {
            "links": run("ip", "-br", "link").stdout,
            "routes": run("ip", "-N", "route", "show", "table", "all").stdout,
            "nft": run("nft", "list", "ruleset").stdout,
            "plugins": run("ls", "/opt/cni/bin").stdout,
            "confs": run("ls", "/etc/cni/net.d").stdout,
        }

    def log(self, name: str) -> str:
        """Return what a program of it said."""
        return (self._logs / f"{self.name}-{name}.log").read_text(errors="replace")

    def _run(self, name: str, *argv: str) -> None:
        self.machine.start(self._logs / f"{self.name}-{name}.log", *argv)


class Cluster(Segment):
    """A control plane and nodes on a segment."""

    def __init__(self, mode: str = DEFAULT, proxy: str = "iptables") -> None:
        super().__init__()
        self.mode = mode
        self.proxy = proxy
        self.nodes: list[ClusterNode] = []
        self.before: dict[str, dict[str, str]] = {}
        home = self.folder / "control-plane"
        home.mkdir()
        self.space = Space("control", self.folder / "control", [home, programs.build()])
        self.begin(self.space)
        address = f"{UNDERLAY}.254.1"
        self.plug(self.space, address)
        self.control = ControlPlane(home, address, self.space.argv())

    def up(self, nodes: int, *, say: Say = lambda _text: None) -> Cluster:
        """Start the control plane and nodes; they stay NotReady until they get a network."""
        images.archives()  # made before two nodes want them at once
        say("control plane")
        self.control.start(users=[f"system:node:node{number}" for number in range(1, nodes + 1)])
        say(f"{nodes} nodes")
        self.nodes = [ClusterNode(self, number) for number in range(1, nodes + 1)]
        self.each(lambda node: node.start())
        eventually(lambda: len(self.get("nodes")) == nodes, 60)
        return self

    def each(self, do: Callable[[ClusterNode], T]) -> list[T]:
        """Do something on all nodes at once."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(do, self.nodes))

    def down(self) -> None:
        """End everything."""
        super().down()
        remove_groups(self.id)

    def kubectl(self, *argv: str, stdin: str | None = None, within: float = 60) -> str:
        """Return what kubectl prints; raises SpaceError with its words."""
        return self.space.exec(*self.control.kubectl_argv(*argv), stdin=stdin, timeout=within).stdout

    def manifests(self) -> str:
        """Return the manifest of this cluster's mode: the rendered file for the default, else an overlay."""
        if self.mode == DEFAULT:
            return (MANIFESTS / "testcni.yaml").read_text()
        text = self.kubectl("kustomize", str(MANIFESTS / "overlays" / self.mode))
        return text.replace(EXAMPLE_SUBNET, f"{UNDERLAY}.0.0/{PREFIX}")  # as the overlay says one should

    def install(self) -> None:
        """Apply the manifests, and where pods are on the nodes' subnet what they may have of it."""
        self.apply(self.manifests())
        pool = MANIFESTS / "overlays" / self.mode / "ippool.yaml"
        if pool.exists():
            text = pool.read_text().replace(EXAMPLE_POOL, POOL)

            def made() -> bool:  # until the API server knows the kind, and the policy about it
                self.apply(text)
                return True

            eventually(made, 60)

    def apply(self, what: Path | str | dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Apply a file, a folder or documents."""
        if isinstance(what, Path):
            self.kubectl("apply", "-f", "-", stdin=_text(what))
        else:
            items = [what] if isinstance(what, dict) else what
            text = what if isinstance(what, str) else "\n---\n".join(json.dumps(item) for item in items)
            self.kubectl("apply", "-f", "-", stdin=text)

    def get(self, kind: str, *argv: str) -> list[dict[str, Any]]:
        """The objects of a kind."""
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-o", "json", *argv))["items"]
        return items

    def ready_nodes(self) -> set[str]:
        """The names of the nodes that are Ready and take pods: the taint goes a moment after the condition."""
        return {
            node["metadata"]["name"]
            for node in self.get("nodes")
            if _condition(node, "Ready") == "True" and not node["spec"].get("taints")
        }

    def all_ready(self, within: float = 60) -> None:
        """Wait until all nodes are Ready and take pods.

        Raises AssertionError with what each node's condition and its kubelet say.
        """
        try:
            eventually(lambda: len(self.ready_nodes()) == len(self.nodes), within)
        except AssertionError as error:
            said = "\n".join(f"{node.name}: {node.log('kubelet')[-6000:]}" for node in self.nodes)
            try:
                found = str([(_of_kind(node, "Ready"), node["spec"].get("taints")) for node in self.get("nodes")])
            except SpaceError as away:
                found = str(away)
            raise AssertionError(f"not Ready after {within} s: {found}\n{said}") from error

    def pods(self, selector: str, namespace: str = "default") -> list[dict[str, Any]]:
        """The pods of a label selector that are not going."""
        found = self.get("pods", "-n", namespace, "-l", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def running(self, selector: str, count: int, within: float = 60, namespace: str = "default") -> list[Any]:
        """The pods of a selector, once so many of them, and no others, are ready."""

        def look() -> list[dict[str, Any]] | None:
            found = self.pods(selector, namespace)
            return found if len(found) == count and all(_condition(p, "Ready") == "True" for p in found) else None

        try:
            return eventually(look, within) or []
        except AssertionError as error:
            said = "\n".join(self._last_words(pod) for pod in self.pods(selector, namespace))
            raise AssertionError(f"{count} pods of {selector} are not ready after {within} s:\n{said}") from error

    def _last_words(self, pod: dict[str, Any]) -> str:
        """Why a pod is not ready: its conditions, its events, and what it said last."""
        metadata = pod["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        of = ("--field-selector", f"involvedObject.name={name}", "--sort-by=.lastTimestamp", "--no-headers")
        events = self.kubectl("get", "events", "-n", namespace, *of)
        try:
            log = self.kubectl("logs", "-n", namespace, name, "--tail=30")
        except SpaceError as error:
            log = str(error)
        return f"{name}: {json.dumps(pod.get('status', {}).get('conditions'))}\n{events[-1500:]}\n{log[-4000:]}"

    def refused(self, prefix: str) -> list[str]:
        """Why sandboxes could not be made of pods whose names begin so."""
        events = self.get("events", "--field-selector", "reason=FailedCreatePodSandBox")
        return [event["message"] for event in events if event["involvedObject"]["name"].startswith(prefix)]

    def exec(self, pod: dict[str, Any], *argv: str, within: float = 30) -> str:
        """Return what a command in a pod prints."""
        where = ("-n", pod["metadata"]["namespace"], pod["metadata"]["name"])
        return self.kubectl("exec", *where, "--", *argv, within=within)

    def node_of(self, pod: dict[str, Any]) -> ClusterNode:
        """The node that a pod is on."""
        return next(node for node in self.nodes if node.name == pod["spec"]["nodeName"])


def eventually(look: Callable[..., T], within: float, every: float = 0.1) -> T:
    """Return what `look` finds, once that is true; a failed look is repeated. Raises AssertionError."""
    return support.eventually(
        look, within, every, (SpaceError, ControlError, StoreError, subprocess.TimeoutExpired)
    )


def _condition(obj: dict[str, Any], kind: str) -> str:
    return str(_of_kind(obj, kind).get("status", ""))


def _of_kind(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = obj.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def _text(path: Path) -> str:
    paths = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    return "\n---\n".join(one.read_text() for one in paths)
