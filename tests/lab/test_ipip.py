"""The mode ipip in the lab: what is particular to it, and what must not pass."""

from __future__ import annotations

import json

import pytest

from agent.model.marks import ROUTE_PROTOCOL
from tests.lab import matrix, talk
from tests.lab.lab import IPIP_CONF, SERVICE_TABLE, Lab, LabNode, lab
from tests.lab.paths import WAYS, Way
from tests.lab.space import PYTHON
from tests.lab.talk import NODE_PORT, TARGET, Servers, ask
from tests.lab.test_metrics import value
from tests.netns.birds import needs_bird
from tests.netns.frames import ipv4
from tests.support import eventually

pytestmark = needs_bird

ELSEWHERE = "172.19"
SEND_IPIP = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 4)
s.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 0))
"""


@pytest.fixture(scope="module")
def way() -> Way:
    """The mode of the nodes that are shared."""
    return next(way for way in WAYS if way.name == "ipip")


def fates(node: LabNode) -> dict[str, int]:
    """Packets by fate, those that there were."""
    names = ("sent", "received", "drop_unknown_node", "drop_spoofed", "drop_malformed", "drop_failed")
    counted = {name: int(value(node, "testcni_ipip_packets_total", fate=name) or 0) for name in names}
    return {name: number for name, number in counted.items() if number}


def by_device(node: LabNode) -> bool:
    """Return whether the kernel has ipip devices, and the agent uses them."""
    return (
        "ipip" in node.space.exec("ip", "-d", "link", "show", "testcni-ipip").stdout.split("bridge")[0].split()[9:]
    )


def conf_with(mode: str) -> str:
    return json.dumps({**json.loads(IPIP_CONF), "encapsulate": mode})


def test_nothing_is_dropped_and_sessions_are_counted(three: Lab) -> None:
    three.each(lambda node: [node.add_pod(f"{node.name}-{n}") for n in range(2)])
    assert [reach for reach in matrix.measure(*matrix.ends(three)) if reach.ms is None] == []
    for node in three.nodes:
        assert node.problems() == []
        assert fates(node).keys() <= {"sent", "received"}
        # the agent looks at sessions every second or five
        eventually(lambda: value(node, "testcni_bgp_sessions", state="Established") == 2)  # noqa: B023
        eventually(lambda: value(node, "testcni_bgp_routes", direction="imported") == 2)  # noqa: B023
        eventually(lambda: value(node, "testcni_bird_kernel_routes") == 3)  # noqa: B023


def test_pods_are_as_the_seed_had_them(three: Lab) -> None:
    pod = three.nodes[0].add_pod("a")
    shown = pod.exec("ip", "-br", "address", "show", "eth0").stdout
    assert f"{pod.address}/32" in shown
    routes = pod.exec("ip", "route").stdout.split("\n")
    assert routes[0].split() == ["default", "via", "169.254.1.1", "dev", "eth0"]
    assert routes[1].split() == ["169.254.1.1", "dev", "eth0", "scope", "link"]
    assert "mtu 1480" in pod.exec("ip", "link", "show", "eth0").stdout
    link = pod.result["interfaces"][0]["name"]
    node = three.nodes[0].space
    assert node.exec("sysctl", "-n", f"net.ipv4.conf.{link}.proxy_arp").stdout == "1\n"
    to_pod = node.exec("ip", "route", "show", "dev", link).stdout
    assert f"{pod.address} proto {ROUTE_PROTOCOL} scope link" in to_pod
    assert "10.244.1.1/32" in node.exec("ip", "-br", "address", "show", "testcni-ipip").stdout


def test_the_tunnel_takes_packets_of_nodes_only() -> None:
    with lab(3, conf=IPIP_CONF) as it:
        it.wait_converged()
        send_from_strangers(it)


def send_from_strangers(three: Lab) -> None:
    one, two, _ = three.nodes
    pod = one.add_pod("a")
    inside = ipv4("10.244.2.2", pod.address, 17, b"\0" * 20).hex()
    before = fates(one)
    three.outside.exec(*PYTHON, SEND_IPIP, one.address, inside)
    eventually(lambda: fates(one).get("drop_unknown_node") == 1)
    two.space.exec(*PYTHON, SEND_IPIP, one.address, inside)
    if not by_device(one):
        eventually(lambda: fates(one).get("received", 0) == before.get("received", 0) + 1)
        two.space.exec(*PYTHON, SEND_IPIP, one.address, ipv4("10.244.3.2", pod.address, 17).hex())
        eventually(lambda: fates(one).get("drop_spoofed") == 1)
    three.delete_node(two)
    eventually(lambda: "10.244.2.0/24" not in one.bird_routes())
    two.space.exec(*PYTHON, SEND_IPIP, one.address, inside)
    eventually(lambda: fates(one).get("drop_unknown_node") == 2)


def test_an_address_that_no_pod_has_is_answered_by_an_error(three: Lab) -> None:
    pod = three.nodes[0].add_pod("a")
    for address in ("10.244.1.77", "10.244.2.77"):
        assert "Destination Host Unreachable" in pod.exec("ping", "-c1", "-W1", address, check=False).stdout


@pytest.mark.parametrize(("option", "sent"), [("always", True), ("crossSubnet", False), ("never", False)])
def test_within_a_subnet(option: str, sent: bool) -> None:
    with lab(2, conf=conf_with(option)) as it:
        it.wait_converged()
        a, b = (node.add_pod(f"pod{node.number}") for node in it.nodes)
        with Servers() as servers:
            servers.start(b)
            assert ask(a, "tcp", b.address, TARGET) == a.address
            assert ask(it.nodes[0].space, "tcp", b.address, TARGET) in ("10.244.1.1", it.nodes[0].address)
        mtu = 1500 if option == "never" else 1480
        assert f"mtu {mtu} " in a.exec("ip", "link", "show", "eth0").stdout
        if not by_device(it.nodes[0]):
            assert bool(fates(it.nodes[0])) is sent
        assert it.nodes[0].problems() == []


@pytest.mark.parametrize("option", ["always", "crossSubnet", "never"])
def test_across_a_router(option: str) -> None:
    with lab(3, conf=conf_with(option), agents=False) as it:
        one, _, three = it.nodes
        it.outside.batch([f"address add {ELSEWHERE}.255.254/16 dev eth0"])
        it.outside.exec("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")
        three.space.batch([
            "address flush dev eth0 scope global",
            f"address add {ELSEWHERE}.0.4/16 dev eth0",
            f"route replace default via {ELSEWHERE}.255.254",
        ])  # fmt: skip
        three.address = f"{ELSEWHERE}.0.4"
        it.put_node(three)
        it.each(lambda node: node.start_agent())
        it.each(LabNode.wait_ready)
        pods = [node.add_pod(f"pod{node.number}") for node in it.nodes]
        if option == "never":
            eventually(lambda: "10.244.2.0/24" in one.bird_routes())
            assert "may be encapsulated" in str(one.problems())
            assert "10.244.3.0/24" not in one.bird_routes()
            return
        it.wait_converged()
        with Servers() as servers:
            for pod in pods:
                servers.start(pod)
            for source in pods:
                for target in pods:
                    assert ask(source, "tcp", target.address, TARGET) == source.address
            assert ask(one.space, "tcp", pods[2].address, TARGET) == "10.244.1.1"
        assert [node.problems() for node in it.nodes] == [[], [], []]


@pytest.mark.parametrize("strict", [0, 1])
def test_a_node_with_ebpf_and_one_with_a_device(strict: int) -> None:
    with lab(2, conf=IPIP_CONF, agents=False) as it:
        one, two = it.nodes
        for node in it.nodes:
            node.space.exec("sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={strict}")
        one.start_agent("--ipip", "ebpf")
        two.start_agent()
        it.each(LabNode.wait_ready)
        if not by_device(two):
            pytest.skip("this kernel has no ipip devices")
        it.wait_converged()
        a, b = one.add_pod("a"), two.add_pod("b")
        with Servers() as servers:
            for pod in (a, b):
                servers.start(pod)
            assert ask(a, "tcp", b.address, TARGET) == a.address
            assert ask(b, "tcp", a.address, TARGET) == b.address
            assert ask(a, "udp", b.address, TARGET, size=5000) == a.address
            assert ask(b, "udp", a.address, TARGET, size=5000) == b.address
            assert ask(one.space, "tcp", b.address, TARGET) == "10.244.1.1"
            assert ask(two.space, "tcp", a.address, TARGET) == "10.244.2.1"
            for backend in (a, b):
                talk.serve(it.nodes, backend)
                for client in (it.outside, one.space, two.space):
                    for node in it.nodes:
                        seen = ask(client, "tcp", node.address, NODE_PORT)
                        assert seen.startswith(("10.244.", "172.18.")), (backend.name, node.name, seen)
                for node in it.nodes:
                    node.space.exec("nft", "delete", "table", *SERVICE_TABLE.split())
        assert fates(one).keys() == {"sent", "received"}
        assert fates(two) == {}
