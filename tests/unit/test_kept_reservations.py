"""Addresses that an owner comes back to whatever became of their block, and those that a person reserved ahead."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.cluster import objects
from agent.cluster.object_fields import ObjectError
from agent.errors import CniError
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.reservations.claimant import TakenError
from agent.ipam.reservations.problems import useless
from agent.ipam.reservations.rules import (
    Claim,
    Delete,
    LocalPods,
    RefusedError,
    Update,
    claimed,
    of_owner,
    steps,
)
from agent.model.cluster import ALWAYS_KEPT, IPPool, IPReservation, Node, Snapshot
from tests.networks import network_of
from tests.support import eventually, ip
from tests.unit import test_reservation_claims
from tests.unit.test_reservation_claims import BLOCKS, Cluster

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
KEEP = timedelta(hours=1)
NO_SUBNET = network_of("testcni")
FAR = "10.99.0.7"
GONE = ipaddress.ip_network("10.99.0.0/24")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network without a subnet, as the manifests have it."""
    monkeypatch.setattr(test_reservation_claims, "NET", NO_SUBNET)


def kept(text: str = FAR, name: str = "web-0", **more: Any) -> IPReservation:
    now = datetime.now(UTC)  # it is kept for an hour
    made = IPReservation(ip(text), f"default/{name}", f"default/{name}", "gone", "testcni", now, released=now)
    return replace(made, **more)


def ahead(text: str, owner: str, **more: Any) -> IPReservation:
    return IPReservation(ip(text), owner, **more)


def address(made: Attachment) -> str:
    return str(made.leases[0].address)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("annotations", [{"sticky": "true"}, {"ip": FAR}])
@pytest.mark.parametrize("pool", [False, True])
def test_an_address_in_nobodys_block_stays_its_owners(
    cluster: Cluster, annotations: dict[str, str], *, pool: bool
) -> None:
    """Its Node was made anew, or the cluster was scaled down; there may be pools elsewhere."""
    cluster.put(kept())
    if pool:
        cluster.put(IPPool("other", ipaddress.ip_network("10.77.0.0/16"), 24))
    one, two = cluster.agent("one"), cluster.agent("two")
    cluster.pod("web-0", "StatefulSet/web", **annotations)
    for agent in (one, two):
        agent.held("10-99-0-7")
        made = agent.add("web-0")
        assert (address(made), made.off_block) == (FAR, (ipaddress.ip_network(f"{FAR}/32"),))
        eventually(lambda agent=agent: agent.held("10-99-0-7").node == agent.node)
        agent.attachments.remove(made)
        eventually(lambda agent=agent: agent.held("10-99-0-7").released)
    assert one.told + two.told == []


@pytest.mark.usefixtures("anywhere")
def test_an_address_that_nobody_reserved_must_be_somewhere(cluster: Cluster) -> None:
    one = cluster.agent("one")
    cluster.pod("web-0", ip=FAR)
    with pytest.raises(CniError) as caught:
        one.add("web-0")
    assert caught.value.code == 7
    cluster.put(kept(name="other"))
    one.held("10-99-0-7")
    with pytest.raises(CniError) as caught:
        one.add("web-0")
    assert caught.value.code == 7


EXCLUDING = IPPool(
    "pods", ipaddress.ip_network("10.244.0.0/16"), 24, exclude=(ipaddress.ip_network("10.244.1.9/32"),)
)


