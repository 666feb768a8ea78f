"""The rights of an agent's token: all that its own node needs, and nothing on other nodes' objects."""

from __future__ import annotations

import ipaddress
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cluster import api, node_condition
from agent.cluster.api import Api, ApiError, Request
from agent.cluster.kubernetes_store import KubernetesStore
from agent.cluster.node_condition import STRATEGIC
from agent.cluster.store import StoreError
from agent.ipam.reservations.claimant import TakenError
from agent.model.cluster import IPBlock, IPReservation
from agent.publish.node_events import event
from tests.e2e.api import MANIFESTS, apply
from tests.e2e.cluster import eventually
from tests.e2e.control import ControlPlane
from tests.unit.test_reservation_claims import BLOCKS, Agent

CLEANUP = MANIFESTS.parent / "cleanup/cleanup.yaml"
CLEANER = "system:serviceaccount:kube-system:testcni-cleanup"
NODES = tuple(BLOCKS)
ONE, TWO = NODES
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
CONDITION = {"type": "NetworkUnavailable", "status": "False", "reason": "TestcniIsUp", "message": "m"}


@pytest.fixture(scope="module")
def control(rights: ControlPlane) -> ControlPlane:
    for name, cidr in BLOCKS.items():
        spec = {"podCIDR": str(cidr), "podCIDRs": [str(cidr)]}
        node = {"metadata": {"name": name, "labels": {"zone": "a"}}, "spec": spec}
        apply(rights, {"apiVersion": "v1", "kind": "Node", **node})
        status = {"conditions": [{"type": "Ready", "status": "True"}, {**CONDITION, "status": "True"}]}
        status["addresses"] = [{"type": "InternalIP", "address": f"192.0.2.{NODES.index(name) + 1}"}]
        patch = ("patch", "node", name, "--subresource=status", "-p", json.dumps({"status": status}))
        rights.kubectl(*patch)
    wait_for_policies(rights)
    return rights


def wait_for_policies(control: ControlPlane) -> None:
    """The policies are in force: the token of node one writes its own, and can't take what is node two's."""
    agent = store_of(stolen(control, ONE))
    eventually(partial(succeeds, agent), 60)

    def are_refused() -> bool:
        for attempt in (
            lambda: agent.publish_accepted_modes(TWO, "x=vxlan"),
            lambda: agent.create(block("10.9.1.0/24", TWO)),
            lambda: agent.create(held("10.244.2.99", ONE)),
        ):
            with pytest.raises(StoreError):
                attempt()
        return True

    eventually(partial(holds, are_refused), 60)


def succeeds(agent: KubernetesStore) -> bool:
    made = agent.create(block("10.9.0.0/24", ONE))
    agent.delete("IPBlock", made.name)
    return True


def holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except pytest.fail.Exception:
        return False


