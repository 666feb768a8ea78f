"""From Node objects and the options' file to what BIRD should do."""

from __future__ import annotations

import ipaddress
import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import cast

import pytest

from agent.cluster import objects
from agent.cluster.object_fields import ObjectError
from agent.model.cluster import IPPool, Node, Snapshot
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.base import ModeContext
from agent.modes.ipip import bgp
from agent.modes.ipip.bgp import REFLECTOR, Encapsulate
from agent.modes.ipip.bird.node_object import Bird
from agent.modes.ipip.bird.options import BgpOptions, OptionsFile, Router, read
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.bird.render import render
from agent.modes.ipip.bird.types import BirdConfig, BirdError, External, Peer, Secret, Tunnel
from agent.modes.registry import BUILT_IN
from agent.objects.base import Context
from agent.objects.state import LocalAddress, NodeState, union
from agent.runtime.clock import SYSTEM_CLOCK, Clock
from tests.fake_clock import FakeClock
from tests.networks import network_of

TUNNEL = Tunnel("tunl0")
RACK = Router(External(IPv4Address("192.0.2.100"), 65000), (("rack", "a"),))


def node(name: str, number: int, *, labels: dict[str, str] | None = None, address: str = "") -> Node:
    where = ipaddress.ip_address(address or f"192.0.2.{number}")
    block = ipaddress.ip_network(f"10.244.{number}.0/24")
    return Node(name, (where,), (block,), labels=tuple(sorted((labels or {}).items())))


ONE, TWO, THREE = node("one", 1), node("two", 2), node("three", 3, address="198.51.100.3")
LOCAL = (
    LocalAddress("eth0", 1500, ipaddress.ip_interface("192.0.2.1/24")),
    LocalAddress("eth1", 1500, ipaddress.ip_interface("203.0.113.1/24")),
)


def view(*nodes: Node, subnet: str | None = "10.244.0.0/16") -> ModeContext:
    network = network_of("pods", mode="ipip", subnet=ipaddress.ip_network(subnet) if subnet else None)
    return ModeContext(
        Snapshot(True, {n.name: n for n in nodes}), "one", LOCAL, network, nodes[0].blocks, routed=BUILT_IN.routed
    )


def plan(
    seen: ModeContext, options: BgpOptions, encapsulate: Encapsulate = Encapsulate.ALWAYS
) -> tuple[BirdConfig | None, frozenset[Problem]]:
    found = bgp.plan(seen, TUNNEL, encapsulate)
    if found.bird is None:
        return None, found.problems
    config, problems = found.bird.with_options(options)
    return config, found.problems.union(problems)


def planned(
    *nodes: Node, options: BgpOptions | None = None, encapsulate: Encapsulate = Encapsulate.ALWAYS
) -> BirdConfig:
    config, problems = plan(view(*nodes), options or BgpOptions(), encapsulate)
    assert problems == frozenset()
    assert config
    render(config)
    return config


def test_full_mesh() -> None:
    assert planned(ONE, TWO, THREE) == BirdConfig(
        "one",
        IPv4Address("192.0.2.1"),
        blocks=(IPv4Network("10.244.1.0/24"),),
        pools=(IPv4Network("10.244.0.0/16"),),
        peers=(Peer("three", IPv4Address("198.51.100.3")), Peer("two", IPv4Address("192.0.2.2"))),
        tunnel=TUNNEL,
    )


def test_reflectors_are_nodes_with_the_label_whatever_its_value() -> None:
    config = planned(ONE, node("two", 2, labels={REFLECTOR: ""}), node("four", 4))
    assert [peer.name for peer in config.peers if peer.reflector] == ["two"]
    assert not config.reflector
    assert planned(node("one", 1, labels={REFLECTOR: "yes"}), TWO).reflector