@pytest.mark.parametrize(
    ("held", "pool", "why"),
    [
        (kept(), None, "not allowed"),
        (kept("10.244.1.9"), EXCLUDING, "no address for pods"),
        (kept("10.244.1.1"), None, "no address for pods"),
        (kept("10.244.9.1"), replace(EXCLUDING, exclude=()), "of a possible block"),
    ],
)
def test_what_can_not_be_kept_is_refused_and_never_silently_another(
    cluster: Cluster, held: IPReservation, pool: IPPool | None, why: str
) -> None:
    cluster.put(held)
    if pool:
        cluster.put(pool)
    one = cluster.agent("one")
    one.held(held.name)
    cluster.pod("web-0", "StatefulSet/web", sticky="true")
    with pytest.raises(CniError) as caught:
        one.add("web-0")
    error = caught.value
    assert (error.code, why in error.msg) == (102, True), error
    assert f"{held.address} is reserved for default/web-0 and can't be assigned any more" in error.msg
    assert error.details == f"kubectl delete ipreservation {held.name}, and the pod gets another address"
    assert [(told.pod, error.details in told.message) for told in one.told] == [("default/web-0", True)]
    assert not one.attachments.all()
    cluster.store.delete("IPReservation", held.name)
    eventually(lambda: held.name not in one.known())
    assert address(one.add("web-0")) == "10.244.1.2"


def test_an_address_that_is_reserved_ahead_is_for_its_pod_only(cluster: Cluster) -> None:
    """On the node of its block and on another; without any annotation; until a person deletes it."""
    cluster.put(ahead("10.244.1.2", "default/db"))
    one, two = cluster.agent("one", keep=0), cluster.agent("two", keep=0)
    for agent in (one, two):
        assert agent.held().ahead
    cluster.pod("plain")
    assert address(one.add("plain")) == "10.244.1.3"
    cluster.pod("greedy", ip="10.244.1.2")
    with pytest.raises(TakenError, match=r"10.244.1.2 is reserved for default/db by a person") as caught:
        two.add("greedy")
    assert "kubectl delete ipreservation 10-244-1-2" in str(caught.value)
    cluster.pod("db")
    for agent in (one, two, one):
        made = agent.add("db", f"at-{agent.node}")
        assert address(made) == "10.244.1.2"
        eventually(lambda agent=agent: agent.held().node == agent.node and agent.held().in_use)
        assert agent.held().keep == ALWAYS_KEPT
        agent.attachments.remove(made)
        eventually(lambda agent=agent: agent.held().released)
        agent.controller.once()
        assert agent.held().released, "it is never over"
    with pytest.raises(TakenError, match="by a person"):
        two.add("greedy")


def test_a_node_whose_pod_has_it_already_has_to_agree(cluster: Cluster) -> None:
    one, two = cluster.agent("one"), cluster.agent("two")
    cluster.pod("plain")
    plain = one.add("plain")
    cluster.put(ahead(address(plain), "default/db"))
    two.held()
    cluster.pod("db")
    with pytest.raises(TakenError, match="in a block of node one, and pod default/plain on node one has it"):
        two.add("db")
    eventually(lambda: two.held().released)
    told = "reserved for default/db, but pod default/plain"
    eventually(lambda: one.controller.once() and told in str(one.controller.problems.get()))
    one.attachments.remove(plain)
    eventually(lambda: two.held().asks)
    assert address(two.add("db")) == "10.244.1.2"


def test_a_deployment_has_as_many_pods_as_addresses_are_reserved_for_it(cluster: Cluster) -> None:
    for text in ("10.244.1.9", "10.244.2.9"):
        cluster.put(ahead(text, "default/ReplicaSet/web"))
    one = cluster.agent("one")
    cluster.agent("two")
    for text in ("10-244-1-9", "10-244-2-9"):
        one.held(text)
    for name in "abc":
        cluster.pod(name, "ReplicaSet/web")
    first = one.add("a")
    assert address(first) == "10.244.1.9"
    eventually(lambda: one.held("10-244-1-9").in_use)
    assert address(one.add("b")) == "10.244.2.9"
    eventually(lambda: one.held("10-244-2-9").in_use)
    with pytest.raises(
        TakenError, match="is reserved for default/ReplicaSet/web: pod default/a on node one has it"
    ):
        one.add("c")
    one.attachments.remove(first)
    eventually(lambda: one.held("10-244-1-9").released)
    assert address(one.add("c")) == "10.244.1.9"


