"""The mode vxlan in the lab: what must not pass, what must not be lost, and what comes back by itself."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import VXLAN_CONF, Lab, LabNode, Pod, lab
from tests.lab.runner import Conf, RunnerError
from tests.lab.segment import OUTSIDE
from tests.lab.space import PYTHON, REPO
from tests.lab.talk import RATE, TARGET, Flow, Servers, arrives_whole, ask, counters
from tests.netns.frames import ethernet, ipv4, udp, vxlan
from tests.support import eventually

SEND = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
s.send(bytes.fromhex(sys.argv[1]))
"""
SEND_TUNNEL = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 8472))
"""
MACS = "0e:76:ac:12:00:02", "0a:76:78:6c:61:6e"


@pytest.fixture
def two() -> Iterator[Lab]:
    with lab(2, conf=VXLAN_CONF) as it:
        yield it


def sends(pod: Pod, frame: bytes) -> None:
    pod.exec(*PYTHON, SEND, frame.hex())


class Counted:
    """Differences of the counters of a node since the last look."""

    def __init__(self, node: LabNode) -> None:
        self._node = node
        self._before = counters(node)

    def drops(self) -> dict[str, int]:
        before, self._before = self._before, counters(self._node)
        return {
            name: count - before[name]
            for name, count in self._before.items()
            if count != before[name] and name.startswith("drop_") and name != "drop_not_ip"
        }


def test_a_pod_speaks_as_itself_only(two: Lab) -> None:
    a, b, c = two.nodes[0].add_pod("a"), two.nodes[0].add_pod("b"), two.nodes[1].add_pod("c")
    host_mac, mac = (a.result["interfaces"][n]["mac"] for n in (0, 1))
    counted = Counted(two.nodes[0])
    for target in (b, c):
        for source in (b.address, "172.18.0.2", "203.0.113.7"):
            sends(a, ethernet(host_mac, mac, ipv4(source, target.address, 17, udp(1, 2))))
    assert counted.drops() == {"drop_spoofed_ip": 6}
    sends(a, ethernet(host_mac, "0a:58:0a:f4:01:77", ipv4(a.address, c.address, 17, udp(1, 2))))
    assert counted.drops() == {"drop_spoofed_mac": 1}
    for short in (b"", ipv4(a.address, b.address, 17)[:19]):
        sends(a, ethernet(host_mac, mac, short))
    assert counted.drops() == {"drop_malformed": 2}


def test_a_pod_does_not_speak_as_its_node(two: Lab) -> None:
    one, other = two.nodes
    a = one.add_pod("a")
    counted = Counted(one)
    inside = vxlan(1, ethernet(*MACS, ipv4("10.244.1.9", "10.244.2.2", 17, udp(1, 2))))
    for target in (other.address, one.address, OUTSIDE):
        a.exec(*PYTHON, SEND_TUNNEL, target, inside.hex())
    assert counted.drops() == {"drop_pod_tunnel": 3}


def test_the_tunnel_takes_packets_of_nodes_only(two: Lab) -> None:
    one, other = two.nodes
    a = one.add_pod("a")
    counted = Counted(one)
    inside = ethernet(*MACS, ipv4("10.244.2.2", a.address, 17, udp(1, 2)))
    two.outside.exec(*PYTHON, SEND_TUNNEL, one.address, vxlan(1, inside).hex())
    assert counted.drops() == {"drop_unknown_node": 1}
    other.space.exec(*PYTHON, SEND_TUNNEL, one.address, vxlan(2, inside).hex())
    assert counted.drops() == {"drop_wrong_vni": 1}
    before = counters(one)["forwarded_local"]
    other.space.exec(*PYTHON, SEND_TUNNEL, one.address, vxlan(1, inside).hex())
    assert counted.drops() == {}
    assert counters(one)["forwarded_local"] == before + 1
    two.delete_node(other)

    def dropped() -> bool:
        """The routes to it go first, the maps a moment later."""
        other.space.exec(*PYTHON, SEND_TUNNEL, one.address, vxlan(1, inside).hex())
        return counted.drops() == {"drop_unknown_node": 1}

    eventually(dropped, every=0.2)


def test_what_no_pod_has_is_dropped_not_leaked(two: Lab) -> None:
    one, other = two.nodes
    c = other.add_pod("c")
    counted = Counted(one)
    assert ask(c, "udp", "10.244.1.77", TARGET) == "TimeoutError"
    assert counted.drops() == {"drop_no_pod": 1}
    told = one.space.exec("ping", "-c1", "-W1", "10.244.1.78", check=False)
    assert "No buffer space" in told.stderr, "the node's own programs hear of it"
    assert counted.drops().keys() == {"drop_no_pod"}


@pytest.mark.parametrize("same", [True, False])
def test_streams_arrive_whole(two: Lab, same: bool) -> None:
    a, b = two.nodes[0].add_pod("a"), two.nodes[0 if same else 1].add_pod("b")
    assert arrives_whole(a, b, 200)
    assert counters(two.nodes[0])["to_stack"] < 20, "segments to be cut take the short way too"


def test_the_mtu_follows_the_underlay_and_is_told(two: Lab) -> None:
    one, other = two.nodes
    a, b = one.add_pod("a"), other.add_pod("b")
    assert " mtu 1450 " in a.exec("ip", "link", "show", "eth0").stdout
    assert a.exec("ping", "-c1", "-W1", "-Mdo", "-s1422", b.address, check=False).returncode == 0
    a.exec("ip", "link", "set", "eth0", "mtu", "1500")
    one.space.exec("ip", "link", "set", a.result["interfaces"][0]["name"], "mtu", "1500")
    told = a.exec("ping", "-c1", "-W1", "-Mdo", "-s1472", b.address, check=False)
    assert "Frag needed" in told.stdout
    assert "mtu = 1450" in told.stdout
    assert a.exec("ping", "-c1", "-W1", "-Mdont", "-s1472", b.address, check=False).returncode == 0


def test_the_programs_are_replaced_under_traffic(two: Lab) -> None:
    one, other = two.nodes
    a, b, c = one.add_pod("a"), one.add_pod("b"), other.add_pod("c")
    for node in (one, other):
        shutil.copytree(REPO / "build/ebpf", node.path("/opt/newer"))
        for path in node.path("/opt/newer").glob("*.o"):
            path.write_bytes(path.read_bytes() + b"\0")  # another file, the same programs
    before = _programs(one)
    with Servers() as servers:
        for pod in (b, c):
            servers.start(pod)
        flows = [Flow(a, pod.address) for pod in (b, c)]
        for node in (one, other):
            node.stop_agent()
            node.start_agent("--ebpf", "/opt/newer")
        for node in (one, other):
            node.wait_ready()
        eventually(lambda: not before & _programs(one))
        time.sleep(1)
        for flow in flows:
            sent, lost = flow.end()
            assert sent > RATE
            assert lost == 0
    pins = one.space.exec("ls", "/sys/fs/bpf/testcni/v1").stdout.split()
    assert len([pin for pin in pins if pin.startswith("programs-")]) == 1


def test_pods_work_while_the_agent_is_dead(two: Lab) -> None:
    one, other = two.nodes
    a, b = one.add_pod("a"), other.add_pod("b")
    before = _programs(one)
    for node in (one, other):
        node.stop_agent(signal.SIGKILL)
    with Servers() as servers:
        servers.start(b)
        assert ask(a, "tcp", b.address, TARGET) == a.address
        one.start_agent()
        one.wait_ready()
        assert _programs(one) == before, "adopted"
        late = one.add_pod("late")
        assert ask(late, "tcp", b.address, TARGET) == late.address


def test_pods_are_known_to_maps_that_are_new(two: Lab) -> None:
    one, other = two.nodes
    a, b = one.add_pod("a"), other.add_pod("b")
    before = _programs(one)
    one.stop_agent()
    one.space.exec("rm", "-r", "/sys/fs/bpf/testcni")
    with Servers() as servers:
        servers.start(b)
        assert ask(a, "tcp", b.address, TARGET) == a.address, "what is attached needs no pins"
        one.start_agent()
        one.wait_ready()
        eventually(lambda: not before & _programs(one))
        counted = counters(one)
        assert ask(a, "tcp", b.address, TARGET) == a.address
        assert counters(one)["forwarded_remote"] > counted["forwarded_remote"]
        assert counters(one)["forwarded_local"] > counted["forwarded_local"]


def test_drift_is_found_and_repaired(two: Lab) -> None:
    one, other = two.nodes
    a, b = one.add_pod("a"), other.add_pod("b")
    conf = one.conf()
    conf = Conf(conf.name, "1.1.0", conf.plugins, conf.path)
    with Servers() as servers:
        servers.start(b)
        one.space.exec("ip", "link", "delete", "testcni-vxlan")
        eventually(lambda: ask(a, "tcp", b.address, TARGET) == a.address)
        one.space.exec("ip", "link", "set", "testcni-vxlan", "down")
        eventually(lambda: ask(a, "tcp", b.address, TARGET) == a.address)
        one.space.exec("ip", "link", "set", "testcni-vxlan", "mtu", "1400")
        eventually(lambda: " mtu 1450 " in one.space.exec("ip", "link", "show", "testcni-vxlan").stdout)
    link = a.result["interfaces"][0]["name"]
    one.runner.check(conf, "a", a.netns)

    def seen() -> bool:
        """The agent may be at work on one of the above, and repair this before it is looked at."""
        one.space.exec("tc", "qdisc", "delete", "dev", link, "clsact")
        try:
            one.runner.check(conf, "a", a.netns)
        except RunnerError as error:
            return "lacks the program veth_ingress" in str(error)
        return False

    eventually(seen, every=0.5)
    one.space.exec("ip", "route", "delete", "10.244.2.0/24")  # wakes the agent, which looks at everything
    eventually(lambda: "veth_ingress" in one.space.exec("tc", "filter", "show", "dev", link, "ingress").stdout)
    one.runner.check(conf, "a", a.netns)


def _programs(node: LabNode) -> frozenset[str]:
    script = (
        "from agent.kernel import ip_links, netlink, tc\n"
        "nl = netlink.host()\n"
        "print(*[tc.attached(nl, l.index, h) for l in ip_links.links(nl) if 'cni' in l.name for h in tc.PARENT])"
    )
    done = node.space.exec(sys.executable, "-c", script, env={"PYTHONPATH": str(REPO)})
    return frozenset(done.stdout.split())