def stolen(control: ControlPlane, node: str | None, namespace: str = "testcni", name: str = "testcni") -> Path:
    """A kubeconfig with the token of the agent's pod on a node; None: a token that is bound to no pod.

    Or that of another service account, of a pod on that node.
    """
    create = ["-n", namespace, "create", "token", name, "--duration=1h"]
    if node:
        metadata = {"name": f"agent-{node}", "namespace": namespace}
        spec = {"nodeName": node, "serviceAccountName": name, "containers": [{"name": "a", "image": "none"}]}
        apply(control, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        create += ["--bound-object-kind=Pod", f"--bound-object-name=agent-{node}"]
    token = control.kubectl(*create).strip()
    path = control.folder / f"{name}-{node}.kubeconfig"
    shutil.copy(control.kubeconfig(), path)
    doc = yaml.safe_load(path.read_text())
    doc["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(doc))
    return path


def server_of(kubeconfig: Path) -> Api:
    return Api(partial(api.from_kubeconfig, kubeconfig), 10.0)


def store_of(kubeconfig: Path) -> KubernetesStore:
    return KubernetesStore(server_of(kubeconfig))


@pytest.fixture(scope="module")
def admin(control: ControlPlane) -> KubernetesStore:
    return store_of(control.kubeconfig())


@pytest.fixture(scope="module")
def thief(control: ControlPlane) -> KubernetesStore:
    """A client with the token of node one's agent."""
    return store_of(stolen(control, ONE))


def block(cidr: str, node: str) -> IPBlock:
    return IPBlock(ipaddress.ip_network(cidr), node, "pods")


def held(address: str, node: str, **more: Any) -> IPReservation:
    made = IPReservation(ipaddress.ip_address(address), "shop/web-0", "shop/web-0", node, "testcni", NOW)
    return replace(made, **more)


def is_refused(attempt: Callable[[], object], words: str) -> None:
    with pytest.raises(ApiError, match=words):
        attempt()


@pytest.fixture
def tidy(control: ControlPlane) -> Iterator[None]:
    yield
    control.kubectl("delete", "ipreservations,ipblocks", "--all")


@pytest.mark.usefixtures("tidy")
def test_a_stolen_token_can_not_touch_blocks_of_other_nodes(
    admin: KubernetesStore, thief: KubernetesStore
) -> None:
    is_refused(lambda: thief.create(block("10.8.2.0/24", TWO)), "its own node only")
    theirs, gone = admin.create(block("10.8.2.0/24", TWO)), admin.create(block("10.8.9.0/24", "gone"))
    is_refused(lambda: thief.delete("IPBlock", theirs.name, theirs), f"belongs to node {TWO}")
    is_refused(lambda: thief.create(block("10.244.2.0/25", ONE)), f"overlaps the podCIDRs of node {TWO}")
    is_refused(lambda: thief.create(block("10.244.0.0/16", ONE)), f"overlaps the podCIDRs of node {TWO}")
    eventually(partial(overlap_refused, thief), 30)
    mine = thief.create(block("10.8.1.0/24", ONE))
    thief.delete("IPBlock", mine.name, mine)
    thief.delete("IPBlock", gone.name, gone)  # whose node has no Node object, its block is free for all


@pytest.mark.usefixtures("tidy")
def test_a_stolen_token_can_not_take_addresses_of_other_nodes(
    admin: KubernetesStore, thief: KubernetesStore
) -> None:
    is_refused(lambda: thief.create(held("10.244.2.7", TWO)), "its own node only")
    is_refused(lambda: thief.create(held("10.244.2.7", ONE)), "has to be asked")
    admin.create(block("10.8.2.0/24", TWO))
    eventually(partial(holds_refused, thief), 30)  # once the policy's informer has the block
    asking = thief.create(held("10.244.2.7", ONE, asks=TWO))
    assert isinstance(asking, IPReservation)
    is_refused(lambda: thief.update(replace(asking, asks="")), "has not agreed")
    is_refused(lambda: thief.update(replace(asking, asks=ONE)), "has not agreed")
    nobody = thief.create(held("10.244.2.9", ONE, asks="nobody"))  # whom no policy knows
    assert isinstance(nobody, IPReservation)
    is_refused(lambda: thief.update(replace(nobody, asks="")), "has to be asked")
    itself = thief.create(held("10.244.2.8", ONE, asks=ONE))
    assert isinstance(itself, IPReservation)
    is_refused(lambda: thief.update(replace(itself, asks="")), "has to be asked")


def overlap_refused(thief: KubernetesStore) -> bool:
    """Once the policy's informer has the block."""
    try:
        made = thief.create(block("10.8.2.0/25", ONE))
    except ApiError as error:
        return f"overlaps 10.8.2.0/24 of node {TWO}" in str(error)
    thief.delete("IPBlock", made.name)
    return False


def holds_refused(thief: KubernetesStore) -> bool:
    try:
        made = thief.create(held("10.8.2.7", ONE))
    except ApiError as error:
        return "has to be asked" in str(error)
    thief.delete("IPReservation", made.name)
    return False


@pytest.mark.usefixtures("tidy")
def test_a_stolen_token_can_not_change_reservations_of_other_nodes(
    admin: KubernetesStore, thief: KubernetesStore
) -> None:
    theirs = admin.create(held("10.244.2.5", TWO))
    assert isinstance(theirs, IPReservation)
    for changed, words in (
        (replace(theirs, released=NOW), "releases it"),
        (replace(theirs, owner="evil/x"), "its own node only|it belongs to"),
        (replace(theirs, node=ONE, owner="evil/x", pod="evil/x"), "a pod of the same name"),
        (replace(theirs, refused="no"), "its own node only|it belongs to"),
    ):
        is_refused(partial(thief.update, changed), words)
    is_refused(lambda: thief.delete("IPReservation", theirs.name, theirs), f"belongs to node {TWO}")
    moved = thief.update(replace(theirs, node=ONE))  # the protocol: a pod of this name was created again here
    assert isinstance(moved, IPReservation)
    thief.delete("IPReservation", moved.name, moved)


@pytest.mark.usefixtures("tidy")
def test_an_agent_releases_answers_and_inherits(admin: KubernetesStore, thief: KubernetesStore) -> None:
    mine = thief.create(held("10.244.1.5", ONE))
    assert isinstance(mine, IPReservation)
    released = thief.update(replace(mine, released=NOW))
    assert isinstance(released, IPReservation)
    thief.update(replace(released, released=None, owner="shop/x", pod="shop/x"))
    kept = admin.create(held("10.244.2.5", TWO, released=NOW))
    assert isinstance(kept, IPReservation)
    thief.update(replace(kept, node=ONE, released=None))
    answers: tuple[dict[str, Any], ...] = ({"asks": ""}, {"refused": "pod a/b has it"})
    for answer in answers:
        asked = admin.create(held("10.244.1.6", TWO, asks=ONE))
        assert isinstance(asked, IPReservation)
        is_refused(partial(thief.update, replace(asked, asks="", pod="evil/x")), "its own node only")
        thief.update(replace(asked, **answer))
        admin.delete("IPReservation", asked.name)
    left = admin.create(held("10.244.9.5", "gone"))
    assert isinstance(left, IPReservation)
    over = thief.update(replace(left, released=NOW))
    assert isinstance(over, IPReservation)
    thief.delete("IPReservation", over.name, over)


@pytest.mark.usefixtures("tidy")
def test_what_a_person_reserved_is_for_its_owner_and_for_a_person_to_delete(
    control: ControlPlane, admin: KubernetesStore, thief: KubernetesStore
) -> None:
    ahead = admin.create(IPReservation(ipaddress.ip_address("10.244.1.30"), "shop/web-0"))
    far = admin.create(IPReservation(ipaddress.ip_address("10.244.2.30"), "shop/Deployment/web"))
    assert isinstance(ahead, IPReservation)
    assert isinstance(far, IPReservation)
    assert (ahead.ahead, ahead.since) == (True, None)
    assert "shop/web-0" in control.kubectl("get", "ipreservations")
    for odd in (ahead, far):
        is_refused(partial(thief.delete, "IPReservation", odd.name, odd), "for a person to delete")
        is_refused(partial(thief.update, replace(odd, owner="evil/x")), "its own node only")
    used: dict[str, Any] = {"pod": "shop/web-0", "node": ONE, "network": "testcni", "since": NOW, "keep": "Always"}
    is_refused(lambda: thief.update(replace(ahead, **{**used, "owner": "evil/x"})), "a pod of the same name")
    is_refused(lambda: thief.update(replace(ahead, **{**used, "node": TWO})), "its own node only")
    taken = thief.update(replace(ahead, **used))
    assert isinstance(taken, IPReservation)
    thief.update(replace(taken, released=NOW))
    is_refused(lambda: thief.update(replace(far, **used)), "has to be asked")
    thief.update(replace(far, asks=TWO, **used))
    for spec, words in (
        ({"owner": "web"}, "owner must be namespace/pod"),
        ({"owner": "shop/Deployment/web/x"}, "owner must be namespace/pod"),
        ({"owner": "shop/web", "node": ONE}, "are for agents to write"),
        ({"owner": "shop/web", "address": "fd00::7"}, "only IPv4"),
        ({"owner": "shop/web", "keep": "forever"}, "Unsupported value"),
    ):
        doc = {"apiVersion": "testcni.io/v1", "kind": "IPReservation", "metadata": {"name": "10-244-1-31"}}
        path = control.folder / "odd.json"
        path.write_text(json.dumps({**doc, "spec": {"address": "10.244.1.31", **spec}}))
        assert words in control.kubectl("apply", "-f", str(path), check=False)


@pytest.mark.usefixtures("tidy")
def test_what_is_kept_while_a_pod_has_it_is_answered_by_new_and_old_agents(
    admin: KubernetesStore, thief: KubernetesStore
) -> None:
    # an agent that does not know `keep` leaves it out
    answers: tuple[dict[str, Any], ...] = ({"asks": ""}, {"asks": "", "keep": ""})
    for answer in answers:
        asked = admin.create(held("10.244.1.6", TWO, asks=ONE, keep="Pod"))
        assert isinstance(asked, IPReservation)
        is_refused(partial(thief.update, replace(asked, asks="", keep="Always")), "its own node only")
        thief.update(replace(asked, **answer))
        admin.delete("IPReservation", asked.name)
    mine = thief.create(held("10.244.1.5", ONE, keep="Pod"))
    assert isinstance(mine, IPReservation)
    assert mine.keep == "Pod"
    thief.delete("IPReservation", mine.name, mine)


def patch(server: Api, node: str, body: object, content_type: str = STRATEGIC) -> None:
    server.ask(Request("PATCH", f"/api/v1/nodes/{node}/status", {}, body, content_type))


def test_a_stolen_token_changes_one_condition_and_one_annotation_of_one_node(control: ControlPlane) -> None:
    server = server_of(stolen(control, ONE))
    thief = KubernetesStore(server)
    thief.publish_accepted_modes(ONE, "testcni=vxlan")
    patch(server, ONE, {"status": {"conditions": [CONDITION]}})
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"status": {"conditions": [{**CONDITION, "status": "True"}]}}, "only to False"),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "no condition but"),
        ({"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}}, "no condition but"),
        (
            {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.99"}]}},
            "nothing of a Node's status",
        ),
        ({"status": {"capacity": {"cpu": "1000"}}}, "nothing of a Node's status"),
        ({"status": {"allocatable": {"example.com/gpu": "8"}}}, "nothing of a Node's status"),
        ({"metadata": {"labels": {"zone": "b"}}}, "no labels"),
        ({"metadata": {"finalizers": ["example.com/x"]}}, "no labels"),
        ({"metadata": {"annotations": {"node.alpha.kubernetes.io/ttl": "9"}}}, "no annotation but"),
    )
    for body, words in refused:
        is_refused(partial(patch, server, ONE, body), words)
    is_refused(lambda: patch(server, TWO, {"status": {"conditions": [CONDITION]}}), "its own Node only")
    is_refused(lambda: thief.publish_accepted_modes(TWO, "testcni=host-gw"), "its own Node only")
    node = json.loads(control.kubectl("get", "node", ONE, "-o", "json"))
    assert node["metadata"]["annotations"]["testcni.io/receives"] == "testcni=vxlan"
    states = {c["type"]: c["status"] for c in node["status"]["conditions"]}
    assert states == {"Ready": "True", "NetworkUnavailable": "False"}


def test_a_stolen_token_speaks_for_its_own_node_only(control: ControlPlane) -> None:
    server = server_of(stolen(control, ONE))
    for node in NODES:
        about = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}
        told = partial(server.ask, event(node, about, "PodNetworkProblem", "x"))
        if node == ONE:
            told()
        else:
            is_refused(told, "writes Events as source.host")


def test_a_token_that_names_no_node_writes_nothing(control: ControlPlane) -> None:
    server = server_of(stolen(control, None))
    nobody = KubernetesStore(server)
    is_refused(lambda: nobody.create(block("10.8.1.0/24", ONE)), "names no node")
    is_refused(lambda: nobody.create(held("10.244.1.5", ONE)), "names no node")
    is_refused(lambda: nobody.publish_accepted_modes(ONE, "x=vxlan"), "its own Node only")
    assert {node.name for node in nobody.list("Node")} == set(NODES)


@pytest.mark.usefixtures("tidy")
def test_agents_with_their_own_tokens_do_all_that_pods_need(control: ControlPlane, tmp_path: Path) -> None:
    control.kubectl("create", "serviceaccount", "default")
    for name, key, value in (("web-0", "sticky", "true"), ("a", "ip", "10.244.1.50"), ("b", "ip", "10.244.1.50")):
        metadata: dict[str, Any] = {"name": name, "annotations": {f"testcni.io/{key}": value}}
        spec = {"containers": [{"name": "main", "image": "none"}], "automountServiceAccountToken": False}
        apply(control, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    one, two = (Agent(name, store_of(stolen(control, name)), tmp_path) for name in NODES)
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
    finally:
        for agent in (one, two):
            agent.stop()


def test_the_clean_up_removes_one_condition_and_one_annotation_of_one_node(control: ControlPlane) -> None:
    control.kubectl("apply", "-f", str(CLEANUP))
    agent = server_of(stolen(control, ONE))
    server = server_of(stolen(control, ONE, "kube-system", "testcni-cleanup"))
    cleanup = KubernetesStore(server)

    def is_in_force() -> bool:
        try:
            patch(server, ONE, {"metadata": {"annotations": {"probe": str(time.monotonic())}}})
        except StoreError as error:
            return "changes no other" in str(error)
        return False

    eventually(is_in_force, 60)
    node_condition.clear(agent, ONE)
    KubernetesStore(agent).publish_accepted_modes(ONE, "testcni=vxlan")
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"status": {"conditions": [{**CONDITION, "message": "x"}]}}, "changes no other"),
        ({"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}}, "changes no other"),
        ({"status": {"capacity": {"cpu": "1000"}}}, "nothing else of a Node"),
        ({"metadata": {"labels": {"zone": "b"}}}, "nothing else of a Node"),
        ({"metadata": {"annotations": {"node.alpha.kubernetes.io/ttl": "9"}}}, "changes no other"),
    )
    for body, words in refused:
        is_refused(partial(patch, server, ONE, body), words)
    is_refused(lambda: cleanup.publish_accepted_modes(ONE, "testcni=host-gw"), "changes no other")
    is_refused(lambda: cleanup.publish_accepted_modes(TWO, ""), "its own Node only")
    for is_there in (True, False):
        cleanup.publish_accepted_modes(ONE, "")
        assert node_condition.remove(server, ONE) == is_there
    node = json.loads(control.kubectl("get", "node", ONE, "-o", "json"))
    assert "testcni.io/receives" not in node["metadata"].get("annotations", {})
    assert [c["type"] for c in node["status"]["conditions"]] == ["Ready"]
    for name in ("secrets", "pods", "events", "ipblocks.testcni.io"):
        assert control.kubectl("auth", "can-i", "--as", CLEANER, "list", name, "-A", check=False).strip() == "no"


def test_applying_the_manifests_again_changes_nothing(control: ControlPlane) -> None:
    rendered = MANIFESTS.parent / "testcni.yaml"
    control.kubectl("apply", "-f", str(rendered), "-f", str(CLEANUP))
    said = control.kubectl("apply", "-f", str(rendered), "-f", str(CLEANUP)).splitlines()
    assert [line for line in said if "unchanged" not in line] == []
    assert {line.partition("/")[0].partition(".")[0] for line in said} >= {
        "validatingadmissionpolicy",
        "validatingadmissionpolicybinding",
        "daemonset",
        "customresourcedefinition",
        "configmap",
    }