def test_the_address_of_a_pod_that_runs_can_be_reserved_for_it(cluster: Cluster) -> None:
    one = cluster.agent("one")
    cluster.pod("db")
    made = one.add("db")
    cluster.put(ahead(address(made), "default/db"))
    eventually(lambda: one.held().in_use)
    assert one.held().keep == ALWAYS_KEPT
    one.attachments.remove(made)
    eventually(lambda: one.held().released)
    again = one.add("db", "again")
    assert (address(again), again.owner) == ("10.244.1.2", "default/db")
    one.controller.once()
    assert not one.controller.problems.get()


def test_what_a_person_reserved_comes_before_what_the_pod_had(cluster: Cluster) -> None:
    cluster.put(kept("10.244.1.5", "db"))
    cluster.put(ahead("10.244.1.9", "default/db"))
    one = cluster.agent("one")
    one.held("10-244-1-5")
    one.held("10-244-1-9")
    cluster.pod("db", sticky="true")
    assert address(one.add("db")) == "10.244.1.9"


def test_one_for_another_network_of_the_pod_is_left_alone(cluster: Cluster) -> None:
    cluster.put(ahead("192.0.2.7", "default/db"))
    cluster.put(ahead("10.244.1.9", "default/db", network="lan"))
    one = cluster.agent("one")
    one.held("192-0-2-7")
    one.held("10-244-1-9")
    cluster.pod("db")
    made = one.add("db")
    assert (address(made), made.owner) == ("10.244.1.2", "")
    assert all(held.ahead for held in one.known().values()), "it has not asked for an address that stays"


HELD = ahead("10.244.1.7", "default/db", resource_version="7")
CLAIM = Claim(ip("10.244.1.7"), "default/db", "default/db", "one", "testcni")


def world(*held: IPReservation, pools: tuple[IPPool, ...] = ()) -> Snapshot:
    nodes = {name: Node(name, (), (block,)) for name, block in BLOCKS.items()}
    return Snapshot(True, nodes, {p.name: p for p in pools}, reservations={one.name: one for one in held})


def test_who_takes_what_is_reserved_ahead() -> None:
    made = claimed(HELD, CLAIM, "two", NOW, KEEP)
    assert (made.pod, made.node, made.network, made.since, made.asks) == (
        "default/db",
        "one",
        "testcni",
        NOW,
        "two",
    )
    assert (made.keep, made.resource_version) == (ALWAYS_KEPT, "7")
    with pytest.raises(RefusedError, match="on network lan by a person"):
        claimed(replace(HELD, network="lan"), CLAIM, "", NOW, KEEP)
    over = replace(made, asks="", released=NOW)
    with pytest.raises(RefusedError, match="by a person"):
        claimed(over, replace(CLAIM, owner="a/b", pod="a/b"), "", NOW + 9 * KEEP, KEEP)


def test_no_agent_releases_or_deletes_what_a_person_reserved() -> None:
    for node in ("one", "two"):
        assert not list(steps(world(HELD), LocalPods(node), NOW, KEEP))
    failed = replace(
        HELD, pod="default/db", node="one", network="testcni", since=NOW, asks="two", keep=ALWAYS_KEPT
    )
    (step,) = steps(world(failed), LocalPods("one"), NOW, KEEP)
    assert step == Update(replace(failed, released=NOW))
    assert not any(
        isinstance(s, Delete) for s in steps(world(step.reservation), LocalPods("one"), NOW + 9 * KEEP, KEEP)
    )
    assert of_owner([step.reservation], "default/db", "testcni") == [step.reservation]


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (ahead("10.244.1.7", "db"), "owner 'db' is neither namespace/pod nor"),
        (ahead("10.244.1.7", "default/a/b/c"), "is neither"),
        (ahead("10.244.1.7", "default/"), "is neither"),
        (ahead("192.0.2.7", "default/db"), "192.0.2.7 is in no IPPool, no node's block and no network's subnet"),
        (ahead("fd00::7", "default/db"), "only IPv4"),
        (ahead("10.99.0.9", "default/db"), "IPPool pods leaves 10.99.0.9 out"),
        (ahead("10.99.0.1", "default/db"), "IPPool pods leaves 10.99.0.1 out"),
    ],
)
def test_what_is_of_no_use_is_told_by_one_node(held: IPReservation, words: str) -> None:
    pools = (IPPool("pods", GONE, 24, start=ip("10.99.0.2"), exclude=(ipaddress.ip_network("10.99.0.9/32"),)),)
    found = {node: list(useless(world(held, pools=pools), [NO_SUBNET], node)) for node in ("one", "two")}
    assert [len(problems) for problems in found.values()] == [1, 0]
    (problem,) = found["one"]
    assert (problem.where, words in problem.what) == (f"IPReservation {held.name}", True), problem
    fine = (HELD, ahead("10.99.0.7", "default/Deployment/web"), ahead("10.99.0.8", "default/Deployment/web"))
    assert not list(useless(world(*fine, pools=pools), [NO_SUBNET], "one"))


