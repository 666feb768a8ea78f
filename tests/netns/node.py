"""A node for tests: the real parts of the agent in this process, on the real kernel, without a datastore."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from agent.cluster.kinds import KINDS, Kind
from agent.cluster.snapshot_cache import apply
from agent.cluster.store import Deleted, Upserted
from agent.cni.handler import CniHandler
from agent.cni.later_plugins import LaterPlugins
from agent.cni.protocol import Call
from agent.errors import CniError
from agent.host.cni_conf_dir import Confs
from agent.ipam.assign.add_times import AddTimes
from agent.ipam.attachments.attachment_store import QUARANTINED_FOR, AttachmentStore
from agent.ipam.block_claims.block_controller import BlockController
from agent.kernel import ip_addresses, ip_links, ip_routes, netlink, netns
from agent.kernel.bpf.loader import Family, Loader
from agent.kernel.bpf.syscall import Map
from agent.kernel.netlink import Netlink
from agent.model.cluster import IPBlock, IPPool, IPReservation, Node, Resource, Snapshot
from agent.model.marks import BPF_PINS, ROUTE_PROTOCOL
from agent.model.node_status import PodEvent
from agent.model.problem_board import ProblemBoard
from agent.modes.ipip.device import IpipDevice
from agent.modes.registry import BUILT_IN
from agent.modes.vxlan import maps as vxlan_maps
from agent.node.reconciler import Reconciler
from agent.node.reconciler_inputs import Inputs
from agent.node.route_protocol import RouteMarks, of_pods
from agent.objects.host_kernel import HostKernel
from agent.runtime.observable import Observable
from tests.networks import OPTIONS
from tests.support import eventually, ip, net

T = TypeVar("T")
RESYNC = 3600.0  # seconds: no test waits so long, as a resync hides that nothing else noticed a change
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000  # mount(2)
OBJECTS = Path(__file__).resolve().parents[2] / "build/ebpf"
SEED: dict[str, Any] = {  # the seed's host-gw conf
    "cniVersion": "0.3.0",
    "name": "testcni",
    "type": "testcni",
    "bridge": "testcni0",
    "subnet": "10.244.0.0/16",
}
CONF = {**SEED, "cniVersion": "1.1.0"}
VXLAN: dict[str, Any] = {**CONF, "mode": "vxlan"}
IPIP: dict[str, Any] = {**CONF, "mode": "ipip"}
MACVLAN: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "testcni",
    "type": "testcni",
    "mode": "macvlan",
    "subnet": "192.0.2.0/24",
    "ipam": {"rangeStart": "192.0.2.90", "rangeEnd": "192.0.2.100"},
}


def command(*args: str) -> str:
    return subprocess.run(args, check=True, capture_output=True, text=True).stdout


class Pod:
    """A network namespace, held by a descriptor."""

    def __init__(self, container_id: str, ifname: str = "eth0") -> None:
        self.container_id = container_id
        self.ifname = ifname
        self.fd = -1
        maker = threading.Thread(target=self._make)
        maker.start()
        maker.join()

    def _make(self) -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        os.close(self.fd)

    def run(self, *args: str) -> str:
        return command("nsenter", f"--net={self.path}", *args)

    def json(self, *args: str) -> Any:
        return json.loads(self.run("ip", "-j", *args))

    def reaches(self, address: str) -> bool:
        args = ("nsenter", f"--net={self.path}", "ping", "-c1", "-W1", "-q", address)
        return subprocess.run(args, capture_output=True, check=False).returncode == 0

    @contextmanager
    def netlink(self) -> Iterator[Netlink]:
        with netns.netlink_in(self.fd) as nl:
            yield nl


def refuse_the_machines_namespace() -> None:
    """A fixture runs in the process of pytest, where a node would change this very machine's network."""
    mine, starters = (Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", os.getppid()))
    assert mine != starters, "make a Host in the test itself, which has its own namespace, and in no fixture"


def private_bpffs() -> None:
    """A BPF file system that only this process sees: it goes with the test."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    if libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "making mounts private")
    if libc.mount(b"bpf", b"/sys/fs/bpf", b"bpf", 0, None):
        raise OSError(ctypes.get_errno(), "mounting bpf")


class NoStore:
    """A datastore where a test does not want one: its use is an error."""

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        raise NotImplementedError(kind)

    def watch(self, deliver: object, stop: threading.Event) -> None:
        raise NotImplementedError

    def create(self, obj: Resource) -> Resource:
        raise NotImplementedError(obj)

    def update(self, obj: Resource) -> Resource:
        raise NotImplementedError(obj)

    def get(self, kind: Kind, name: str) -> Resource:
        raise NotImplementedError(kind)

    def delete(self, kind: Kind, name: str, known: Resource | None = None) -> None:
        raise NotImplementedError(kind)

    def publish_accepted_modes(self, node: str, text: str) -> None:
        raise NotImplementedError(node, text)


class Host:
    """The node `one` at 192.0.2.1 on a link eth0, with its loops run by hand or in threads."""

    def __init__(
        self,
        run_dir: Path,
        blocks: Sequence[str] = ("10.244.1.0/24",),
        cool_down: float = 0,
        conf: Mapping[str, Any] = CONF,
        route_protocol: int = ROUTE_PROTOCOL,
        *,
        sysctls: Path = Path("/proc/sys/net"),
        encapsulates: str = "auto",
        objects: Path = OBJECTS,
        times: AddTimes | None = None,
        quarantined_for: float = QUARANTINED_FOR,
    ) -> None:
        # the first round loads nft and libbpf, which may take long on a busy machine
        self._times = replace(times or AddTimes(), status=3.0)
        self.conf = conf
        refuse_the_machines_namespace()
        private_bpffs()
        self.kernel = HostKernel(Loader(objects, BPF_PINS), sysctls, of_pods(route_protocol))
        command("ip", "link", "set", "lo", "up")
        if "eth0" not in command("ip", "link"):
            command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
            for link in ("eth0", "wire"):
                command("ip", "link", "set", link, "up")
            command("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
        self.run_dir = run_dir
        self.me = Node("one", (ip("192.0.2.1"),), tuple(map(net, blocks)))
        self.snapshot = Observable(Snapshot(synced=True, nodes={"one": self.me}))
        self.confs: Observable[Confs] = Observable(Confs())
        self.demand: Observable[Any] = Observable({})
        marks = RouteMarks(run_dir, route_protocol)
        self.attachments = AttachmentStore(run_dir, cool_down, OPTIONS, quarantined_for=quarantined_for)
        self.attachments.load()
        self.block_controller = BlockController(NoStore(), "one", self.snapshot)
        self.ipip = IpipDevice(encapsulates)
        inputs = Inputs(
            self.snapshot,
            self.confs,
            self.demand,
            self.attachments,
            ProblemBoard(),
            self.kernel,
            BUILT_IN,
            objects=BUILT_IN.node_objects(self.ipip),
            marks=marks,
        )
        self.reconciler = Reconciler("one", inputs, self.block_controller, RESYNC)
        self.pod_events: list[PodEvent] = []
        self.handler = self.new_handler(
            later=LaterPlugins(
                egress_limit=lambda network: self.confs.get().egress_limits.get(network)  # noqa: PLW0108 - as it is by then
            ),
            report_event=self.pod_events.append,
        )
        self._stop = threading.Event()
        self._loop = threading.Thread(target=self.reconciler.run, args=(self._stop,), daemon=True)
        self._loop.start()

    def new_handler(self, **more: Any) -> CniHandler:
        """Return a pod path of this node, as after a restart of the agent."""
        return CniHandler(
            self.kernel,
            self.attachments,
            self.reconciler.status,
            self.demand,
            modes=BUILT_IN,
            times=self._times,
            **more,
        )

    def close(self) -> None:
        """Have nothing reconciled from now on; a round that is on its way ends before."""
        self._stop.set()
        self.reconciler.wake()
        self._loop.join()

    def put(self, *objects: Node | IPPool | IPBlock | IPReservation) -> None:
        """Add objects to the snapshot."""
        puts = [Upserted(obj) for obj in objects]
        self.snapshot.update(lambda s: apply(s, puts, frozenset(KINDS)))

    def drop(self, *names: str) -> None:
        """Remove Nodes from the snapshot."""
        gone = [Deleted("Node", name) for name in names]
        self.snapshot.update(lambda s: apply(s, gone, frozenset(KINDS)))

    def call(self, verb: str, pod: Pod | None = None, conf: object = None, **more: Any) -> dict[str, Any]:
        """Call a verb as the plugin does."""
        doc = conf if isinstance(conf, str) else json.dumps(self.conf if conf is None else conf)
        call = Call(verb, config=doc, **more)
        if pod:
            call = replace(
                call,
                container_id=more.get("container_id", pod.container_id),
                ifname=more.get("ifname", pod.ifname),
                netns=more.get("netns", pod.path),
                netns_fd=more.get("netns_fd", pod.fd),
            )
        return self.handler.answer(call)

    def ready(self) -> None:
        """Wait until a STATUS says that pods can be added."""
        eventually(lambda: self.call("STATUS") == {}, ignore=(CniError,))

    def add(self, pod: Pod, conf: object = None, **more: Any) -> dict[str, Any]:
        return self.call("ADD", pod, conf, **more)

    def delete(self, pod: Pod, conf: object = None, **more: Any) -> dict[str, Any]:
        return self.call("DEL", pod, conf, **more)

    def looked(self) -> None:
        """Wait until a whole round, which began after this, has looked at everything."""
        for _ in range(3):  # the first may have begun before; when the third begins, the second is over
            before = self.reconciler.pace.spent
            self.reconciler.drifted()
            eventually(lambda before=before: self.reconciler.pace.spent > before)

    def maps(self, family: Family = vxlan_maps.FAMILY) -> Mapping[str, Map]:
        """Return the maps of a family of eBPF programs; empty where there are none."""
        return self.kernel.bpf.maps(family) or {}

    def idle(self) -> None:
        """Wait until no round has begun for a while: what is ready has nothing to do."""

        def quiet() -> bool:
            before = self.reconciler.pace.spent
            time.sleep(0.3)
            return self.reconciler.pace.spent == before

        eventually(quiet)

    def state(self) -> dict[str, Any]:
        """All that an attachment could leave behind."""
        nl = netlink.host()
        return {
            "links": sorted((link.name, link.kind, link.master) for link in ip_links.links(nl)),
            # the kernel gives links their link-local IPv6 addresses when it pleases
            "addresses": sorted(
                str(a.interface) for a in ip_addresses.addresses(nl) if not a.address.is_link_local
            ),
            "routes": sorted(str(r) for v in (4, 6) for r in ip_routes.routes(nl, v) if not r.dst.is_link_local),
            "pods": vxlan_maps.pods(self.maps()) if self.conf is VXLAN else {},
            "nft": command("nft", "list", "ruleset"),
            "files": sorted(str(path) for path in self.run_dir.rglob("*")),
            "used": self.attachments.all(),
        }
