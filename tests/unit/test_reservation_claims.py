"""The pod path's and the node path's parts of addresses that stay, on a real datastore in a folder."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kinds import Kind
from agent.cluster.objects import to_doc
from agent.cluster.snapshot_cache import SnapshotCache
from agent.cluster.store import Datastore, StoreError
from agent.codec.cni_args import PodIdentity
from agent.errors import CniError, Code
from agent.ipam.allocator import UnavailableError, usable
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.reservations import controller as reservation_controller
from agent.ipam.reservations.claimant import ClaimContext, TakenError
from agent.ipam.reservations.claims import PodReservations, ReservationClaims
from agent.ipam.reservations.controller import ControllerInputs, ReservationController
from agent.model.cluster import IPBlock, IPPool, IPReservation, Node, ObjectMetadata, Resource
from agent.model.node_status import NodeStatus, PodEvent, ReservationsInProgress
from agent.runtime.deadline import Deadline
from agent.runtime.observable import Observable
from tests.networks import OPTIONS, network_of
from tests.support import eventually, ip
from tests.unit.folders import QUICK

NET = network_of("testcni", subnet=ipaddress.ip_network("10.244.0.0/16"))
BLOCKS = {"one": ipaddress.ip_network("10.244.1.0/24"), "two": ipaddress.ip_network("10.244.2.0/24")}
NODES = [Node(name, (), (block,)) for name, block in BLOCKS.items()]


class Store(DirectoryStore):
    """A folder that can be away."""

    away = False

    def get(self, kind: Kind, name: str) -> Resource:
        self._there()
        return super().get(kind, name)

    def list(self, kind: Kind) -> tuple[Resource, ...]:
        self._there()
        return super().list(kind)

    def create(self, obj: Resource) -> Resource:
        self._there()
        return super().create(obj)

    def update(self, obj: Resource) -> Resource:
        self._there()
        return super().update(obj)

    def _there(self) -> None:
        if self.away:
            raise StoreError("HTTP 503: away")


class Agent:
    """What of an agent concerns addresses that stay; its kernel knows everything at once."""

    def __init__(
        self, node: str, store: Datastore, run: Path, keep: float = 3600, granted_within: float = 60
    ) -> None:
        self.node = node
        self.store = store
        self.told: list[PodEvent] = []
        self.attachments = AttachmentStore(run / node, 0, OPTIONS)
        self.attachments.load()
        earlier = reservation_controller.load(run / node / "reservations.json")
        self.snapshot_cache = SnapshotCache(self.store, earlier)
        self.status = Observable(NodeStatus(synced=True))
        busy: Observable[ReservationsInProgress] = Observable(frozenset())
        kept = ControllerInputs(
            self.snapshot_cache.snapshot, busy, self.attachments, run / node / "reservations.json"
        )
        self.controller = ReservationController(self.store, node, kept, keep)
        self.attachments.listen(self._program)
        self.context = ClaimContext(
            node, self.snapshot_cache.snapshot, self.status, busy, self.told.append, granted_within
        )
        self.claims = ReservationClaims(self.store, self.context, keep)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, args=(self._stop,)) for run in (self.snapshot_cache.run,)]

    def start(self, *, keeping: bool = True) -> Agent:
        if keeping:
            self._threads.append(threading.Thread(target=self.controller.run, args=(self._stop,)))
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self.snapshot_cache.snapshot.update(lambda s: replace(s, synced=not s.synced))
        for thread in self._threads:
            thread.join()

    def _program(self) -> None:
        off_block = frozenset(alone for pod in self.attachments.all() for alone in pod.off_block)
        self.status.publish(NodeStatus(synced=True, off_block_pods=off_block))

    def add(self, pod: str, container: str = "") -> Attachment:
        own = [usable(BLOCKS[self.node])]
        wanted = Attachment(container or pod, "eth0", NET, "", f"default/{pod}", (), "")
        annotations = self.claims.annotations(PodIdentity(f"default/{pod}"), NET, Deadline.after(28))
        if annotations is None:
            return self.attachments.take(wanted, own)
        with self.claims.reserved(annotations, NET, own, Deadline.after(28)) as found:
            made = self.attachments.take(replace(wanted, owner=found.owner), [*own, *found.off_block], found.asked)
            self._confirm(found, made)
        self.attachments.finish(made, {})
        return made

    def _confirm(self, reservations: PodReservations, made: Attachment) -> None:
        try:
            self.claims.confirm(reservations, made)
        except CniError:
            self.attachments.remove(made)
            raise

    def known(self) -> Mapping[str, IPReservation]:
        return self.snapshot_cache.snapshot.get().reservations

    def held(self, name: str = "10-244-1-2") -> IPReservation:
        """The reservation, once the watch has told of it."""
        eventually(lambda: name in self.known())
        return self.known()[name]


class Cluster:
    """A folder of objects, and agents."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.folder, self.run = path / "cluster", path / "run"
        self.folder.mkdir()
        self.store = Store(self.folder, QUICK)
        self._stack = stack
        for node in NODES:
            self.put(node)

    def put(self, obj: Resource) -> None:
        name = f"{type(obj).__name__}-{obj.name}".replace("/", "-").lower()
        (self.folder / f"{name}.json").write_text(json.dumps(to_doc(obj)))

    def pod(self, name: str, controller: str = "", **annotations: str) -> None:
        named = tuple((f"testcni.io/{key}", value) for key, value in annotations.items())
        self.put(ObjectMetadata("Pod", f"default/{name}", "", named, controller))

    def agent(self, node: str, *, keep: float = 3600, keeping: bool = True, granted_within: float = 60) -> Agent:
        agent = Agent(node, self.store, self.run, keep, granted_within).start(keeping=keeping)
        self._stack.callback(agent.stop)
        eventually(lambda: agent.snapshot_cache.snapshot.get().synced)
        return agent


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


