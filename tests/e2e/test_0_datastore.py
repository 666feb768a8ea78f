"""The datastore and its CRDs against a real API server, without any node."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cluster import api
from agent.cluster.api import Api, ApiError
from agent.cluster.kinds import KINDS
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import ConflictError, NotFoundError
from agent.ipam.block_claims.block_controller import BlockController, ReclaimRules, claim
from agent.ipam.reservations.claimant import TakenError
from agent.model import special_addresses
from agent.model.cluster import IPBlock, IPPool, IPReservation, Node, ObjectMetadata, Snapshot
from agent.runtime.observable import Observable
from tests.e2e.api import MANIFESTS, api_server, apply
from tests.e2e.cluster import eventually
from tests.e2e.control import ControlError, ControlPlane
from tests.lab.space import REPO
from tests.networks import network_of
from tests.unit.test_reservation_claims import BLOCKS, Agent

MAPPED = ipaddress.ip_network("::ffff:0:0/96")  # the API server takes no such CIDR at all
MEMORY = 96  # MiB of a whole agent that knows 5,000 nodes


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with api_server(tmp_path_factory.mktemp("control"), "admission") as it:
        yield it


@pytest.fixture
def store(control: ControlPlane) -> KubernetesStore:
    return KubernetesStore(Api(partial(api.from_kubeconfig, control.kubeconfig())))


def pool(name: str, cidr: str, size: int | None = None, **more: Any) -> dict[str, Any]:
    spec = {"cidr": cidr, **({"blockSize": size} if size else {}), **more}
    return {"apiVersion": "testcni.io/v1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec}


def block(name: str, cidr: str, node: str = "n") -> dict[str, Any]:
    spec = {"cidr": cidr, "node": node, "pool": "p"}
    return {"apiVersion": "testcni.io/v1", "kind": "IPBlock", "metadata": {"name": name}, "spec": spec}


def reservation(name: str, address: str, **more: str) -> dict[str, Any]:
    who = {"owner": "a/b", "pod": "a/b", "node": "n", "network": "testcni", "since": "2026-01-31T12:00:00Z"}
    spec = {"address": address, **who, **more}
    return {"apiVersion": "testcni.io/v1", "kind": "IPReservation", "metadata": {"name": name}, "spec": spec}


def test_an_overlapping_pool_is_refused(control: ControlPlane) -> None:
    def first() -> bool:  # once the policy knows the kind
        apply(control, pool("first", "10.240.0.0/16"))
        return True

    eventually(first, 60)
    # the policy knows of the pool as soon as its informer does
    words = "its cidr 10.240.128.0/17 overlaps 10.240.0.0/16 of IPPool first"
    eventually(lambda: words in refusal(control, pool("second", "10.240.128.0/17")), 60)
    assert "overlaps" in refusal(control, pool("wider", "10.0.0.0/8"))
    apply(control, pool("beside", "10.241.0.0/16"))
    apply(control, pool("six", "fd00::/48"))
    control.kubectl("delete", "ippools", "--all")


def test_a_pool_over_pod_cidrs_or_services_is_refused(control: ControlPlane) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "given"},
        "spec": {"podCIDRs": ["10.230.4.0/24"]},
    }
    apply(control, node)
    words = {
        "10.230.0.0/16": "its cidr 10.230.0.0/16 overlaps podCIDRs 10.230.4.0/24 of node given",
        "10.230.4.128/25": "its cidr 10.230.4.128/25 overlaps podCIDRs 10.230.4.0/24 of node given",
        "10.96.8.0/24": "of Services (ServiceCIDR kubernetes)",
        "10.64.0.0/10": "of Services (ServiceCIDR kubernetes)",
    }
    for cidr, message in words.items():  # each policy knows its kind a while after it was made
        eventually(lambda cidr=cidr, message=message: message in refusal(control, pool("p", cidr)), 60)
    assert refusal(control, pool("p", "10.230.5.0/24")) == ""
    control.kubectl("delete", "node", "given")


@pytest.mark.parametrize(
    "kept", [k for k in special_addresses.CLASSES if k.network != MAPPED], ids=lambda k: str(k.network)
)
def test_a_pool_of_addresses_that_no_pod_may_have_is_refused(
    control: ControlPlane, kept: special_addresses.Class
) -> None:
    longest = kept.network.prefixlen >= (30 if kept.network.version == 4 else 126)
    inside = kept.network.supernet(new_prefix=kept.network.max_prefixlen - 4) if longest else kept.network
    message = "overlaps addresses that no pod may have: unspecified, loopback"
    for cidr in {inside, kept.network.supernet(), ipaddress.ip_network((inside[0], inside.max_prefixlen - 4))}:
        assert message in refusal(control, pool("p", str(cidr)))


def test_the_kind_and_the_agents_know_the_same_addresses() -> None:
    docs = yaml.safe_load_all((MANIFESTS / "crds.yaml").read_text())
    schema = next(docs)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    rules = schema["properties"]["spec"]["properties"]["cidr"]["x-kubernetes-validations"]
    (rule,) = (each["rule"] for each in rules if "127.0.0.0/8" in each["rule"])
    named = [ipaddress.ip_network(text) for text in re.findall(r"'([^']+/[0-9]+)'", rule)]
    for version in (4, 6):
        both = [
            [*ipaddress.collapse_addresses(n for n in found if n.version == version)]  # type: ignore[type-var]
            for found in (named, [kept.network for kept in special_addresses.CLASSES])
        ]
        assert both[0] == both[1]


def refusal(control: ControlPlane, doc: Mapping[str, Any]) -> str:
    """Return what the API server says against it; empty (and it is gone again) when it says nothing."""
    try:
        apply(control, doc)
    except ControlError as error:
        return str(error)
    control.kubectl("delete", doc["kind"].lower(), doc["metadata"]["name"])
    return ""


@pytest.mark.parametrize(
    ("doc", "message"),
    [
        (pool("p", "10.244.1.0/16"), "a CIDR with no host bits set"),
        (pool("p", "10.244.0.0"), "a CIDR with no host bits set"),
        (pool("p", "10.244.0.0/33"), "a CIDR with no host bits set"),
        (pool("p", "10.244.0.0/16", 12), "blockSize must not be smaller than the prefix length of cidr"),
        (pool("p", "10.244.0.0/16", 31), "leaves a pod no address"),
        (pool("p", "10.244.0.0/16", 4), "should be greater than or equal to 8"),
        ({**pool("p", ""), "spec": {}}, "spec.cidr: Required value"),
        (pool("p", "10.244.0.0/16", start="10.244.0"), "an address, such as 10.244.0.10"),
        (pool("p", "10.244.0.0/16", start="10.245.0.9"), "start must be an address of cidr"),
        (pool("p", "10.244.0.0/16", end="fd00::1"), "end must be an address of cidr"),
        (pool("p", "10.244.0.0/16", start="10.244.10.9", end="10.244.9.10"), "end must not be below start"),
        (pool("p", "10.244.0.0/16", gateway="fd00::1"), "gateway must be of the IP version of cidr"),
        (pool("p", "10.244.0.0/16", gateway="router"), "an address, such as 10.244.0.1"),
        (pool("p", "10.244.0.0/16", exclude=["10.244.0.1/24"]), "an address, or a CIDR with no host bits set"),
        (pool("p", "10.244.0.0/16", exclude=["10.0.0.0/8"]), "what is in exclude must lie in cidr"),
        (pool("p", "10.244.0.0/16", exclude=["10.244.0.1", "fd00::1"]), "what is in exclude must lie in cidr"),
        (pool("p", "10.244.0.0/16", exclude=["10.244.0.1", "10.244.0.1"]), "Duplicate value"),
        (block("10-244-3-0-24", "10.244.4.0/24"), "an IPBlock is named for its cidr"),
        (block("10-244-3-7-24", "10.244.3.7/24"), "a CIDR with no host bits set"),
        (block("10-244-3-0-24", "10.244.3.0/24", ""), "should be at least 1 chars long"),
        (reservation("10-244-3-7", "10.244.3.8"), "an IPReservation is named for its address"),
        (reservation("10-244-3-7", "10.244.3"), "an IP address, such as 10.244.1.7"),
        (reservation("10-244-3-7", "10.244.3.7", owner=""), "should be at least 1 chars long"),
        (reservation("10-244-3-7", "10.244.3.7", released="yesterday"), "must be of type date-time"),
    ],
)
def test_wrong_objects_are_refused_with_a_message(
    control: ControlPlane, doc: dict[str, Any], message: str
) -> None:
    assert message in refusal(control, doc)


@pytest.mark.parametrize(
    ("doc", "change", "message"),
    [
        (pool("p", "10.244.0.0/16"), {"cidr": "10.245.0.0/16"}, "cidr is immutable; create another pool"),
        (pool("p", "10.244.0.0/16", 24), {"blockSize": 26}, "blockSize is immutable; create another pool"),
        (block("10-244-3-0-24", "10.244.3.0/24"), {"node": "other"}, "a block can't change its owner"),
        (reservation("10-244-3-7", "10.244.3.7"), {"address": "10.244.3.8"}, "a reservation is for one address"),
    ],
)
def test_what_is_in_use_can_not_be_moved(
    control: ControlPlane, doc: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    apply(control, doc)
    with pytest.raises(ControlError, match=message):
        apply(control, {**doc, "spec": {**doc["spec"], **change}})
    control.kubectl("delete", doc["kind"].lower(), doc["metadata"]["name"])


def test_columns_and_short_names(control: ControlPlane) -> None:
    part = {"start": "10.244.1.0", "end": "10.244.9.255", "gateway": "10.244.0.1"}
    apply(control, pool("p", "10.244.0.0/16", 26, **part, exclude=["10.244.2.0/24", "10.244.1.7"]))
    apply(control, block("10-244-3-0-24", "10.244.3.0/24", "node7"))
    assert control.kubectl("get", "pool").splitlines()[1].split()[:3] == ["p", "10.244.0.0/16", "26"]
    apply(control, reservation("10-244-3-7", "10.244.3.7"))
    assert control.kubectl("get", "reservation").splitlines()[1].split()[:5] == [
        "10-244-3-7", "10.244.3.7", "a/b", "a/b", "n",
    ]  # fmt: skip
    assert control.kubectl("get", "pool", "-o", "wide").splitlines()[1].split()[3:6] == [*part.values()]
    assert control.kubectl("get", "block").splitlines()[1].split()[:4] == [
        "10-244-3-0-24", "10.244.3.0/24", "node7", "p",
    ]  # fmt: skip
    control.kubectl("delete", "pool,block,reservation", "--all")


def test_create_update_delete_and_conflicts(store: KubernetesStore) -> None:
    made = store.create(IPPool("p", ipaddress.ip_network("10.244.0.0/16"), 24))
    assert made.resource_version
    assert store.list("IPPool") == (made,)
    with pytest.raises(ConflictError, match="already exists"):
        store.create(made)
    with pytest.raises(ConflictError, match="the object has been modified"):
        store.update(IPPool("p", ipaddress.ip_network("10.244.0.0/16"), 24, "1"))
    with pytest.raises(ApiError, match="cidr is immutable"):
        store.update(IPPool("p", ipaddress.ip_network("10.245.0.0/16"), 24, made.resource_version))
    store.delete("IPPool", "p")
    with pytest.raises(NotFoundError):
        store.delete("IPPool", "p")


def test_a_reservation_moves_by_its_version_only(store: KubernetesStore) -> None:
    who = ("default/web-0", "default/web-0", "one", "testcni")
    mine = IPReservation(ipaddress.ip_address("10.244.3.7"), *who, datetime(2026, 1, 31, 12, tzinfo=UTC))
    made = store.create(mine)
    assert made == mine
    assert isinstance(made, IPReservation)
    moved = store.update(replace(made, node="two", released=datetime(2026, 1, 31, 13, tzinfo=UTC)))
    assert store.get("IPReservation", "10-244-3-7") == moved
    with pytest.raises(ConflictError):
        store.update(replace(made, node="three"))
    with pytest.raises(ConflictError):
        store.delete("IPReservation", made.name, made)
    store.delete("IPReservation", made.name, moved)
    with pytest.raises(NotFoundError):
        store.get("IPReservation", made.name)


def test_the_metadata_of_a_pod_and_its_namespace(control: ControlPlane, store: KubernetesStore) -> None:
    control.kubectl("create", "namespace", "shop")
    control.kubectl("annotate", "namespace", "shop", "testcni.io/pool=gold", "other=x")
    control.kubectl("create", "serviceaccount", "default", "-n", "shop")
    body = {"containers": [{"name": "main", "image": "none"}]}
    metadata = {"name": "web-0", "namespace": "shop", "annotations": {"testcni.io/sticky": "true"}}
    apply(control, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body})
    found = store.get("Pod", "shop/web-0")
    assert isinstance(found, ObjectMetadata)
    assert (found.name, found.annotations, len(found.uid)) == ("shop/web-0", (("testcni.io/sticky", "true"),), 36)
    namespace = store.get("Namespace", "shop")
    assert isinstance(namespace, ObjectMetadata)
    assert namespace.annotations == (("testcni.io/pool", "gold"),)
    with pytest.raises(NotFoundError):
        store.get("Pod", "shop/web-1")


def test_two_nodes_share_addresses_that_stay(
    control: ControlPlane, store: KubernetesStore, tmp_path: Path
) -> None:
    for name, cidr in BLOCKS.items():
        node = {"metadata": {"name": name}, "spec": {"podCIDR": str(cidr)}}
        apply(control, {"apiVersion": "v1", "kind": "Node", **node})
    control.kubectl("create", "serviceaccount", "default")
    for name, key, value in (("web-0", "sticky", "true"), ("a", "ip", "10.244.1.50"), ("b", "ip", "10.244.1.50")):
        metadata: dict[str, Any] = {"name": name, "annotations": {f"testcni.io/{key}": value}}
        spec = {"containers": [{"name": "main", "image": "none"}], "automountServiceAccountToken": False}
        apply(control, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    one, two = (
        Agent(name, KubernetesStore(Api(partial(api.from_kubeconfig, control.kubeconfig()), 10.0)), tmp_path)
        for name in BLOCKS
    )
    for agent in (one, two):
        agent.start()
    try:
        for agent in (one, two):
            eventually(lambda agent=agent: agent.snapshot_cache.snapshot.get().synced, 15)
        for agent in (one, two, one):
            made = agent.add("web-0")
            assert str(made.leases[0].address) == "10.244.1.2"
            agent.attachments.remove(made)
            eventually(lambda agent=agent: agent.held().released, 5)
        assert two.add("a").off_block
        with pytest.raises(TakenError, match="is reserved for default/a"):
            one.add("b")
        assert [pod_event.pod for pod_event in one.told] == ["default/b"]
    finally:
        for agent in (one, two):
            agent.stop()
    control.kubectl("delete", "ipreservations,pods", "--all", "--grace-period=0", "--force")
    control.kubectl("delete", "nodes", "--all")


def test_a_delete_is_of_the_very_object_that_was_known(store: KubernetesStore) -> None:
    claimed = store.create(IPBlock(ipaddress.ip_network("10.244.3.0/24"), "one", "p"))
    assert isinstance(claimed, IPBlock)
    assert claimed.uid
    store.delete("IPBlock", claimed.name, claimed)
    with pytest.raises(NotFoundError):
        store.delete("IPBlock", claimed.name, claimed)
    again = store.create(IPBlock(claimed.cidr, "one", "p"))
    assert again != claimed
    with pytest.raises(ConflictError, match="UID"):
        store.delete("IPBlock", claimed.name, claimed)
    assert store.list("IPBlock") == (again,)
    store.delete("IPBlock", claimed.name, again)


def test_blocks_of_a_node_that_is_gone_are_freed_and_claimed(store: KubernetesStore) -> None:
    pods = IPPool("p", ipaddress.ip_network("10.244.0.0/24"), 24)
    store.create(pods)
    left = store.create(IPBlock(pods.cidr, "gone", "p"))
    assert isinstance(left, IPBlock)
    snapshot = Snapshot(True, {"one": Node("one")}, {"p": pods}, {left.name: left})
    block_controller = BlockController(store, "one", Observable(snapshot), ReclaimRules(node_gone=0.0))
    block_controller.want({network_of("n"): 1})
    block_controller.once()
    (mine,) = store.list("IPBlock")
    assert isinstance(mine, IPBlock)
    assert (mine.cidr, mine.node) == (pods.cidr, "one")
    assert mine.uid != left.uid
    store.delete("IPBlock", mine.name)
    store.delete("IPPool", "p")


def test_fifty_nodes_that_claim_at_once_get_fifty_blocks(store: KubernetesStore) -> None:
    pods = IPPool("p", ipaddress.ip_network("10.244.0.0/16"), 24)
    store.create(pods)
    nodes = {f"node{n}": Node(f"node{n}") for n in range(50)}
    snapshot = Snapshot(synced=True, nodes=nodes, pools={"p": pods})
    begin = threading.Barrier(50)

    def run(name: str) -> IPBlock:
        begin.wait()
        return claim(store.create, snapshot, network_of("n"), name)

    with ThreadPoolExecutor(50) as threads:
        claimed = list(threads.map(run, nodes))
    assert len({one.cidr for one in claimed}) == 50
    assert {(one.name, one.node) for one in claimed} == {
        (one.name, one.node) for one in store.list("IPBlock") if isinstance(one, IPBlock)
    }
    for one in claimed:
        store.delete("IPBlock", one.name)
    store.delete("IPPool", "p")


def test_a_watch_outlives_an_api_server_that_restarts(control: ControlPlane, store: KubernetesStore) -> None:
    snapshot_cache, stop = SnapshotCache(store), threading.Event()
    thread = threading.Thread(target=snapshot_cache.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: snapshot_cache.snapshot.get().synced, 10)
        store.create(IPPool("before", ipaddress.ip_network("10.1.0.0/16"), 24))
        eventually(lambda: "before" in snapshot_cache.snapshot.get().pools, 10)
        control.end("kube-apiserver")
        eventually(lambda: len(snapshot_cache.problems.get()) == len(KINDS), 10)
        assert "before" in snapshot_cache.snapshot.get().pools, "the last state stays in force"
        control.start_apiserver()
        after = IPPool("after", ipaddress.ip_network("10.2.0.0/16"), 24)
        eventually(lambda: store.create(after), 60)  # its policies look for their kinds every 30 s
        eventually(lambda: "after" in snapshot_cache.snapshot.get().pools, 35)
        eventually(lambda: not snapshot_cache.problems.get(), 35)
        store.delete("IPPool", "before")
        eventually(lambda: "before" not in snapshot_cache.snapshot.get().pools, 10)
    finally:
        stop.set()
        thread.join()
        control.kubectl("delete", "ippools", "--all")


def test_five_thousand_nodes_fit_into_the_agents_memory(control: ControlPlane) -> None:
    fill(control, 5000)
    argv = [sys.executable, "-c", FOLLOW, str(control.kubeconfig())]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=REPO, timeout=120)
    now, peak = (int(line) // 1024 for line in done.stdout.split())
    print(f"all that an agent imports, and 5,000 nodes: {now} MiB, {peak} MiB at its largest")
    assert peak < MEMORY


FOLLOW = """
import sys, threading, time
from functools import partial
from pathlib import Path
from pathlib import Path
from agent import cli
from agent.cluster import api
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.snapshot_cache import SnapshotCache
cache = SnapshotCache(KubernetesStore(api.Api(partial(api.from_kubeconfig, Path(sys.argv[1])))))
threading.Thread(target=cache.run, args=(threading.Event(),), daemon=True).start()
while len(cache.snapshot.get().nodes) < 5000 or not cache.snapshot.get().synced: time.sleep(0.1)
time.sleep(1)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def fill(control: ControlPlane, count: int) -> None:
    """Nodes as large as real ones: 50 images of two names each."""
    images = [{"names": [f"registry.example/{'x' * 60}{n}:{t}" for t in "ab"], "sizeBytes": n} for n in range(50)]
    server = Api(partial(api.from_kubeconfig, control.kubeconfig()))

    def put(number: int) -> None:
        a, b = divmod(number, 250)
        doc = {
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": f"many{number}"},
            "spec": {"podCIDR": f"10.{a}.{b}.0/24", "podCIDRs": [f"10.{a}.{b}.0/24"]},
        }  # fmt: skip
        server.ask(api.Request("POST", "/api/v1/nodes", body=doc))
        status = {
            "addresses": [{"type": "InternalIP", "address": f"172.20.{a}.{b + 1}"}], "images": images,
        }  # fmt: skip
        path = f"/api/v1/nodes/many{number}/status"
        server.ask(api.Request("PATCH", path, {}, {"status": status}, "application/merge-patch+json"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, range(count)))


def test_the_crds_are_yaml_that_says_what_it_is() -> None:
    for doc in yaml.safe_load_all((MANIFESTS / "crds.yaml").read_text()):
        for version in doc["spec"]["versions"]:
            assert version["schema"]["openAPIV3Schema"]["description"]
