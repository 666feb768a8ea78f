"""What the datastore says, nearly right, on its way to the node's desired state: manifests, lists and watches."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster import directory_contents, informer
from agent.cluster.api import Api, ApiError, Request
from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kinds import KINDS, Kind
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.snapshot_cache import SnapshotCache
from agent.codec.cni_args import PodIdentity
from agent.errors import CniError
from agent.ipam import block_ownership, blocks
from agent.ipam.block_claims import free_blocks
from agent.ipam.reservations import problems as reservation_problems
from agent.ipam.reservations import rules as reservation_rules
from agent.ipam.reservations.pod_annotations import AnnotationReader
from agent.ipam.reservations.rules import LocalPods
from agent.model.cluster import Snapshot
from agent.model.network import Network
from agent.modes.base import ModeContext
from agent.modes.registry import BUILT_IN
from agent.node.last_known_nodes import LastKnownNodes
from agent.objects.state import LocalAddress, union
from tests.networks import parse_conf
from tests.unit.fuzz import dumped, fuzz, texts
from tests.unit.fuzz import folder as fresh

pytestmark = pytest.mark.usefixtures("quiet")
OURS = {"apiVersion": "testcni.io/v1"}
GOOD: dict[Kind, dict[str, Any]] = {
    "Node": {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "resourceVersion": "1"}, "spec": {
        "podCIDRs": ["10.244.1.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}},
    "IPPool": {**OURS, "kind": "IPPool", "metadata": {"name": "p1"}, "spec": {"cidr": "10.244.0.0/16"}},
    "IPBlock": {**OURS, "kind": "IPBlock", "metadata": {"name": "10-244-2-0-24"}, "spec": {
        "cidr": "10.244.2.0/24", "node": "n1", "pool": "p1"}},
    "IPReservation": {**OURS, "kind": "IPReservation", "metadata": {"name": "10-244-1-7"}, "spec": {
        "address": "10.244.1.7", "owner": "a/b", "pod": "a/b", "node": "n1", "network": "net",
        "since": "2026-01-31T12:00:00Z"}},
}  # fmt: skip
OTHERS: dict[Kind, dict[str, Any]] = {
    "Node": {"apiVersion": "v1", "kind": "Node", "metadata": {
        "name": "n2", "resourceVersion": "2", "labels": {"rack": "a"}, "creationTimestamp": "2026-01-31T12:00:00Z",
        "annotations": {"testcni.io/receives": "net=vxlan,ipip ends=192.0.2.2"}},
        "spec": {"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24", "fd00:3::/64"]}, "status": {
        "conditions": [{"type": "NetworkUnavailable", "status": "True"}], "addresses": [
            {"type": "InternalIP", "address": "192.0.2.2"}, {"type": "InternalIP", "address": "2001:db8::2"},
            {"type": "Hostname", "address": "n2"}]}},
    "IPPool": {**OURS, "kind": "IPPool", "metadata": {"name": "p2"}, "spec": {
        "cidr": "10.244.128.0/17", "blockSize": 26, "start": "10.244.128.9", "end": "10.244.200.1",
        "exclude": ["10.244.129.0/24", "10.244.130.1"], "gateway": "10.244.128.1", "allowedNamespaces": ["a"]}},
    "IPBlock": {**OURS, "kind": "IPBlock", "metadata": {
        "name": "10-244-4-0-24", "uid": "u", "creationTimestamp": "2026-01-31T12:00:00Z"},
        "spec": {"cidr": "10.244.4.0/24", "node": "n2", "pool": "p2"}},
    "IPReservation": {**OURS, "kind": "IPReservation", "metadata": {"name": "10-244-4-7"}, "spec": {
        "address": "10.244.4.7", "owner": "a/c", "pod": "a/c", "node": "n1", "network": "net", "asks": "n2",
        "refused": "no", "since": "2026-01-31T12:00:00+01:00", "released": "2026-02-01T12:00:00Z"}},
}  # fmt: skip
POD = {"metadata": {
    "name": "web-abc-1", "namespace": "a", "uid": "u", "labels": {"pod-template-hash": "abc"},
    "annotations": {"testcni.io/ip": "10.244.1.7", "testcni.io/sticky": "false", "testcni.io/pool": "p1"},
    "ownerReferences": [{"kind": "ReplicaSet", "name": "web-abc", "controller": True}],
}}  # fmt: skip
YAML = b"""apiVersion: v1
kind: Node
metadata:
  name: n2
  labels: {rack: 'a'}
  creationTimestamp: 2026-01-31T12:00:00Z