def address(made: Attachment) -> str:
    return str(made.leases[0].address)


def test_an_ordinary_pod_reserves_nothing(cluster: Cluster) -> None:
    one = cluster.agent("one")
    cluster.pod("plain")
    assert address(one.add("plain")) == "10.244.1.2"
    assert not one.known()


def test_a_sticky_pod_comes_back_to_its_address_on_any_node(cluster: Cluster) -> None:
    one, two = cluster.agent("one"), cluster.agent("two")
    cluster.pod("web-0", "StatefulSet/web", sticky="true")
    first = one.add("web-0")
    assert first.reserved == (ip("10.244.1.2"),)
    assert not first.off_block
    one.attachments.remove(first)
    eventually(lambda: one.held().released)
    for agent in (two, one, two):
        again = agent.add("web-0")
        assert address(again) == "10.244.1.2"
        assert bool(again.off_block) == (agent is two)
        agent.attachments.remove(again)
    assert one.told + two.told == []


def test_a_pod_that_moves_without_a_word_takes_its_address_over(cluster: Cluster) -> None:
    one, two = cluster.agent("one"), cluster.agent("two")
    cluster.pod("web-0", sticky="true")
    first = one.add("web-0")
    assert address(two.add("web-0")) == address(first)
    eventually(lambda: one.held().node == "two")
    one.attachments.remove(first)  # the old node comes back
    time.sleep(0.2)
    assert one.held().in_use


def test_nobody_is_given_a_reserved_address(cluster: Cluster) -> None:
    one = cluster.agent("one")
    cluster.pod("web-0", sticky="true")
    one.attachments.remove(one.add("web-0"))
    eventually(lambda: one.held().released)
    assert address(one.add("plain")) == "10.244.1.3"
    wanted = Attachment("asks", "eth0", NET, "", "", (), "")
    with pytest.raises(UnavailableError, match=r"10.244.1.2 is reserved"):
        one.attachments.take(wanted, [usable(BLOCKS["one"])], [ip("10.244.1.2")])


def test_the_second_claim_is_refused_and_told_to_the_pod(cluster: Cluster) -> None:
    one, two = cluster.agent("one"), cluster.agent("two")
    for name in ("a", "b"):
        cluster.pod(name, ip="10.244.1.7")
    one.add("a")
    one.held("10-244-1-7")
    for agent in (two, one):
        with pytest.raises(TakenError, match=r"10.244.1.7 is reserved for default/a: pod default/a on node one"):
            agent.add("b")
        (pod_event,) = agent.told
        assert (pod_event.pod, pod_event.reason) == ("default/b", "AddressNotGiven")
        assert "10.244.1.7 is reserved" in pod_event.message
    assert one.held("10-244-1-7").pod == "default/a"


