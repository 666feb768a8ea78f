"""A pod sends tunnel packets to another node, which must not take them for its own node's.

Nodes of host-gw and of vxlan side by side, as while the mode is being changed; by each way that masquerade, or a
Service, makes the outer source that of a node.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from agent.modes.vxlan.maps import tunnel_mac
from tests.lab.lab import SERVICE_TABLE, Lab, LabNode, Pod, lab
from tests.lab.talk import NODE_PORT, SERVICE, SERVICE_PORT, counters
from tests.netns.frames import UDP, ethernet, ipv4, udp
from tests.support import eventually

EVIL, GOOD = 9998, 9999  # UDP ports of the victim
SENDER = "0a:76:78:6c:61:6e"
SECOND = "172.18.100.2"  # of node 2, and no InternalIP
NOTHING = bytes([1, 1, 1, 1])  # no-operation options (RFC 791)
# Datagrams to an address and a port, with IPv4 options where there are some.
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
options = bytes.fromhex(sys.argv[3])
if options:
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
s.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: they may be cut
for one in sys.argv[4:]:
    s.sendto(bytes.fromhex(one), (sys.argv[1], int(sys.argv[2])))
"""
HEARD = f"""
table ip heard {{
  counter evil {{ }}
  counter good {{ }}
  chain input {{ type filter hook prerouting priority -300;
    udp dport {EVIL} counter name evil
    udp dport {GOOD} counter name good
  }}
}}
"""


def conf(mode: str, **more: object) -> str:
    return json.dumps({
        "cniVersion": "1.1.0", "name": "testcni", "type": "testcni", "mode": mode, "subnet": "10.244.0.0/16",
        **more,
    })  # fmt: skip


@dataclass
class Attack:
    """A hostile pod of node 1, and its victim, a pod of node 2."""

    it: Lab
    hostile: Pod
    victim: Pod
    port: int = 8472

    def tunnelled(self, source: str, size: int = 4) -> str:
        """A vxlan packet with a datagram for the victim (RFC 7348)."""
        inner = ipv4(source, self.victim.address, UDP, udp(1, EVIL, b"x" * size))
        mac = tunnel_mac(IPv4Address(self.it.nodes[1].address))
        return (b"\x08\0\0\0" + (1 << 8).to_bytes(4, "big") + ethernet(mac, SENDER, inner)).hex()

    def heard(self, name: str) -> int:
        out = self.victim.exec("nft", "-j", "list", "counter", "ip", "heard", name).stdout
        return int(json.loads(out)["nftables"][-1]["counter"]["packets"])

    def reaches(self) -> bool:
        """Return whether the hostile pod, or its node for it, knows the way to the victim."""
        self.hostile.exec(sys.executable, "-c", SEND, self.victim.address, str(GOOD), "", "00")
        return self.heard("good") > 0

    def send(self, address: str, port: int, options: bytes = b"", size: int = 4) -> None:
        """To an address, from somebody outside and from pods of each node; and then a good packet."""
        sources = ("203.0.113.9", "10.244.3.77", "10.244.2.77", self.hostile.address)
        evil = [self.tunnelled(source, size) for source in sources]
        before = self.heard("good")
        self.hostile.exec(sys.executable, "-c", SEND, address, str(port), options.hex(), *evil)
        self.hostile.exec(sys.executable, "-c", SEND, self.victim.address, str(GOOD), "", "00")
        eventually(lambda: self.heard("good") > before)


def translate(node: LabNode, match: str, to: str) -> None:
    """As kube-proxy translates for a Service, with the node's own address as the new source."""
    node.space.exec("nft", "-f", "-", stdin=f"""
        table {SERVICE_TABLE} {{
          chain pre {{ type nat hook prerouting priority -100;
            {match} meta mark set 0x4000 dnat to {to}
          }}
          chain post {{ type nat hook postrouting priority 99;
            meta mark 0x4000 masquerade
          }}
        }}""")  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[Lab]:
    with lab(3, conf=lambda node: conf("host-gw" if node.number == 1 else "vxlan")) as it:
        it.nodes[1].space.batch([f"address add {SECOND}/16 dev eth0"])
        yield it


@pytest.fixture
def attack(nodes: Lab) -> Iterator[Attack]:
    yield begun(nodes)
    nodes.each(LabNode.tidy)