def test_two_for_one_pod_are_told() -> None:
    (problem,) = useless(world(HELD, ahead("10.244.1.8", "default/db")), [NO_SUBNET], "one")
    assert problem.where == "IPReservation 10-244-1-8"
    assert "pod default/db has 10.244.1.7 reserved, too" in problem.what


def test_the_one_that_the_pod_gets_is_not_the_one_to_delete() -> None:
    """It gets the lower number, though its name sorts after the other's."""
    higher = ahead("10.244.1.12", "default/db")
    assert of_owner([higher, HELD], "default/db", "testcni")[0] == HELD
    (problem,) = useless(world(HELD, higher), [NO_SUBNET], "one")
    assert problem.where == "IPReservation 10-244-1-12"
    assert "has 10.244.1.7 reserved, too, and gets only that one" in problem.what


@pytest.mark.parametrize("released", [None, NOW])
def test_a_second_one_is_told_also_when_the_pod_has_the_first(released: datetime | None) -> None:
    has = replace(
        HELD, pod="default/db", node="one", network="testcni", since=NOW, keep=ALWAYS_KEPT, released=released
    )
    for second in (ahead("10.244.1.2", "default/db"), ahead("10.244.1.8", "default/db", network="testcni")):
        (problem,) = useless(world(has, second), [NO_SUBNET], "one")
        assert problem.where == f"IPReservation {second.name}"
        assert "has 10.244.1.7 reserved, too, and gets only that one" in problem.what
    other = ahead("10.244.1.8", "default/db", network="lan")
    unnamed = ahead("10.244.1.8", "default/db")
    assert not list(useless(world(has, other), [NO_SUBNET], "one"))
    assert not list(useless(world(has, unnamed), [NO_SUBNET, network_of("lan")], "one")), "it may be for the other"
    assert not list(useless(world(has, ahead("10.244.1.8", "default/web")), [NO_SUBNET], "one"))


def test_as_a_person_writes_it() -> None:
    spec: dict[str, Any] = {"address": "10.244.1.7", "owner": "default/db"}
    doc = {
        "apiVersion": "testcni.io/v1",
        "kind": "IPReservation",
        "metadata": {"name": "10-244-1-7"},
        "spec": spec,
    }
    found = objects.parse(doc)
    assert found == HELD
    assert objects.parse(json.loads(json.dumps(objects.to_doc(found)))) == HELD
    assert objects.to_doc(HELD)["spec"] == spec
    for odd, words in (
        ({"node": "one"}, "spec.pod.*leave out pod, node and since"),
        ({"keep": "forever"}, "spec.keep.*Pod or Always"),
        ({"network": 7}, "spec.network"),
        ({"owner": ""}, "spec.owner"),
    ):
        with pytest.raises(ObjectError, match=words):
            objects.parse({**doc, "spec": {**spec, **odd}})
