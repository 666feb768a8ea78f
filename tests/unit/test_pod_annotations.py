"""What annotations ask for, and what an ADD does when they can't be read."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kinds import Kind
from agent.cluster.objects import parse as parse_doc
from agent.cluster.store import StoreError
from agent.codec.cni_args import PodIdentity
from agent.errors import CniError
from agent.ipam.reservations import pod_annotations as annotations_module
from agent.ipam.reservations.pod_annotations import (
    AddressAnnotations,
    AnnotationReader,
    AnnotationsUnavailableError,
    owner_of,
    parse,
)
from agent.model.cluster import ObjectMetadata, Resource
from agent.model.node_status import PodEvent
from tests.fake_clock import FakeClock

UID = "0f0e0d0c-1111-4222-8333-123456789abc"
OTHER = UID.replace("0f0e", "ffff")
WEB = PodIdentity("shop/web-0", UID)


def pod(controller: str = "", template: str = "", **annotations: str) -> ObjectMetadata:
    named = tuple((f"testcni.io/{key}", value) for key, value in annotations.items())
    return ObjectMetadata("Pod", "shop/web-0", UID, named, controller, template)


class Store(DirectoryStore):
    """A datastore that knows what it is given, and can be away."""

    def __init__(self, *known: ObjectMetadata) -> None:
        super().__init__(Path("/nowhere"))
        self.known: dict[tuple[Kind, str], ObjectMetadata] = {(one.kind, one.name): one for one in known}
        self.away = False
        self.asked: list[str] = []

    def get(self, kind: Kind, name: str) -> Resource:
        self.asked.append(f"{kind} {name}")
        if self.away:
            raise StoreError("HTTP 503: away")
        if (kind, name) not in self.known:
            return super().get(kind, name)
        return self.known[kind, name]


@pytest.mark.parametrize(
    ("controller", "template", "owner"),
    [
        ("", "", "shop/web-0"),
        ("StatefulSet/web", "", "shop/web-0"),
        ("ReplicaSet/web-5d8f", "5d8f", "shop/Deployment/web"),
        ("ReplicaSet/web-5d8f", "", "shop/ReplicaSet/web-5d8f"),
        ("Job/once", "", "shop/Job/once"),
    ],
)
def test_owners(controller: str, template: str, owner: str) -> None:
    assert owner_of(pod(controller, template)) == owner


def test_annotations() -> None:
    assert parse(pod()) == AddressAnnotations("shop/web-0", UID, "shop/web-0")
    wish = parse(pod(ip=" 10.244.1.7 ", sticky="True", pool="gold"))
    assert (wish.address, wish.sticky, wish.pool) == (ipaddress.ip_address("10.244.1.7"), True, "gold")
    assert not parse(pod(sticky="false")).stays


@pytest.mark.parametrize(
    ("annotations", "controller"),
    [
        ({"ip": "10.244.1"}, ""),
        ({"ip": ""}, ""),
        ({"ip": "fd00::7"}, ""),
        ({"ip": "10.244.1.7/24"}, ""),
        ({"sticky": "1"}, ""),
        ({"sticky": "ture"}, ""),
        ({"sticky": "true"}, "ReplicaSet/web-5d8f"),
        ({"sticky": "true"}, "DaemonSet/web"),
    ],
)
def test_wrong_annotations_say_which(annotations: dict[str, str], controller: str) -> None:
    with pytest.raises(CniError, match=r"annotation testcni.io/.* of pod shop/web-0") as caught:
        parse(pod(controller, **annotations))
    assert (caught.value.code, bool(caught.value.details)) == (7, True)


def test_an_add_asks_once_and_only_for_pods_of_the_api_server() -> None:
    store = Store(pod(sticky="true"))
    wishes = AnnotationReader(store)
    assert wishes.read(replace(WEB, uid="6f1ed002ab5595859014ebf0951522d9")) is None  # a static pod's
    assert store.asked == []
    wish = wishes.read(WEB)
    assert wish
    assert wish.sticky
    assert store.asked == ["Pod shop/web-0", "Namespace shop"]
    assert wishes.read(WEB) == wish
    assert store.asked == ["Pod shop/web-0", "Namespace shop", "Pod shop/web-0"]


def test_a_pod_that_is_not_there_is_an_ordinary_one_and_another_incarnation_is_none() -> None:
    ordinary = AnnotationReader(Store()).read(WEB)
    assert ordinary == AddressAnnotations("shop/web-0", UID, "shop/web-0")
    assert not ordinary.asks
    with pytest.raises(CniError, match="pod shop/web-0 was replaced by another one") as caught:
        AnnotationReader(Store(pod(sticky="true"))).read(replace(WEB, uid=OTHER))
    assert caught.value.code == 11


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("sticki", "did you mean testcni.io/sticky?"),
        ("IP", "did you mean testcni.io/ip?"),
        ("pools", "did you mean testcni.io/pool?"),
        ("bandwidth", "a pod may have testcni.io/ip, testcni.io/sticky, testcni.io/pool"),
    ],
)
def test_an_annotation_that_nobody_knows_is_told_once_and_the_pod_goes_on(key: str, hint: str) -> None:
    told: list[PodEvent] = []
    wishes = AnnotationReader(Store(pod(**{key: "true", "pool": "gold"})), told.append)
    for _ in range(3):
        wish = wishes.read(WEB)
        assert wish
        assert wish.pool == "gold"
    (pod_event,) = told
    assert (pod_event.pod, pod_event.uid, pod_event.reason) == ("shop/web-0", UID, "AnnotationUnknown")
    assert (
        pod_event.message == f"annotation testcni.io/{key} of pod shop/web-0 is unknown and does nothing; {hint}"
    )


def test_it_is_told_once_though_the_add_is_refused_again_and_again() -> None:
    told: list[PodEvent] = []
    wishes = AnnotationReader(Store(pod(sticki="true", ip="nonsense")), told.append)
    for _ in range(3):
        with pytest.raises(CniError, match=r"testcni.io/ip"):
            wishes.read(WEB)
    assert len(told) == 1


def test_a_pod_with_thousands_of_unknown_annotations_does_not_take_all_events_of_the_node() -> None:
    """256 KiB of annotations are allowed: each costs the ADD time, and an Event that another pod does not get."""
    told: list[PodEvent] = []
    wishes = AnnotationReader(Store(pod(**{f"x{number}": "" for number in range(12000)})), told.append)
    for _ in range(3):
        wishes.read(WEB)
    assert len(told) == annotations_module.REPORTED == 3


def test_each_pod_of_a_namespace_is_told_what_is_unknown_there() -> None:
    told: list[PodEvent] = []
    keys = (("testcni.io/pol", "gold"), ("testcni.io/sticky", "true"))
    pods = [ObjectMetadata("Pod", f"shop/web-{n}", UID.replace("0f0e", f"000{n}")) for n in range(2)]
    wishes = AnnotationReader(Store(*pods, ObjectMetadata("Namespace", "shop", "", keys)), told.append)
    for n in range(2):
        for _ in range(2):
            wish = wishes.read(PodIdentity(f"shop/web-{n}", UID.replace("0f0e", f"000{n}")))
            assert wish
            assert not wish.asks
    assert sorted((pod_event.pod, pod_event.message.partition("; ")[2]) for pod_event in told) == [
        ("shop/web-0", "a namespace may have testcni.io/pool"),
        ("shop/web-0", "did you mean testcni.io/pool?"),
        ("shop/web-1", "a namespace may have testcni.io/pool"),
        ("shop/web-1", "did you mean testcni.io/pool?"),
    ]


def test_the_namespace_names_a_pool_for_all_its_pods() -> None:
    namespace = ObjectMetadata("Namespace", "shop", "", (("testcni.io/pool", "silver"),))
    found = AnnotationReader(Store(pod(), namespace)).read(WEB)
    assert found
    assert (found.pool, found.stays) == ("silver", False)
    found = AnnotationReader(Store(pod(pool="gold"), namespace)).read(WEB)
    assert found
    assert found.pool == "gold"


def test_namespaces_that_come_and_go_leave_nothing_behind() -> None:
    clock = FakeClock()
    wishes = AnnotationReader(Store(), clock=clock)
    for number in range(2 * annotations_module.REMEMBERED):
        clock.time += annotations_module.NAMESPACE_FOR
        wishes._namespace(f"run-{number}")
    assert len(wishes._namespaces) <= annotations_module.REMEMBERED


def test_while_the_api_server_is_away_a_pod_that_was_seen_starts_again_and_others_wait() -> None:
    store = Store(pod(sticky="true"))
    wishes = AnnotationReader(store)
    first = wishes.read(WEB)
    store.away = True
    assert wishes.read(WEB) == first
    with pytest.raises(
        AnnotationsUnavailableError, match="can't be read, and it may ask for an address: HTTP 503"
    ) as caught:
        wishes.read(PodIdentity("shop/web-1", OTHER))
    assert (caught.value.code, "shop/web-1" in str(caught.value)) == (11, True)


def test_a_pods_metadata_as_the_api_server_has_it() -> None:
    doc = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-0",
            "namespace": "shop",
            "uid": UID,
            "annotations": {"testcni.io/sticky": "true", "other/thing": "x"},
            "labels": {"pod-template-hash": "5d8f"},
            "ownerReferences": [
                {"kind": "Other", "name": "o"},
                {"kind": "ReplicaSet", "name": "web-5d8f", "controller": True},
            ],
        },
    }
    assert parse_doc(doc) == pod("ReplicaSet/web-5d8f", "5d8f", sticky="true")