def begun(it: Lab, port: int = 8472) -> Attack:
    victim = it.nodes[1].add_pod("victim")
    victim.exec("nft", HEARD)
    found = Attack(it, it.nodes[0].add_pod("hostile"), victim, port)
    eventually(found.reaches)
    return found


def direct(attack: Attack) -> None:
    for address in (SECOND, attack.it.nodes[1].address):
        attack.send(address, attack.port)


def with_options(attack: Attack) -> None:
    attack.send(SECOND, attack.port, NOTHING)


def in_fragments(attack: Attack) -> None:
    attack.send(SECOND, attack.port, size=4000)


def by_a_service(attack: Attack) -> None:
    for address in (SECOND, attack.it.nodes[1].address):
        translate(attack.it.nodes[0], f"ip daddr {SERVICE} udp dport {SERVICE_PORT}", f"{address}:{attack.port}")
        attack.send(SERVICE, SERVICE_PORT)
        attack.it.nodes[0].space.exec("nft", f"delete table {SERVICE_TABLE}")


def by_its_own_node_port(attack: Attack) -> None:
    one = attack.it.nodes[0]
    translate(one, f"ip daddr {one.address} udp dport {NODE_PORT}", f"{SECOND}:{attack.port}")
    attack.send(one.address, NODE_PORT)


def by_the_victims_node_port(attack: Attack) -> None:
    two = attack.it.nodes[1]
    translate(two, f"udp dport {NODE_PORT}", f"{two.address}:{attack.port}")
    attack.send(SECOND, NODE_PORT)


def by_a_third_nodes_port(attack: Attack) -> None:
    two, three = attack.it.nodes[1:]
    translate(three, f"udp dport {NODE_PORT}", f"{two.address}:{attack.port}")
    attack.send(three.address, NODE_PORT)


WAYS: list[Callable[[Attack], None]] = [
    direct,
    with_options,
    in_fragments,
    by_a_service,
    by_its_own_node_port,
    by_the_victims_node_port,
    by_a_third_nodes_port,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_pod_of_a_host_gw_node_injects_nothing_into_pods_of_vxlan(
    attack: Attack, way: Callable[[Attack], None]
) -> None:
    way(attack)
    assert attack.heard("evil") == 0


OF_VXLAN = direct, by_a_service, by_its_own_node_port, by_the_victims_node_port, by_a_third_nodes_port


@pytest.mark.parametrize(
    ("hostile", "victim", "more"),
    [
        ("vxlan", "vxlan", {}),
        ("host-gw", "vxlan", {"port": 4790}),
        ("host-gw", "vxlan", {"vxlanBackend": "kernel"}),
        ("vxlan", "vxlan", {"vxlanBackend": "kernel"}),
        ("ipip", "vxlan", {}),
    ],
    ids=["vxlan", "another port", "host-gw to kernel", "kernel", "ipip"],
)
def test_a_pod_of_whatever_mode_injects_nothing_into_pods_of_vxlan(
    hostile: str, victim: str, more: dict[str, object]
) -> None:
    if hostile == "ipip" and not shutil.which("bird"):
        pytest.skip("no BIRD")
    with lab(3, conf=lambda node: conf(hostile if node.number == 1 else victim, **more)) as it:
        it.nodes[1].space.batch([f"address add {SECOND}/16 dev eth0"])
        attack = begun(it, int(str(more.get("port", 8472))))
        for way in OF_VXLAN:
            way(attack)
            assert attack.heard("evil") == 0, way.__name__
            for node in it.nodes:
                node.space.exec("nft", f"add table {SERVICE_TABLE}; delete table {SERVICE_TABLE}")


def test_a_node_is_not_believed_that_sends_as_another_nodes_pod(attack: Attack) -> None:
    """The sender is a node, or a pod that makes its node send so."""
    one, two, three = attack.it.nodes
    before = counters(two).get("drop_spoofed_node", 0)
    theirs = [attack.tunnelled(source) for source in ("10.244.3.77", "10.244.2.77")]
    own = attack.tunnelled("10.244.1.77")
    for node, packets in ((one, [*theirs, own]), (three, [own])):
        node.space.exec(sys.executable, "-c", SEND, two.address, "8472", "", *packets)
    eventually(lambda: counters(two)["drop_spoofed_node"] == before + 2)
    eventually(lambda: attack.heard("evil") == 2)  # as a pod of a node that is in no tunnel
    assert three.problems() == []
