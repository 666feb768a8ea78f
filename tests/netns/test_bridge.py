"""The bridge of host-gw: pods keep their network when the node's blocks change, and Services work on it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.host.cni_conf_dir import Confs
from agent.ipam.attachments.attachment import link_name
from agent.kernel import ip_links, netlink, netns
from agent.kernel.ip_links import Link
from agent.model.cluster import Node
from agent.model.marks import bridge_mac
from agent.modes.hostgw import HostGwOptions
from tests.netns.node import CONF, Host, Pod, command
from tests.networks import parse_conf
from tests.support import eventually, net

ANY = {key: value for key, value in CONF.items() if key != "subnet"}  # blocks of either IP version
NETWORK = parse_conf(ANY).network
BRIDGE = HostGwOptions.of(NETWORK).bridge
UPPER, LOWER = "10.244.0.8/29", "10.244.0.0/29"
CALLS = "/proc/sys/net/bridge/bridge-nf-call-iptables"


def ready(tmp_path: Path, *blocks: str) -> Host:
    host = Host(tmp_path, blocks, conf=ANY)
    host.confs.publish(Confs(frozenset({NETWORK})))
    host.ready()
    return host


def own(host: Host, *blocks: str) -> None:
    """Give the node other blocks, and wait until its network has them."""
    wanted = tuple(map(net, blocks))
    host.put(Node("one", host.me.addresses, wanted))
    eventually(lambda: host.reconciler.status.get().blocks.get(NETWORK) == wanted)


def bridge() -> Link:
    found = ip_links.link(netlink.host(), BRIDGE)
    assert found
    return found


@pytest.mark.parametrize(
    "after",
    [
        (LOWER, UPPER),
        ("fd00:10:244::/64", UPPER),
        ("10.244.7.0/24",),
        ("fd00:10:244::/64", "10.244.7.0/24"),
    ],
    ids=["a lower block first", "an IPv6 block first", "a podCIDR replaced", "all replaced, IPv6 first"],
)
def test_a_pod_that_knows_its_gateway_for_good_keeps_its_network(tmp_path: Path, after: Sequence[str]) -> None:
    host, pod = ready(tmp_path, UPPER), Pod("c1")
    host.add(pod)
    before = bridge().mac
    pod.run("ip", "neigh", "replace", "10.244.0.9", "lladdr", before, "dev", "eth0", "nud", "permanent")
    own(host, *after)
    assert bridge().mac == before
    assert pod.reaches("192.0.2.1")
    own(host, *reversed(after))  # and when blocks change again, or go back
    own(host, after[-1])
    assert bridge().mac == before
    assert pod.reaches("192.0.2.1")


def test_a_bridge_of_an_earlier_version_keeps_its_mac(tmp_path: Path) -> None:
    command("ip", "link", "add", BRIDGE, "address", "0a:58:0a:f4:00:09", "type", "bridge")
    command("ip", "link", "set", BRIDGE, "alias", "testcni bridge", "up")
    host = ready(tmp_path, LOWER, UPPER)
    pod = Pod("c1")
    host.add(pod)
    assert bridge().mac == "0a:58:0a:f4:00:09"
    own(host, "10.244.7.0/24")
    command("ip", "link", "set", BRIDGE, "address", "0a:58:00:00:00:01")
    host.reconciler.drifted()
    eventually(lambda: bridge().mac == "0a:58:0a:f4:00:09")
    assert bridge().alias == "testcni bridge", "an earlier version knows it as its own"


def test_a_mac_that_somebody_changed_is_repaired_also_by_an_agent_that_just_began(tmp_path: Path) -> None:
    host = ready(tmp_path, UPPER)
    before = bridge().mac
    host.close()
    command("ip", "link", "set", BRIDGE, "address", "0a:58:00:00:00:01")
    ready(tmp_path, LOWER)
    eventually(lambda: bridge().mac == before)


def test_a_bridge_that_comes_again_has_the_mac_it_had(tmp_path: Path) -> None:
    host = ready(tmp_path, UPPER)
    before = bridge().mac
    own(host, LOWER)
    command("ip", "link", "del", BRIDGE)
    host.reconciler.drifted()
    eventually(lambda: ip_links.link(netlink.host(), BRIDGE))
    eventually(lambda: bridge().up and bridge().mac == before)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_bridge_of_an_earlier_version_comes_again_with_the_mac_that_pods_know(
    tmp_path: Path, restarted: bool
) -> None:
    earlier, pod = "0a:58:0a:f4:00:09", Pod("c1")
    command("ip", "link", "add", BRIDGE, "address", earlier, "type", "bridge")
    command("ip", "link", "set", BRIDGE, "alias", "testcni bridge", "up")
    host = ready(tmp_path, UPPER)
    host.add(pod)
    pod.run("ip", "neigh", "replace", "10.244.0.9", "lladdr", earlier, "dev", "eth0", "nud", "permanent")
    if restarted:
        host.close()
    command("ip", "link", "del", BRIDGE)
    if restarted:
        host = ready(tmp_path, UPPER)
    host.reconciler.drifted()
    eventually(lambda: ip_links.link(netlink.host(), BRIDGE))
    eventually(lambda: bridge().up and bridge().mac == earlier)
    eventually(lambda: pod.reaches("192.0.2.1"))


def test_a_bridge_that_was_made_by_half_is_ours(tmp_path: Path) -> None:
    """An agent that died after it had made the bridge, and before it had marked it."""
    host = ready(tmp_path, UPPER)
    command("ip", "link", "set", BRIDGE, "alias", "", "down")
    command("ip", "link", "property", "del", "dev", BRIDGE, "altname", bridge().altnames[0])
    host.reconciler.drifted()
    eventually(lambda: bridge().alias == "testcni bridge" and bridge().up and bridge().altnames)
    assert not host.reconciler.status.get().problems


@pytest.mark.parametrize(
    "removed",
    [
        f"bridge fdb del {{mac}} dev {BRIDGE} self",
        f"ip route flush dev {BRIDGE}",
        f"ip route del 10.244.0.8/29 dev {BRIDGE}",
        f"ip -6 route flush dev {BRIDGE}",
    ],
)
def test_pods_reach_their_node_again_when_its_way_to_them_was_removed(tmp_path: Path, removed: str) -> None:
    host, pod = ready(tmp_path, UPPER, "fd00:10:244::/64"), Pod("c1")
    addresses = [entry["address"].split("/")[0] for entry in host.add(pod)["ips"]]
    assert pod.reaches("192.0.2.1")
    command(*removed.format(mac=bridge().mac).split())
    host.reconciler.drifted()
    for address in addresses:
        eventually(lambda address=address: ping(address))
    eventually(lambda: pod.reaches("192.0.2.1"))
    assert not host.reconciler.status.get().problems


def ping(address: str) -> bool:
    return subprocess.run(["ping", "-c1", "-W1", address], capture_output=True, check=False).returncode == 0


def test_nodes_and_bridges_have_macs_of_their_own() -> None:
    macs = {bridge_mac(node, name) for node in ("one", "two") for name in ("testcni0", "testcni1")}
    assert len(macs) == 4


def answers(fd: int, ready: threading.Event) -> None:
    """A server of one connection in a pod."""
    netns._setns(fd)
    with socket.create_server(("0.0.0.0", 80)) as server:  # noqa: S104 - a pod of the test
        ready.set()
        connection, _from = server.accept()
        connection.close()


def connects(pod: Pod, address: str) -> bool:
    done: list[bool] = []

    def connect() -> None:
        netns._setns(pod.fd)
        try:
            socket.create_connection((address, 80), 3).close()
        except OSError:
            done.append(False)
        else:
            done.append(True)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    return done[0]


def test_a_pod_reaches_a_pod_of_its_node_by_a_service_whatever_the_nodes_switch_says(tmp_path: Path) -> None:
    """The switch of the node is another's: the bridge has one of its own."""
    Path(CALLS).write_text("0")
    host, one, two = ready(tmp_path, "10.244.1.0/24"), Pod("c1"), Pod("c2")
    host.add(one)
    address = host.add(two)["ips"][0]["address"].split("/")[0]
    command("nft", "add", "table", "ip", "services")
    command("nft", "add chain ip services pre { type nat hook prerouting priority dstnat; }")
    command("nft", f"add rule ip services pre ip daddr 10.96.0.10 dnat to {address}")
    serving = threading.Event()
    threading.Thread(target=answers, args=(two.fd, serving), daemon=True).start()
    assert serving.wait(5)
    assert connects(one, "10.96.0.10")
    assert Path(CALLS).read_text().strip() == "0", "is not ours to set"
    command("ip", "link", "set", BRIDGE, "type", "bridge", "nf_call_iptables", "0", "nf_call_ip6tables", "0")
    host.reconciler.drifted()
    eventually(lambda: bridge().nf_call)