spec:
  podCIDRs:
  - 10.244.3.0/24
status:
  addresses:
  - type: InternalIP
    address: 192.0.2.2
---
apiVersion: testcni.io/v1
kind: IPPool
metadata: {name: p2}
spec: {cidr: 10.244.128.0/17, blockSize: 26}
---
apiVersion: v1
kind: NodeList
items:
- metadata: {name: n3}
- metadata: {name: n4}
"""
LOCAL = (
    LocalAddress("eth0", 1500, ipaddress.ip_interface("192.0.2.1/24")),
    LocalAddress("eth0", 1500, ipaddress.ip_interface("2001:db8::1/64")),
)
NETWORKS = tuple(
    parse_conf({"cniVersion": "1.1.0", "name": "net", "type": "testcni", "mode": name, **more}).network
    for name, more in (("host-gw", {}), ("vxlan", {}), ("ipip", {}), ("macvlan", {"subnet": "192.0.2.0/24"}))
)


def check_all(snapshot_cache: SnapshotCache) -> None:
    """The good objects are there, and every mode knows what to do with what is beside them."""
    snapshot = snapshot_cache.snapshot.get()
    assert (snapshot.synced, "n1" in snapshot.nodes, "p1" in snapshot.pools) == (True, True, True)
    assert "10-244-2-0-24" in snapshot.blocks
    assert "10-244-1-7" in snapshot.reservations
    for problem in (*snapshot_cache.problems.get().values(), *snapshot_cache.invalid.get().values()):
        str(problem).encode()
    with fresh() as place:
        known = LastKnownNodes("n1", place / "nodes.json").look(snapshot)
        LastKnownNodes("n1", place / "nodes.json").look(Snapshot(synced=True))
    whole = Snapshot(True, known.nodes, snapshot.pools, snapshot.blocks, snapshot.reservations)
    union(BUILT_IN[network.mode].desired(view_of(whole, network)) for network in NETWORKS)
    check_pods(snapshot)


def view_of(snapshot: Snapshot, network: Network) -> ModeContext:
    own = blocks.node_blocks(snapshot, network, "n1")
    return ModeContext(
        snapshot, "n1", LOCAL, network, own, claims=block_ownership.resolve(snapshot), routed=BUILT_IN.routed
    )


def check_pods(snapshot: Snapshot) -> None:
    """What becomes of blocks and reservations."""
    now, here = datetime.now(UTC), LocalPods("n1", {}, frozenset(), frozenset())
    [*reservation_problems.misplaced(snapshot, NETWORKS, "n1")]
    [*reservation_rules.steps(snapshot, here, now, timedelta(seconds=3600))]
    [*reservation_rules.lost(snapshot, here, now)]
    for network in NETWORKS:
        own = blocks.node_blocks(snapshot, network, "n1")
        blocks.excluded(snapshot, network, "n1", own)
        next(free_blocks.candidates(snapshot, network, "n1"), None)
        [*reservation_rules.roaming(snapshot, network, "n1")]


NO_WAITS = informer.WatchTimes(first_wait=0.0, longest_wait=0.0)


def a_file() -> st.SearchStrategy[tuple[str, bytes]]:
    seeds = [dumped(doc) for doc in OTHERS.values()]
    listed = dumped({"apiVersion": "v1", "kind": "List", "items": [*OTHERS.values()]})
    return st.tuples(st.sampled_from(["yaml", "json"]), texts(*seeds, YAML, listed))


@fuzz(40)
@given(
    earlier=st.lists(a_file(), max_size=2), later=st.lists(a_file(), max_size=2), said=texts(b"net=vxlan,ipip\n")
)
def test_good_manifests_are_in_force_among_bad_ones(
    earlier: list[tuple[str, bytes]], later: list[tuple[str, bytes]], said: bytes
) -> None:
    """The files are looked at, changed, and looked at again."""
    with fresh() as place:
        (place / "0.json").write_bytes(dumped({"apiVersion": "v1", "kind": "List", "items": [*GOOD.values()]}))
        (place / "n2.receives").write_bytes(said)
        store = DirectoryStore(place)
        snapshot_cache = SnapshotCache(store)
        before = directory_contents.Contents()
        for files in (earlier, later):
            for number, (suffix, data) in enumerate(files, 1):
                (place / f"{number}.{suffix}").write_bytes(data)
            seen = store._scan()
            snapshot_cache.deliver([*directory_contents.changes_between(before, seen)])
            before = seen
            check_all(snapshot_cache)


class Played(Api):
    """An API server whose answers are given: pages of a list, and lines of a watch."""

    def __init__(self, pages: Sequence[bytes], watches: Sequence[bytes] = ()) -> None:
        super().__init__(lambda: pytest.fail("nobody connects"))
        self._pages, self._watches = iter(pages), iter(watches)
        self.over = threading.Event()

    def _open(self, request: Request, within: float) -> urllib3.BaseHTTPResponse:  # noqa: ARG002 - as it is called
        body = next(self._watches, None) if "watch" in request.query else next(self._pages)
        if body is None:
            self.over.set()
            raise ApiError("it is over")
        return urllib3.HTTPResponse(io.BytesIO(body), status=200, preload_content=False)


def a_page(kind: Kind) -> st.SearchStrategy[bytes]:
    return texts(dumped({"metadata": {"resourceVersion": "9"}, "items": [OTHERS[kind], GOOD[kind]]}))


def events(kind: Kind) -> st.SearchStrategy[list[bytes]]:
    names = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR")
    return st.lists(texts(*(dumped({"type": name, "object": OTHERS[kind]}) for name in names)), max_size=3)


def follow(snapshot_cache: SnapshotCache, kind: Kind, pages: list[bytes], lines: list[bytes]) -> None:
    """Follow one kind by the watch's own loop; its good object comes by an event, after hostile ones."""
    empty = dumped({"metadata": {"resourceVersion": "9"}, "items": []})
    last = dumped({"type": "MODIFIED", "object": GOOD[kind]}) + b"\n"
    hostile = b"".join(line + b"\n" for line in lines)
    server = Played([*pages, *[empty] * 9], [hostile, hostile + last, last])
    informer.Informer(server, kind, times=NO_WAITS).run(snapshot_cache.deliver, server.over)


@fuzz(60)
@given(data=st.data())
def test_good_objects_arrive_among_bad_ones_of_an_api_server(data: st.DataObject) -> None:
    snapshot_cache = SnapshotCache(KubernetesStore(Api(lambda: pytest.fail("nobody connects"))))
    hostile = data.draw(st.sampled_from(KINDS))
    for kind in KINDS:
        pages = [data.draw(a_page(kind))] if kind == hostile else []
        follow(snapshot_cache, kind, pages, data.draw(events(kind)) if kind == hostile else [])
    check_all(snapshot_cache)


@fuzz(60)
@given(pod=texts(dumped(POD)), namespace=texts(dumped({"metadata": {"name": "a", "annotations": {}}})))
def test_annotations_are_taken_or_refused(pod: bytes, namespace: bytes) -> None:
    store = KubernetesStore(Played([pod, namespace]))
    with contextlib.suppress(CniError):
        AnnotationReader(store).read(PodIdentity("a/web-abc-1"))
