"""Documents to frozen values and back."""

from __future__ import annotations

import copy
import ipaddress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cluster.object_fields import Faults, ObjectError
from agent.cluster.objects import expand, parse, to_doc, usable
from agent.ip import Subnet
from agent.model.cluster import IPBlock, IPPool, IPReservation, Node, ObjectMetadata, Resource, block_name
from tests.unit.properties import examples

NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "worker-1.example", "resourceVersion": "77", "managedFields": [{"manager": "kubelet"}]},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"], "taints": []},
    "status": {
        "addresses": [
            {"type": "Hostname", "address": "worker-1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
            {"type": "ExternalIP", "address": "203.0.113.9"},
        ]
    },
}
POOL: dict[str, Any] = {
    "apiVersion": "testcni.io/v1",
    "kind": "IPPool",
    "metadata": {"name": "default"},
    "spec": {"cidr": "10.244.0.0/16", "blockSize": 26},
}
LAN = {
    **POOL,
    "spec": {
        "cidr": "192.0.2.0/24",
        "blockSize": 29,
        "start": "192.0.2.16",
        "end": "192.0.2.99",
        "gateway": "192.0.2.1",
        "exclude": ["192.0.2.20", "192.0.2.64/28"],
    },
}
BLOCK: dict[str, Any] = {
    "apiVersion": "testcni.io/v1",
    "kind": "IPBlock",
    "metadata": {"name": "10-244-3-0-24"},
    "spec": {"cidr": "10.244.3.0/24", "node": "worker-1", "pool": "default"},
}
SHARED = {**BLOCK, "spec": {**BLOCK["spec"], "shared": True}}


HELD: dict[str, Any] = {
    "apiVersion": "testcni.io/v1",
    "kind": "IPReservation",
    "metadata": {"name": "10-244-3-7"},
    "spec": {
        "address": "10.244.3.7",
        "owner": "shop/web-0",
        "pod": "shop/web-0",
        "node": "worker-1",
        "network": "testcni",
        "since": "2026-01-31T12:00:00Z",
        "released": "2026-01-31T13:00:00Z",
    },
}
POD: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop"}}