def test_a_node_without_br_netfilter_says_what_fails_and_its_pods_work(tmp_path: Path) -> None:
    host = Host(tmp_path, conf=ANY)
    sysctls = tmp_path / "net"  # as on such a node: /proc/sys/net without `bridge`
    sysctls.mkdir()
    for name in ("ipv4", "ipv6"):
        (sysctls / name).symlink_to(f"/proc/sys/net/{name}")
    host.kernel = replace(host.kernel, sysctls=sysctls)
    host.reconciler._inputs = replace(host.reconciler._inputs, host=host.kernel)
    host.confs.publish(Confs(frozenset({NETWORK})))
    pod = Pod("c1")
    host.add(pod)
    (problem,) = eventually(lambda: host.reconciler.status.get().problems)
    assert str(problem) == (
        "bridge testcni0: the kernel module br_netfilter is not loaded, so a pod that calls a Service gets no"
        " answer from a pod of its own node; load it: modprobe br_netfilter (and name it in /etc/modules-load.d)"
    )
    assert pod.reaches("192.0.2.1")
    host.ready()
    (sysctls / "bridge").symlink_to("/proc/sys/net/bridge")
    host.reconciler.drifted()
    eventually(lambda: not host.reconciler.status.get().problems)


SWITCHED = [
    "ip link set {bridge} type bridge stp_state 1",
    "ip link set {bridge} type bridge vlan_filtering 1; bridge vlan del dev {port} vid 1",
    "ip link set {bridge} arp off; ip neigh flush dev {bridge}",
    "ip route del local 10.244.0.9 dev {bridge} table local",
    "ip -6 route del local fd00:10:244::1 dev {bridge} table local",
    "ip route flush table local dev {bridge}; ip -6 route flush table local dev {bridge}",
    "bridge link set dev {port} state 0",
    "bridge link set dev {port} state 1",
    "bridge link set dev {port} isolated on; bridge link set dev {other} isolated on",
    "bridge link set dev {port} bcast_flood off mcast_flood off",
    "bridge link set dev {port} neigh_suppress on",
    "ip link set {port} type bridge_slave proxy_arp on",
    "ip neigh replace {pod} dev {bridge} lladdr 02:00:00:00:00:99 nud permanent",
]