def test_encapsulation() -> None:
    assert planned(ONE, TWO, THREE, encapsulate=Encapsulate.CROSS_SUBNET).direct == (IPv4Network("192.0.2.0/24"),)
    assert planned(ONE, TWO, encapsulate=Encapsulate.NEVER).tunnel is None
    _config, problems = plan(view(ONE, TWO, THREE), BgpOptions(), Encapsulate.NEVER)
    assert [problem.where for problem in problems] == ["node three"]


def test_routers_are_chosen_by_the_labels_of_this_node() -> None:
    options = BgpOptions(64600, Secret("x"), (RACK,))
    assert planned(ONE, TWO, options=options).externals == ()
    config = planned(node("one", 1, labels={"rack": "a", "x": "y"}), TWO, options=options)
    assert config.externals == (RACK.external,)
    assert config.asn == 64600
    assert config.password == Secret("x")
    assert planned(ONE, options=BgpOptions(routers=(replace(RACK, selector=()),))).externals == (RACK.external,)


def test_pools_without_a_subnet_are_all_pools_and_pod_cidrs() -> None:
    wide = view(ONE, TWO, subnet=None)
    pool = IPPool("p", ipaddress.ip_network("10.99.0.0/16"), 26)
    wide = replace(wide, snapshot=replace(wide.snapshot, pools={"p": pool}))
    config, _problems = plan(wide, BgpOptions())
    assert config
    assert config.pools == tuple(map(IPv4Network, ("10.99.0.0/16", "10.244.1.0/24", "10.244.2.0/24")))
    odd = replace(TWO, blocks=(*TWO.blocks, *map(IPv4Network, ("169.254.0.0/16", "192.0.2.0/25"))))
    wide = replace(wide, snapshot=replace(wide.snapshot, nodes={"one": ONE, "two": odd}))
    refused, _problems = plan(wide, BgpOptions())
    assert refused
    assert refused.pools == config.pools


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ((ONE, replace(TWO, addresses=())), "node two: has no IPv4 InternalIP"),
        ((ONE, replace(TWO, addresses=ONE.addresses)), "node two: has the address 192.0.2.1 of node one"),
        ((ONE, TWO, replace(TWO, name="zwei")), "node zwei: has the address 192.0.2.2 of node two"),
        ((ONE, node("rack", 100)), "external peer 192.0.2.100: is the address of node rack"),
    ],
)
def test_problems(nodes: tuple[Node, ...], told: str) -> None:
    config, problems = plan(view(*nodes), BgpOptions(routers=(replace(RACK, selector=()),)))
    assert told in "\n".join(map(str, problems))
    assert config
    render(config)


def test_without_an_own_address_there_is_no_bird() -> None:
    for nodes in ((TWO,), (replace(ONE, addresses=()), TWO)):
        config, problems = plan(view(*nodes), BgpOptions())
        assert config is None
        assert [problem.where for problem in problems] == ["node one"]


def test_labels_of_nodes() -> None:
    doc = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"b": "1", "a": ""}}}
    found = objects.parse(doc)
    assert isinstance(found, Node)
    assert found.labels == (("a", ""), ("b", "1"))
    assert objects.parse(objects.to_doc(found)) == found
    for wrong in (["a"], {"a": True}, {1: "a"}):
        with pytest.raises(ObjectError, match=r"metadata\.labels"):
            objects.parse({**doc, "metadata": {"name": "n", "labels": wrong}})


def test_two_networks_share_one_bird() -> None:
    config = planned(ONE, TWO)
    another = replace(config, blocks=(IPv4Network("10.9.1.0/24"),), pools=(IPv4Network("10.9.0.0/16"),))
    one, other = BirdPlan(config), BirdPlan(another)
    both = union(
        [NodeState(sections=frozenset({one})), NodeState(), NodeState(sections=frozenset({other}))]
    ).section(BirdPlan)
    assert both
    assert both.config.blocks == (IPv4Network("10.9.1.0/24"), IPv4Network("10.244.1.0/24"))
    assert both.config.pools == (IPv4Network("10.9.0.0/16"), IPv4Network("10.244.0.0/16"))
    assert union([NodeState(), NodeState()]).section(BirdPlan) is None