def changed(doc: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of `doc` with another value at a dotted path; None takes the field away."""
    doc = copy.deepcopy(doc)
    *parents, last = path.split(".")
    at = doc
    for part in parents:
        at = at.setdefault(part, {})
    at[last] = value
    if value is None:
        del at[last]
    return doc


def test_node() -> None:
    node = parse(NODE)
    assert node == Node(
        "worker-1.example",
        (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")),
        (ipaddress.ip_network("10.244.1.0/24"), ipaddress.ip_network("fd00:1::/64")),
    )
    assert node.resource_version == "77"


def test_node_with_only_a_pod_cidr_or_nothing() -> None:
    old = parse(changed(NODE, "spec.podCIDRs", None))
    assert isinstance(old, Node)
    assert [str(block) for block in old.blocks] == ["10.244.1.0/24"]
    assert parse({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "new"}}) == Node("new")


def test_repeated_entries_count_once_and_keep_their_order() -> None:
    doc = changed(NODE, "spec.podCIDRs", ["10.2.0.0/24", "10.1.0.0/24", "10.2.0.0/24"])
    doc["status"]["addresses"] *= 2
    node = parse(doc)
    assert isinstance(node, Node)
    assert [str(block) for block in node.blocks] == ["10.2.0.0/24", "10.1.0.0/24"]
    assert [str(address) for address in node.addresses] == ["192.0.2.1", "2001:db8::1"]


@pytest.mark.parametrize(
    ("cidr", "size"),
    [("10.244.0.0/16", 24), ("10.244.3.0/26", 26), ("10.0.0.0/30", 30), ("fd00::/64", 122), ("fd00::/124", 124)],
)
def test_default_block_size(cidr: str, size: int) -> None:
    pool = parse(changed(changed(POOL, "spec.blockSize", None), "spec.cidr", cidr))
    assert isinstance(pool, IPPool)
    assert pool.block_size == size


BAD: list[tuple[object, str]] = [
    ("text", "document"),
    (["a"], "document"),
    (None, "document"),
    (changed(NODE, "kind", "Job"), "kind"),
    (changed(NODE, "kind", ["Node"]), "kind"),
    (changed(NODE, "kind", None), "kind"),
    (changed(NODE, "apiVersion", "v2"), "apiVersion"),
    (changed(POOL, "apiVersion", "v1"), "apiVersion"),
    (changed(NODE, "metadata", ["name"]), "metadata"),
    (changed(NODE, "metadata", None), "metadata.name"),
    *(
        (changed(NODE, "metadata.name", name), "metadata.name")
        for name in (None, "", 7, "A", "-a", "a-", "a_b", "a..b", "a.", "a\n", "ü", "a" * 254)
    ),
    (changed(NODE, "spec", "none"), "spec"),
    (changed(NODE, "spec.podCIDRs", "10.0.0.0/24"), "spec.podCIDRs"),
    (changed(NODE, "spec.podCIDRs", ["10.0.0.0/24", "10.0.1.1/24"]), "spec.podCIDRs[1]"),
    (changed(changed(NODE, "spec.podCIDRs", None), "spec.podCIDR", "10.0.0.0/33"), "spec.podCIDR"),
    (changed(NODE, "status.addresses", {"type": "InternalIP"}), "status.addresses"),
    (changed(NODE, "status.addresses", ["192.0.2.1"]), "status.addresses[0]"),
    *(
        (changed(NODE, "status.addresses", [{"type": "InternalIP", "address": a}]), "status.addresses[0].address")
        for a in (None, "", "192.0.2", "192.0.2.1/24", "fe80::1%eth0", "worker-1", 3221225985)
    ),
    *(
        (changed(POOL, "spec.cidr", cidr), "spec.cidr")
        for cidr in (None, "", "10.244.0.0", "10.244.0.1/16", "10.0.0.0/255.0.0.0", "10.0.0.0/", 10, "fe80::%e/64")
    ),
    (changed(POOL, "spec.cidr", "10.0.0.0/31"), "spec.cidr"),
    *((changed(POOL, "spec.blockSize", size), "spec.blockSize") for size in (15, 31, "26", True, 26.0, -1)),
    (changed(changed(POOL, "spec.cidr", "fd00::/64"), "spec.blockSize", 127), "spec.blockSize"),
    (changed(changed(POOL, "spec.cidr", "0.0.0.0/0"), "spec.blockSize", True), "spec.blockSize"),
    *((changed(LAN, f"spec.{k}", v), f"spec.{k}") for k in ("start", "end") for v in ("", 7, "192.0.3.1", "::1")),
    (changed(LAN, "spec.end", "192.0.2.15"), "spec.end"),
    (changed(LAN, "spec.gateway", "fd00::1"), "spec.gateway"),
    (changed(LAN, "spec.gateway", ""), "spec.gateway"),
    (changed(LAN, "spec.allowedNamespaces", "shop"), "spec.allowedNamespaces"),
    (changed(LAN, "spec.allowedNamespaces", ["shop", 7]), "spec.allowedNamespaces[1]"),
    (changed(LAN, "spec.exclude", "192.0.2.20"), "spec.exclude"),
    *(
        (changed(LAN, "spec.exclude", ["192.0.2.20", wrong]), "spec.exclude[1]")
        for wrong in (None, "", "192.0.2.65/28", "192.0.0.0/16", "192.0.3.1", "fd00::/64", 7, ["192.0.2.21"])
    ),
    (changed(BLOCK, "metadata.name", "10-244-4-0-24"), "metadata.name"),
    (changed(BLOCK, "spec.cidr", "10.244.3.1/24"), "spec.cidr"),
    *((changed(BLOCK, "spec.shared", v), "spec.shared") for v in ("true", 1)),
    *((changed(BLOCK, f"spec.{key}", v), f"spec.{key}") for key in ("node", "pool") for v in (None, "", 1)),
    (changed(HELD, "metadata.name", "10-244-3-8"), "metadata.name"),
    *((changed(HELD, "spec.address", v), "spec.address") for v in (None, "", "10.244.3", "10.244.3.0/24", 7)),
    *(
        (changed(HELD, f"spec.{key}", v), f"spec.{key}")
        for key in ("owner", "pod", "node", "network")
        for v in (None, "", 1, ["a"])
    ),
    *((changed(HELD, f"spec.{key}", v), f"spec.{key}") for key in ("since", "released") for v in ("", "today", 7)),
    (changed(HELD, "spec.since", None), "spec.since"),
    *((changed(HELD, f"spec.{key}", 1), f"spec.{key}") for key in ("asks", "refused")),
    (changed(POD, "metadata.annotations", ["a"]), "metadata.annotations"),
    (changed(POD, "metadata.annotations", {"testcni.io/sticky": True}), "metadata.annotations"),
    (changed(POD, "metadata.ownerReferences", "web"), "metadata.ownerReferences"),
    (changed(POD, "metadata.ownerReferences", ["web"]), "metadata.ownerReferences[0]"),
]


@pytest.mark.parametrize(("doc", "path"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_documents_name_the_field_and_a_remedy(doc: object, path: str) -> None:
    with pytest.raises(ObjectError) as caught:
        parse(doc)
    assert caught.value.path == path
    assert caught.value.what
    assert caught.value.remedy


ODD_ADDRESSES: tuple[object, ...] = (
    *("", "worker-1", "fe80::1%eth0", "fe80::1", "169.254.1.1", "127.0.0.1", "::1", "::", "0.0.0.0"),  # noqa: S104
    *("224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:192.0.2.9", 7, None, ["192.0.2.9"]),
)


@pytest.mark.parametrize("odd", ODD_ADDRESSES, ids=str)
def test_a_node_is_not_lost_for_one_odd_address(odd: object) -> None:
    entries = [{"type": "InternalIP", "address": one} for one in (odd, "192.0.2.1")]
    faults: Faults = []
    node = usable(changed(NODE, "status.addresses", entries), faults)
    assert isinstance(node, Node)
    assert node.addresses == (ipaddress.ip_address("192.0.2.1"),)
    assert len(node.blocks) == 2
    (fault,) = faults
    assert fault.path.startswith("status.addresses")
    assert fault.remedy


@pytest.mark.parametrize(
    ("path", "value", "left"),
    [
        ("status.addresses", "192.0.2.1", {"addresses": ()}),
        ("status.addresses", [7, {"type": "InternalIP", "address": "192.0.2.1"}], {}),
        ("status", "odd", {"addresses": ()}),
        ("spec", ["odd"], {"blocks": ()}),
        ("spec.podCIDRs", ["10.244.1.0/24", "10.244.2.1/24", None], {}),
        ("metadata.labels", {"rack": "a", "odd": True, 7: "x"}, {"labels": (("rack", "a"),)}),
        ("metadata.labels", ["odd"], {}),
        ("metadata.annotations", "odd", {}),
        ("metadata.creationTimestamp", "yesterday", {}),
    ],
)
def test_an_odd_field_of_a_node_costs_only_itself(path: str, value: object, left: dict[str, Any]) -> None:
    good = Node("worker-1.example", (ipaddress.ip_address("192.0.2.1"),), (ipaddress.ip_network("10.244.1.0/24"),))
    doc = to_doc(good)
    faults: Faults = []
    assert usable(changed(doc, path, value), faults) == replace(good, **left)
    assert faults
    assert all(fault.path.startswith(path) for fault in faults)
    with pytest.raises(ObjectError):
        parse(changed(doc, path, value))


def test_an_odd_field_keeps_its_last_good_value() -> None:
    good = parse(NODE)
    for path in ("spec.podCIDRs", "status.addresses", "spec", "status"):
        assert usable(changed(NODE, path, ["odd"]), [], good) == good
    gone = usable(changed(NODE, "spec", {}), [], good)  # nothing is odd about this
    assert isinstance(gone, Node)
    assert gone.blocks == ()


def test_a_pool_with_an_odd_exclusion_gives_no_address_rather_than_one_of_others() -> None:
    odd = (("exclude", ["192.0.2.20", "odd"]), ("start", 7), ("end", "::1"), ("gateway", ""))
    for path, value in (*odd, ("allowedNamespaces", "x")):
        with pytest.raises(ObjectError) as caught:
            usable(changed(LAN, f"spec.{path}", value), [])
        stand_in = caught.value.stand_in
        assert stand_in
        assert stand_in.exclude == (stand_in.cidr,)
        assert stand_in.name == LAN["metadata"]["name"]


def test_an_odd_annotation_of_others_does_not_hold_up_a_pod_but_one_of_ours_does() -> None:
    pod = changed(POD, "metadata.annotations", {"example.com/x": 7, "testcni.io/sticky": "true"})
    found = usable(
        changed(pod, "metadata.ownerReferences", ["odd", {"kind": "Job", "name": "j", "controller": True}]), []
    )
    assert isinstance(found, ObjectMetadata)
    assert (found.annotations, found.controller) == ((("testcni.io/sticky", "true"),), "Job/j")
    with pytest.raises(ObjectError, match=r"testcni\.io/sticky"):
        usable(changed(POD, "metadata.annotations", {"testcni.io/sticky": True}), [])


def test_an_address_of_another_type_is_nobodys_business() -> None:
    doc = changed(NODE, "status.addresses", [{"type": "Hostname", "address": "no address at all"}])
    assert isinstance(parse(doc), Node)


def test_a_long_wrong_value_makes_a_short_message() -> None:
    for doc in (
        "x" * 1_000_000,
        changed(POOL, "spec.cidr", "1" * 1_000_000),
        changed(NODE, "kind", "x" * 1_000_000),
    ):
        with pytest.raises(ObjectError) as caught:
            parse(doc)
        assert len(str(caught.value)) < 400


def test_a_wrong_address_is_shown_in_full() -> None:
    wrong = "fd00:1111:2222:3333:4444:5555:6666:77777"
    with pytest.raises(ObjectError, match=wrong):
        parse(changed(NODE, "status.addresses", [{"type": "InternalIP", "address": wrong}]))


def test_documents_are_as_kubernetes_has_them() -> None:
    doc = to_doc(parse(NODE))
    assert doc == {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "worker-1.example", "resourceVersion": "77"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
        "status": {"addresses": NODE["status"]["addresses"][1:3]},
    }
    assert to_doc(parse(POOL)) == POOL
    assert to_doc(parse(LAN)) == LAN
    assert to_doc(parse(BLOCK)) == BLOCK
    assert to_doc(parse(SHARED)) == SHARED
    assert to_doc(parse(HELD)) == HELD
    assert to_doc(parse(POD)) == POD


def test_a_pool_on_a_subnet_of_others() -> None:
    pool = parse(LAN)
    assert isinstance(pool, IPPool)
    assert (str(pool.start), str(pool.end), str(pool.gateway)) == ("192.0.2.16", "192.0.2.99", "192.0.2.1")
    assert [str(cidr) for cidr in pool.exclude] == ["192.0.2.20/32", "192.0.2.64/28"]
    router = parse(changed(LAN, "spec.gateway", "192.0.3.1"))  # of a subnet that the pool is a part of
    assert isinstance(router, IPPool)


def test_a_blocks_identity_is_that_of_its_object() -> None:
    one, other = (parse(changed(BLOCK, "metadata.uid", uid)) for uid in ("a", "b"))
    assert one != other
    assert isinstance(one, IPBlock)
    assert one.uid == "a"


def test_lists() -> None:
    assert list(expand(NODE)) == [NODE]
    assert list(expand({"kind": "List", "apiVersion": "v1", "items": [NODE, POOL]})) == [NODE, POOL]
    bare = {key: value for key, value in POOL.items() if key not in ("kind", "apiVersion")}
    typed = {"kind": "IPPoolList", "apiVersion": "testcni.io/v1", "items": [bare, POOL]}
    assert [parse(item) for item in expand(typed)] == [parse(POOL), parse(POOL)]
    assert list(expand({"kind": "NodeList", "items": []})) == []


@pytest.mark.parametrize("items", [None, {}, "a"])
def test_a_list_without_items(items: object) -> None:
    with pytest.raises(ObjectError) as caught:
        list(expand({"kind": "List", "items": items}))
    assert caught.value.path == "items"


names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
addresses = st.ip_addresses()


@st.composite
def subnets(draw: st.DrawFn) -> Subnet:
    address = draw(addresses)
    length = draw(st.integers(0, address.max_prefixlen - 2))
    kind = (
        ipaddress.IPv4Network if address.version == 4 else ipaddress.IPv6Network
    )  # a small number could be either
    return kind((int(address), length), strict=False)


@st.composite
def pools(draw: st.DrawFn) -> IPPool:
    cidr = draw(subnets())
    size = draw(st.integers(cidr.prefixlen, cidr.max_prefixlen - 2))
    within = st.integers(0, cidr.num_addresses - 1).map(lambda number: cidr[number])
    start, end = sorted(draw(st.tuples(within, within)), key=int)
    gateway = draw(st.none() | st.ip_addresses(v=cidr.version))
    exclude = map(ipaddress.ip_network, draw(st.lists(within, unique=True, max_size=3)))
    namespaces = draw(st.none() | st.lists(names, unique=True, max_size=3).map(tuple))
    return IPPool(draw(names), cidr, size, "", start, end, tuple(exclude), gateway, namespaces)


nodes = st.builds(
    Node,
    names,
    st.lists(addresses, unique=True, max_size=3).map(tuple),
    st.lists(subnets(), unique=True, max_size=3).map(tuple),
)


times = st.integers(0, 2**31).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
reservations = st.builds(
    IPReservation, addresses, names, names, names, names, times, st.none() | times, names | st.just(""), st.text()
)


@settings(max_examples=examples(50))
@given(nodes | pools() | st.builds(IPBlock, subnets(), names, names) | reservations)
def test_what_is_written_is_read_back(obj: Resource) -> None:
    assert parse(to_doc(obj)) == obj


@given(subnets(), subnets())
def test_block_names_are_good_and_differ(one: Subnet, other: Subnet) -> None:
    assert (block_name(one) == block_name(other)) == (one == other)
    assert parse(to_doc(IPBlock(one, "n", "p"))).name == block_name(one)


@pytest.mark.parametrize(
    ("conditions", "unavailable"),
    [
        ([{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "True"}], True),
        ([{"type": "NetworkUnavailable", "status": "False", "reason": "TestcniIsUp"}], False),
        ([], False), (None, False), ("x", False), ([5, None], False),
    ],
)  # fmt: skip
def test_whether_the_cluster_takes_the_network_for_unavailable(conditions: object, unavailable: bool) -> None:
    doc = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "status": {"conditions": conditions}}
    node = parse(doc)
    assert isinstance(node, Node)
    assert node.unavailable is unavailable