@pytest.mark.parametrize("change", SWITCHED)
def test_pods_keep_their_network_when_somebody_switches_the_bridge_or_a_port(tmp_path: Path, change: str) -> None:
    host, pod, other = ready(tmp_path, UPPER, "fd00:10:244::/64"), Pod("c1"), Pod("c2")
    addresses = [entry["address"].split("/")[0] for entry in host.add(pod)["ips"]]
    host.add(other)
    for address in addresses:
        eventually(lambda address=address: ping(address) and other.reaches(address))
    names = {
        "bridge": BRIDGE,
        "port": link_name("c1", "eth0"),
        "other": link_name("c2", "eth0"),
        "pod": addresses[0],
    }
    before = command("ip", "-d", "link", "show", names["port"])
    command("sh", "-c", change.format(**names))
    for one in (pod, other):
        one.run("ip", "neigh", "flush", "all")
    host.reconciler.drifted()
    eventually(lambda: all(ways(pod, other, addresses)))
    assert before.count("isolated off") == command("ip", "-d", "link", "show", names["port"]).count("isolated off")
    assert not host.reconciler.status.get().problems


def ways(pod: Pod, other: Pod, addresses: list[str]) -> tuple[bool, ...]:
    """Return for each way to and from a pod whether it works: node, other pod, gateways, and beyond them."""
    return (
        *map(ping, addresses),
        *map(other.reaches, addresses),
        pod.reaches("10.244.0.9"),
        pod.reaches("fd00:10:244::1"),
        pod.reaches("192.0.2.1"),
    )


def test_without_pyroute2_the_bridge_is_a_problem_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    host = Host(tmp_path)
    host.confs.publish(Confs(frozenset({parse_conf(CONF).network})))
    (problem,) = eventually(lambda: host.reconciler.status.get().problems)
    assert (problem.where, "pyroute2 cannot be loaded" in problem.what) == (f"bridge {BRIDGE}", True)
    assert "masquerade" in command("nft", "list", "ruleset")
