"""The protocol number of our routes: whose routes are touched, what an upgrade takes over, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent import config, uninstall
from agent.host.cni_conf_dir import Confs
from agent.model.cluster import IPPool, Node
from agent.model.marks import ROUTE_PROTOCOL
from agent.modes.registry import BUILT_IN
from agent.node.route_protocol import FILE, FIRST_PROTOCOL
from tests.netns.node import CONF, VXLAN, Host, Pod, command
from tests.netns.route_monitor import told_of_routes
from tests.netns.test_reconcile import peer, ready
from tests.networks import AGENT_OPTIONS, parse_conf
from tests.support import eventually, ip, net

OVN = 84
OTHER = 215


def routes(protocol: int = ROUTE_PROTOCOL) -> list[str]:
    found = [command("ip", "-N", version, "route", "show", "proto", str(protocol)) for version in ("-4", "-6")]
    return sorted(line.partition(" pref ")[0].strip() for text in found for line in text.splitlines())


def add(protocol: int, *words: str) -> None:
    command("ip", "route", "add", *words, "proto", str(protocol))


def earlier_agent(run_dir: Path) -> None:
    """Write what an agent that knew only the number 84 leaves in the run-dir."""
    (run_dir / "attachments").mkdir()


def node(
    tmp_path: Path, *objects: Node | IPPool, conf: dict[str, object] = CONF, protocol: int = ROUTE_PROTOCOL
) -> Host:
    """An agent that knows all of the cluster from its first round on."""
    host = Host(tmp_path, conf=conf, route_protocol=protocol)
    host.snapshot.update(lambda s: replace(s, synced=False))
    host.put(*objects)
    host.confs.publish(Confs(frozenset({parse_conf(conf).network})))
    host.snapshot.update(lambda s: replace(s, synced=True))
    eventually(lambda: host.reconciler.status.get().blocks)
    return host


def test_routes_of_ovn_stay(tmp_path: Path) -> None:
    host = ready(tmp_path)
    add(OVN, "198.51.100.0/24", "via", "192.0.2.9")
    add(OVN, "10.244.99.0/24", "via", "192.0.2.9")
    host.put(peer("two", "192.0.2.2", "10.244.2.0/24"))
    eventually(lambda: host.reconciler.status.get().programmed == 1)
    host.reconciler.drifted()
    host.drop("two")
    eventually(lambda: host.reconciler.status.get().routes == 0)
    assert routes(OVN) == ["10.244.99.0/24 via 192.0.2.9 dev eth0", "198.51.100.0/24 via 192.0.2.9 dev eth0"]
    assert not host.reconciler.status.get().problems


def test_an_upgrade_takes_over_the_routes_of_the_old_number_without_a_moment_without_them(tmp_path: Path) -> None:
    Host(tmp_path / "link").close()  # makes eth0
    command("ip", "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    earlier_agent(tmp_path)
    add(OVN, "10.244.2.0/24", "via", "192.0.2.2")  # as it is desired
    add(OVN, "10.244.3.0/24", "via", "192.0.2.33")  # the peer had another address
    add(OVN, "10.244.4.0/24", "via", "192.0.2.4")  # the peer is gone
    add(OVN, "2001:db8:2::/64", "via", "2001:db8::2")
    add(OVN, "198.51.100.0/24", "via", "192.0.2.9")  # not to pods
    add(OVN, "10.244.5.0/24", "dev", "eth0", "metric", "7")  # no gateway
    with told_of_routes() as heard:
        both = (ip("192.0.2.2"), ip("2001:db8::2"))
        wide = {key: value for key, value in CONF.items() if key != "subnet"}
        host = node(
            tmp_path,
            Node("two", both, (net("10.244.2.0/24"), net("2001:db8:2::/64"))),
            peer("three", "192.0.2.3", "10.244.3.0/24"),
            IPPool("pods", net("10.244.0.0/16"), 24),
            conf=wide,
        )
        eventually(lambda: host.reconciler.status.get().programmed == 3)
        eventually(lambda: any("Deleted 10.244.4.0/24" in line for line in heard))
    assert routes() == [
        "10.244.2.0/24 via 192.0.2.2 dev eth0",
        "10.244.3.0/24 via 192.0.2.3 dev eth0",
        "2001:db8:2::/64 via 2001:db8::2 dev eth0 metric 1024",
    ]
    deleted = [line for line in heard if "Deleted" in line]
    assert len(deleted) == 1, "what is desired was replaced, and lost at no moment"
    assert routes(OVN) == ["10.244.5.0/24 dev eth0 scope 253 metric 7", "198.51.100.0/24 via 192.0.2.9 dev eth0"]
    assert not host.reconciler.status.get().problems
    add(OVN, "10.244.4.0/24", "via", "192.0.2.4")
    host.reconciler.drifted()
    host.put(peer("five", "192.0.2.5", "10.244.5.0/24"))
    eventually(lambda: len(routes()) == 4)
    assert "10.244.4.0/24 via 192.0.2.4 dev eth0" in routes(OVN), "after the upgrade such a route is another's"


def test_an_upgrade_takes_over_the_routes_by_the_tunnel(tmp_path: Path) -> None:
    two = peer("two", "192.0.2.2", "10.244.2.0/24")
    old = node(tmp_path, two, conf=VXLAN, protocol=OVN)
    wanted = eventually(lambda: routes(OVN))
    old.close()
    (tmp_path / FILE).unlink()  # which versions that knew only 84 did not write
    add(OVN, "10.244.77.0/24", "dev", "testcni-vxlan")  # of a peer that is gone
    node(tmp_path, two, conf=VXLAN)
    eventually(lambda: routes() == wanted)
    assert routes(OVN) == []


def test_the_option_changes_the_number_of_all_routes_and_back(tmp_path: Path) -> None:
    two = peer("two", "192.0.2.2", "10.244.2.0/24")
    wanted = ["10.244.2.0/24 via 192.0.2.2 dev eth0"]
    before = ROUTE_PROTOCOL
    node(tmp_path, two).close()
    assert routes(before) == wanted
    for protocol in (OTHER, FIRST_PROTOCOL, ROUTE_PROTOCOL):
        with told_of_routes() as heard:
            host = node(tmp_path, two, protocol=protocol)
            eventually(lambda protocol=protocol: routes(protocol) == wanted)
            host.close()
        assert not any("Deleted" in line for line in heard)
        assert routes(before) == []
        assert json.loads((tmp_path / FILE).read_text()) == {"protocols": [protocol]}
        before = protocol


def test_pods_keep_their_routes_when_an_earlier_version_comes_back(tmp_path: Path) -> None:
    pod = Pod("c1")

    def of_pod() -> str:
        words = command("ip", "-N", "route", "show", "10.244.1.2").split()
        return words[words.index("proto") + 1] if "proto" in words else "3"  # boot is not shown

    def agent(protocol: int) -> Host:
        return node(tmp_path, conf=VXLAN, protocol=protocol)

    host = agent(ROUTE_PROTOCOL)
    host.add(pod)
    assert of_pod() == str(ROUTE_PROTOCOL)
    host.close()
    # such a version removes what has its number and is to no peer
    for protocol, wanted in ((FIRST_PROTOCOL, "3"), (OTHER, str(OTHER)), (ROUTE_PROTOCOL, str(ROUTE_PROTOCOL))):
        with told_of_routes() as heard:
            host = agent(protocol)
            eventually(lambda wanted=wanted: of_pod() == wanted)
            host.close()
        assert not any("Deleted 10.244" in line for line in heard)
        assert pod.reaches("10.244.1.1")


def test_an_upgrade_that_was_interrupted_is_finished_by_the_next_agent(tmp_path: Path) -> None:
    Host(tmp_path / "link").close()
    (tmp_path / FILE).write_text(json.dumps({"protocols": [OTHER, 99]}))
    add(OTHER, "10.244.2.0/24", "via", "192.0.2.2")
    add(99, "10.244.3.0/24", "via", "192.0.2.3")
    add(99, "10.244.4.0/24", "via", "192.0.2.4")
    node(tmp_path, peer("two", "192.0.2.2", "10.244.2.0/24"), peer("three", "192.0.2.3", "10.244.3.0/24"))
    eventually(lambda: len(routes()) == 2)
    assert (routes(OTHER), routes(99)) == ([], [])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"protocols": [4]}', '{"protocols": "x"}', '{"protocols": [NaN]}', "[" * 9999]
)
def test_an_unreadable_note_of_the_number_ends_no_agent(tmp_path: Path, text: str) -> None:
    Host(tmp_path / "link").close()
    (tmp_path / FILE).write_text(text)
    add(OVN, "10.244.2.0/24", "via", "192.0.2.2")
    node(tmp_path, peer("two", "192.0.2.2", "10.244.2.0/24"))
    eventually(lambda: routes() == ["10.244.2.0/24 via 192.0.2.2 dev eth0"])


@pytest.mark.parametrize("before", [FIRST_PROTOCOL, OTHER])
def test_uninstall_removes_the_routes_of_the_number_that_the_agent_had(tmp_path: Path, before: int) -> None:
    node(tmp_path, peer("two", "192.0.2.2", "10.244.2.0/24"), protocol=before).close()
    assert routes(before)
    if before == FIRST_PROTOCOL:
        (tmp_path / FILE).unlink()  # which versions that knew only 84 did not write
    add(ROUTE_PROTOCOL, "198.51.100.0/24", "via", "192.0.2.9")
    conf = config.load(
        ["--datastore", "kubernetes", "--run-dir", str(tmp_path), "--state-dir", "/nowhere"], {}, AGENT_OPTIONS
    )
    list(uninstall.uninstall(conf, BUILT_IN))
    assert routes(before) == []
    assert bool(routes()) == (before == OTHER), "what has another number is another's"