def test_two_claims_at_once_have_one_winner(cluster: Cluster) -> None:
    agents = [cluster.agent("one"), cluster.agent("two")]
    for name in ("a", "b"):
        cluster.pod(name, ip="10.244.200.7")
    results: list[object] = []

    def claim(agent: Agent, name: str) -> None:
        try:
            results.append(address(agent.add(name)))
        except TakenError as error:
            results.append(error.code)

    threads = [threading.Thread(target=claim, args=pair) for pair in zip(agents, ("a", "b"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == ["10.244.200.7", "102"]


def test_the_blocks_node_agrees_or_says_why_not(cluster: Cluster) -> None:
    one, two = cluster.agent("one"), cluster.agent("two")
    plain = one.add("plain")
    cluster.pod("far", ip=address(plain))
    with pytest.raises(TakenError, match="in a block of node one, and pod default/plain on node one has it"):
        two.add("far")
    eventually(lambda: not two.known())
    one.attachments.remove(plain)
    assert two.add("far").off_block == (ipaddress.ip_network("10.244.1.2/32"),)
    assert address(one.add("next")) == "10.244.1.3"


def test_a_node_that_does_not_answer_makes_the_add_try_again(cluster: Cluster) -> None:
    two = cluster.agent("two", granted_within=0.3)
    cluster.pod("far", ip="10.244.1.9")
    with pytest.raises(CniError, match="node one, which has not agreed") as caught:
        two.add("far")
    assert caught.value.code == 11
    eventually(lambda: not two.known())
    assert not two.attachments.all()


def test_what_a_crash_left_is_released_by_the_next_agent(cluster: Cluster) -> None:
    one = cluster.agent("one", keeping=False)
    cluster.pod("web-0", sticky="true")
    one.attachments.remove(one.add("web-0"))  # and the agent dies before it could say so
    assert one.held().in_use
    again = cluster.agent("one")
    eventually(lambda: again.held().released)


def test_reservations_are_known_before_the_datastore_has_told(cluster: Cluster) -> None:
    one = cluster.agent("one")
    cluster.pod("web-0", sticky="true")
    one.attachments.remove(one.add("web-0"))
    eventually(lambda: reservation_controller.load(cluster.run / "one/reservations.json"))
    early = Agent("one", cluster.store, cluster.run)
    own = [usable(BLOCKS["one"])]
    made = early.attachments.take(Attachment("x", "eth0", NET, "", "", (), ""), own, ())
    assert address(made) == "10.244.1.3"
    (cluster.run / "one/reservations.json").write_text("[{]")
    assert reservation_controller.load(cluster.run / "one/reservations.json") == {}


def test_while_the_datastore_is_away_a_pod_starts_again_where_it_was(cluster: Cluster) -> None:
    one = cluster.agent("one")
    cluster.pod("web-0", sticky="true")
    cluster.pod("web-1", sticky="true")
    first = one.add("web-0")
    eventually(one.known)
    cluster.store.away = True
    one.attachments.remove(first)
    assert address(one.add("web-0", "sandbox-2")) == address(first)
    with pytest.raises(CniError, match="annotations of pod default/web-1 can't be read") as caught:
        one.add("web-1")
    assert caught.value.code == 11
    cluster.store.away = False
    one.controller.wake()
    eventually(lambda: not one.controller.problems.get())
    assert one.held().in_use


def test_an_agent_that_has_not_read_all_yet_claims_nothing_new(cluster: Cluster) -> None:
    one = cluster.agent("one")
    cluster.pod("web-0", sticky="true")
    cluster.pod("new", ip="10.244.2.9")
    first = one.add("web-0")
    eventually(lambda: reservation_controller.load(cluster.run / "one/reservations.json"))
    one.attachments.remove(first)
    early = Agent("one", cluster.store, cluster.run)
    with pytest.raises(CniError, match="has not been read completely") as caught:
        early.add("new")
    assert caught.value.code == 11
    assert address(early.add("web-0")) == address(first)


def test_a_reservation_outlives_its_pod_for_its_time(cluster: Cluster) -> None:
    one = cluster.agent("one", keep=2)
    cluster.pod("a", ip="10.244.1.7")
    one.attachments.remove(one.add("a"))
    eventually(lambda: one.held("10-244-1-7").released)
    eventually(lambda: one.controller.wake() or not one.known())  # type: ignore[func-returns-value]


def test_a_deleted_reservation_of_a_pod_is_made_again(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    one = cluster.agent("one")
    cluster.pod("a", ip="10.244.1.7")
    one.add("a")
    eventually(one.known)
    one.store.delete("IPReservation", "10-244-1-7")
    eventually(lambda: "reservation of 10.244.1.7 was deleted" in caplog.text)
    eventually(one.known)
    assert one.held("10-244-1-7").owner == "default/a"


@pytest.mark.parametrize(
    ("asked", "code"),
    [("192.0.2.7", 7), ("10.244.2.1", 102), ("10.244.2.255", 102), ("10.244.0.0", 102), ("10.244.255.255", 102)],
)
def test_addresses_that_no_pod_may_have(cluster: Cluster, asked: str, code: int) -> None:
    one = cluster.agent("one")
    cluster.pod("a", ip=asked)
    with pytest.raises(CniError) as caught:
        one.add("a")
    assert (caught.value.code, bool(caught.value.details)) == (code, True)
    assert not one.known()
    assert len(one.told) == 1


@pytest.mark.parametrize("answers", [True, False])
def test_who_claims_the_block_at_the_same_moment_has_to_agree(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *, answers: bool
) -> None:
    two = cluster.agent("two", granted_within=60 if answers else 0.3)
    if answers:
        cluster.agent("one")
    cluster.pod("a", ip="10.244.200.7")
    create = cluster.store.create

    def quicker(obj: Resource) -> Resource:
        create(IPBlock(ipaddress.ip_network("10.244.200.0/26"), "one", "pods"))
        return create(obj)

    monkeypatch.setattr(cluster.store, "create", quicker)
    if answers:
        assert address(two.add("a")) == "10.244.200.7"
        return
    with pytest.raises(CniError, match=r"lies in a block of node one, which has not agreed"):
        two.add("a")
    eventually(lambda: not two.known())


PODS = IPPool("pods", ipaddress.ip_network("10.244.0.0/16"), 26)


BY_POOL = [(asked, True) for asked in ("10.244.3.0", "10.244.3.1", "10.244.3.63", "10.244.3.64", "10.244.3.129")]
BY_NETCONF = [(asked, False) for asked in ("10.244.3.0", "10.244.3.1", "10.244.3.255")]


@pytest.mark.parametrize(("asked", "pool"), [*BY_POOL, *BY_NETCONF])
def test_no_pod_gets_the_gateway_of_a_block_that_a_node_may_claim(
    cluster: Cluster, asked: str, *, pool: bool
) -> None:
    if pool:
        cluster.put(PODS)
    one = cluster.agent("one")
    cluster.pod("web", ip=asked)
    with pytest.raises(CniError, match="no address for pods: a network, gateway or broadcast address") as caught:
        one.add("web")
    assert caught.value.code == Code.ADDRESSES
    assert not one.known()
    assert asked in one.told[0].message
    cluster.pod("fine", ip="10.244.3.9")
    assert address(one.add("fine")) == "10.244.3.9"


@pytest.mark.parametrize("pool", [True, False])
def test_an_address_that_is_a_nodes_own_is_said_to_be_that(cluster: Cluster, *, pool: bool) -> None:
    """Whether or not it would be the gateway of a block that a node may claim."""
    if pool:
        cluster.put(PODS)
    cluster.put(Node("three", (ip("10.244.3.65"),), (ipaddress.ip_network("10.245.3.0/24"),)))
    one = cluster.agent("one")
    cluster.pod("web", ip="10.244.3.65")
    with pytest.raises(CniError, match="it is the InternalIP of node three") as caught:
        one.add("web")
    assert caught.value.code == Code.ADDRESSES
    assert not one.known()


@pytest.mark.parametrize("how", [{"ip": "10.244.3.9"}, {"ip": "10.244.1.9"}, {"sticky": "true"}, {"pool": "pods"}])
def test_a_pod_of_another_namespace_is_refused_with_pool_and_namespace(
    cluster: Cluster, how: dict[str, str]
) -> None:
    cluster.put(replace(PODS, namespaces=("shop",)))
    one = cluster.agent("one")
    cluster.pod("web", **how)
    with pytest.raises(CniError, match="namespace default may not ask for addresses of IPPool pods") as caught:
        one.add("web")
    assert "shop" in str(caught.value)
    assert "IPPool pods" in one.told[0].message
    assert not one.known()
    cluster.pod("plain")
    assert one.add("plain")
    cluster.put(replace(PODS, namespaces=("default",)))
    eventually(lambda: one.snapshot_cache.snapshot.get().pools["pods"].namespaces == ("default",))
    assert one.add("web")


def test_a_namespace_with_as_many_reservations_as_it_may_have_gets_no_more(cluster: Cluster) -> None:
    one = cluster.agent("one")
    one.claims = ReservationClaims(one.store, one.context, 3600, quota=3)
    for number in range(3):
        cluster.pod(f"web-{number}", ip=f"10.244.1.{20 + number}")
        one.attachments.remove(one.add(f"web-{number}"))
        one.held(f"10-244-1-{20 + number}")
    cluster.pod("late", sticky="true")
    with pytest.raises(CniError, match="namespace default has 3 reserved addresses, and may have 3") as caught:
        one.add("late")
    assert caught.value.code == Code.ADDRESSES
    assert len(one.known()) == 3
    assert address(one.add("web-1")) == "10.244.1.21", "its owner comes back to its own"
