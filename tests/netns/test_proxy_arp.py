"""Proxy ARP of a bridge for addresses on other nodes: in force at once, announced; others' entries stay."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import IPv4Address
from pathlib import Path

from agent.kernel import ip_links, netlink
from agent.kernel.bpf.loader import Loader
from agent.kernel.ip_links import mac_bytes
from agent.model.marks import BPF_PINS, BRIDGE_ALIAS
from agent.objects import proxy_arp
from agent.objects.host_kernel import HostKernel
from agent.objects.state import Proxy
from tests.netns.node import OBJECTS, command

SYSCTLS = Path("/proc/sys/net")
KERNEL = HostKernel(Loader(OBJECTS, BPF_PINS))
X = IPv4Address("10.244.1.7")
ETH_P_ARP = 0x0806


def bridge(name: str, alias: str = BRIDGE_ALIAS) -> None:
    command("ip", "link", "add", name, "type", "bridge")
    command("ip", "link", "set", name, "alias", alias, "up")


def answers() -> str:
    return command("ip", "neighbour", "show", "proxy")


def sync(*wanted: Proxy) -> int:
    return proxy_arp.answer(netlink.host(), KERNEL, frozenset(wanted), ip_links.links(netlink.host()))


def test_entries_come_and_go_with_an_announcement_of_whose_mac_it_is() -> None:
    bridge("testcni0")
    command("ip", "link", "add", "port", "type", "veth", "peer", "name", "pod")
    command("ip", "link", "set", "port", "master", "testcni0", "up")
    command("ip", "link", "set", "pod", "up")
    mac = next(link.mac for link in ip_links.links(netlink.host()) if link.name == "testcni0")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as heard:
        heard.bind(("pod", ETH_P_ARP))
        heard.settimeout(5)

        def senders() -> set[bytes]:
            """MACs that are said to have the address, of the first announcement."""
            while True:
                frame = heard.recv(2048)
                if frame[28:32] == X.packed:
                    return {frame[22:28]}

        assert sync(Proxy("testcni0", X)) == 1
        assert senders() == {mac_bytes(mac)}
        assert answers().split()[:3] == [str(X), "dev", "testcni0"]
        assert (SYSCTLS / "ipv4/neigh/testcni0/proxy_delay").read_text().strip() == "0"
        assert sync(Proxy("testcni0", X)) == 0
        heard.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # it is told twice
            while heard.recv(2048):
                pass
        heard.settimeout(5)
        assert sync() == 1
        assert senders() == {bytes.fromhex("0a580af40107")}
        assert answers() == ""


def test_a_deleted_entry_is_put_back_and_others_are_left_alone() -> None:
    bridge("testcni0")
    bridge("theirs", "of another program")
    command("ip", "neighbour", "add", "proxy", "10.244.9.9", "dev", "theirs")
    sync(Proxy("testcni0", X), Proxy("theirs", X), Proxy("nowhere", X))
    command("ip", "neighbour", "delete", "proxy", str(X), "dev", "testcni0")
    assert sync(Proxy("testcni0", X)) == 1
    assert sync() == 1
    assert answers().split()[:3] == ["10.244.9.9", "dev", "theirs"]