FILE = """
asNumber: 64600
passwordFile: {folder}/mesh
peers:
- address: 192.0.2.100
  asNumber: 65000
  multihop: true
  passwordFile: {folder}/rack
  nodeSelector: {{rack: a}}
- {{address: 192.0.2.101, asNumber: 65001}}
"""


def secret(folder: Path, name: str) -> None:
    (folder / name).write_text(f"{name} password\n")
    (folder / name).chmod(0o600)


def test_options(tmp_path: Path) -> None:
    file = tmp_path / "bgp.yaml"
    file.write_text(FILE.format(folder=tmp_path))
    secret(tmp_path, "mesh")
    secret(tmp_path, "rack")
    assert read(file) == BgpOptions(
        64600,
        Secret("mesh password"),
        (
            Router(External(IPv4Address("192.0.2.100"), 65000, Secret("rack password"), True), (("rack", "a"),)),
            Router(External(IPv4Address("192.0.2.101"), 65001)),
        ),
    )
    file.write_text("{}")
    assert read(file) == BgpOptions()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "a mapping"),
        ("1: x", "text as name"),
        ("peers: [{address: 192.0.2.1, asNumber: 1, nodeSelector: {1: a}}]", "text as name"),
        ("a: b: c", "mapping values are not allowed"),
        ("asNumber: x", "asNumber: 'x' is not allowed"),
        ("asNumber: 0", "asNumber: 0"),
        ("as: 1", "unknown field as"),
        ("passwordFile: secret", "absolute path"),
        ("passwordFile: /nowhere/at-all", "No such file"),
        ("peers: {}", "a list of routers"),
        ("peers: [{address: 192.0.2.1}]", "address and asNumber"),
        ("peers: [{address: '2001:db8::1', asNumber: 1}]", "an IPv4 address"),
        ("peers: [{address: 192.0.2.1, asNumber: 64512}]", "own asNumber"),
        ("peers: [{address: 192.0.2.1, asNumber: 1}, {address: 192.0.2.1, asNumber: 2}]", "one entry for each"),
        ("peers: [{address: 192.0.2.1, asNumber: 1, nodeSelector: {a: true}}]", "in quotes"),
        ("peers: [{address: 192.0.2.1, asNumber: 1, nodeSelector: {a: }}]", r"peers\[0\]\.nodeSelector\.a: None"),
        ("peers: [{address: 192.0.2.1, asNumber: 1, multihop: 2}]", "true, false"),
        ("peers: [{address: 192.0.2.1, asNumber: 1, x: 2}]", r"unknown field peers\[0\].x"),
    ],
)
def test_wrong_options_are_told_by_field(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "bgp.yaml"
    file.write_text(text)
    with pytest.raises(BirdError, match=told) as error:
        read(file)
    assert str(file) in str(error.value) or "nowhere" in text


def options_file(path: Path | None, note: Path | None = None, clock: Clock = SYSTEM_CLOCK) -> OptionsFile:
    return OptionsFile(path, PartProblems("bgp-options").report_error, note, clock)


def configured(options: OptionsFile) -> list[BirdConfig | None]:
    """What BIRD is given in a round."""
    given: list[BirdConfig | None] = []
    found = bgp.plan(view(ONE, TWO), TUNNEL)
    assert found.bird
    context = cast("Context", None)  # nothing of the kernel is looked at
    Bird(given.append, options).sync(context, NodeState(sections=frozenset({found.bird})))
    return given


def test_no_session_begins_before_the_options_are_good(tmp_path: Path) -> None:
    file, secret, note = tmp_path / "bgp.yaml", tmp_path / "secret", tmp_path / "note"
    file.write_text(f"passwordFile: {secret}")
    for prepare in (lambda: None, secret.touch, lambda: secret.write_text("x"), lambda: file.write_text("[")):
        prepare()
        options = options_file(file, note)
        known, (problem,) = options.look()
        assert (known, options.stands) == (None, False)
        assert "no BGP session starts" in problem.what
        assert configured(options) == [None]
    file.write_text(f"passwordFile: {secret}")
    secret.chmod(0o600)
    known, problems = options.look()
    assert known
    assert (known.password, problems) == (Secret("x"), ())
    secret.unlink()
    assert options.look()[0] == known, "the last good one stays"
    assert options_file(file, note).look()[0] is None
    assert configured(options_file(file, note)) == []
    assert options_file(file, note).stands, "an earlier agent had read this file, and BIRD goes on"
    assert not options_file(tmp_path / "other", note).stands


def test_wrong_options_leave_in_force_what_was(tmp_path: Path) -> None:
    assert options_file(None).look() == (BgpOptions(), ())
    file = tmp_path / "bgp.yaml"
    file.write_text("asNumber: 64600")
    options = options_file(file)
    assert options.look() == (BgpOptions(64600), ())
    file.write_text("asNumber: 0")
    known, (problem,) = options.look()
    assert known == BgpOptions(64600)
    assert "asNumber: 0" in problem.what
    file.unlink()
    assert options.look()[0] == BgpOptions(64600)


WITH_PASSWORDS = """passwordFile: {0}
peers:
- {{address: 192.0.2.9, asNumber: 65000, passwordFile: {0}}}
"""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# soon",
        "null",
        "~",
        "---",
        "passwordFile:",
        "passwordFile: ~",
        "asNumber: 1\npasswordFile: null",
        "peers:",
        "peers: [~]",
        "passwordFile: {0}\npeers:\n- {{address: 192.0.2.9, asNumber: 65000, passwordFile: }}",
    ],
)
def test_a_blank_takes_no_password_away(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bgp.yaml"
    secret(tmp_path, "mesh")
    good = WITH_PASSWORDS.format(tmp_path / "mesh")
    file.write_text(good)
    options = options_file(file)
    before, _ = options.look()
    assert before
    assert before.password
    file.write_text(text.format(tmp_path / "mesh"))
    known, (problem,) = options.look()
    assert known == before, "what was in force stays"
    assert "None is not allowed" in problem.what
    assert options_file(file).look()[0] is None, "no session begins"
    file.write_text(good)
    assert options.look() == (before, ())


def test_a_password_that_the_file_asks_for_no_more_goes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "bgp.yaml"
    secret(tmp_path, "mesh")
    file.write_text(WITH_PASSWORDS.format(tmp_path / "mesh"))
    options = options_file(file)
    options.look()
    file.write_text("peers: [{address: 192.0.2.9, asNumber: 65000}]")
    known, problems = options.look()
    assert known
    assert (known.password, problems) == (None, ())
    assert "has no passwordFile any more: sessions between nodes" in caplog.text
    assert "the router 192.0.2.9 has no passwordFile any more" in caplog.text


def test_a_change_of_the_file_or_a_password_is_seen_within_a_second(tmp_path: Path) -> None:
    """As a ConfigMap changes: by a link to another folder."""
    for name, text in (("one", "{}"), ("two", f"passwordFile: {tmp_path}/mesh"), ("three", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bgp.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "bgp.yaml").symlink_to("..data/bgp.yaml")
    secret(tmp_path, "mesh")
    clock, stop = FakeClock(), threading.Event()
    options = options_file(tmp_path / "bgp.yaml", clock=clock)
    said: list[BgpOptions | str | None] = []
    options.said.listen(lambda: said.append(options.said.get()))

    def show(name: str) -> None:
        (tmp_path / "..new").symlink_to(name)
        (tmp_path / "..new").rename(tmp_path / "..data")

    for number, name in enumerate(("one", "two", "three")):
        clock.at(0.5 + number, lambda name=name: show(name))  # type: ignore[misc]
    clock.at(3.5, stop.set)
    options.run(stop)
    assert said[:2] == [BgpOptions(), BgpOptions(password=Secret("mesh password"))]
    assert isinstance(said[2], str)
