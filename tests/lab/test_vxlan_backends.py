"""Nodes of both backends of the mode vxlan in one cluster, and one that changes its backend."""

from __future__ import annotations

import json

import pytest

from tests.lab import matrix, talk
from tests.lab.lab import CONF_FILE, VXLAN_CONF, Lab, LabNode, lab
from tests.lab.talk import NODE_PORT, SERVICE, SERVICE_PORT, TARGET, Servers, ask
from tests.support import eventually

KERNEL_CONF = json.dumps({**json.loads(VXLAN_CONF), "vxlanBackend": "kernel"})


def mixed(it: Lab, *backends: str) -> None:
    for node, backend in zip(it.nodes, backends, strict=True):
        if backend == "kernel":
            node.path(CONF_FILE).write_text(KERNEL_CONF)
        node.start_agent()
    it.each(LabNode.wait_ready)


def vxlan_of(node: LabNode) -> str:
    """Return what the kernel says of the node's vxlan device; empty while it is created again."""
    return node.space.exec("ip", "-d", "link", "show", "testcni-vxlan", check=False).stdout


def unreached(it: Lab) -> list[matrix.Reach]:
    return [reach for reach in matrix.measure(*matrix.ends(it)) if reach.ms is None]


def test_every_pair_of_nodes_of_both_backends() -> None:
    with lab(4, conf=VXLAN_CONF, agents=False) as it:
        mixed(it, "ebpf", "kernel", "kernel", "ebpf")
        it.each(lambda node: [node.add_pod(f"{node.name}-{n}") for n in range(2)])
        assert unreached(it) == []
        assert "external" in vxlan_of(it.nodes[0])
        assert "vxlan id 1 local 172.18.0.3 " in vxlan_of(it.nodes[1])
        two = it.nodes[1]
        pins = two.space.exec("ls", "/sys/fs/bpf/testcni/v1").stdout.split()
        assert [pin for pin in pins if not pin.startswith("guard")] == [], "eBPF only checks what pods send"
        entries = two.space.exec("bridge", "fdb", "show", "dev", "testcni-vxlan").stdout
        assert sorted(line.split()[2] for line in entries.splitlines()) == [
            "172.18.0.2",
            "172.18.0.4",
            "172.18.0.5",
        ]
        it.delete_node(it.nodes[3])
        eventually(
            lambda: "172.18.0.5" not in two.space.exec("ip", "neigh", "show", "dev", "testcni-vxlan").stdout
        )
        two.space.exec("bridge", "fdb", "del", "0e:76:ac:12:00:02", "dev", "testcni-vxlan", "dst", "172.18.0.2")
        two.space.exec("ip", "route", "del", "10.244.1.0/24")  # wakes the agent, which looks at everything
        eventually(lambda: unreached_from(it, two) == [])


def unreached_from(it: Lab, node: LabNode) -> list[str]:
    """The first pods of the nodes that are left that a node's first pod does not reach."""
    pod = next(iter(node.pods.values()))
    targets = [next(iter(other.pods.values())).address for other in it.nodes[:3]]
    return [t for t in targets if pod.exec("ping", "-c1", "-W1", t, check=False).returncode]


@pytest.mark.parametrize(("of_backend", "of_client"), [("kernel", "ebpf"), ("ebpf", "kernel")])
def test_services_between_the_backends(of_backend: str, of_client: str) -> None:
    with lab(2, conf=VXLAN_CONF, agents=False) as it, Servers() as servers:
        mixed(it, of_backend, of_client)
        one, two = it.nodes
        backend, near, far = one.add_pod("backend"), one.add_pod("near"), two.add_pod("far")
        servers.start(backend)
        talk.serve(it.nodes, backend)
        for kind in ("tcp", "udp"):
            assert ask(near, kind, SERVICE, SERVICE_PORT) == near.address
            assert ask(far, kind, SERVICE, SERVICE_PORT) == far.address
            assert ask(far, kind, backend.address, TARGET) == far.address
            assert ask(far, "udp", backend.address, TARGET, size=4000) == far.address
        for node in (one, two):
            assert ask(far, "tcp", node.address, NODE_PORT).startswith(("10.244.", "172.18."))


def test_a_node_changes_its_backend_pod_by_pod() -> None:
    with lab(2, conf=VXLAN_CONF) as it:
        one, two = it.nodes
        old, other = one.add_pod("old"), two.add_pod("other")
        one.path(CONF_FILE).write_text(KERNEL_CONF)
        new = one.add_pod("new")
        assert unreached(it) == []
        assert one.problems() == []
        assert "external" in vxlan_of(one), "as long as a pod needs it"
        one.delete_pod(old)
        eventually(lambda: "vxlan id 1" in vxlan_of(one))  # it was asked for lately
        eventually(lambda: new.exec("ping", "-c1", "-W1", other.address, check=False).returncode == 0)
        assert unreached(it) == []
        one.path(CONF_FILE).write_text(VXLAN_CONF)
        eventually(lambda: "external" in vxlan_of(one))
        one.add_pod("newer")
        assert unreached(it) == []
