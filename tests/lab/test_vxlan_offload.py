"""The tunnel's self-test: a NIC that corrupts checksums, one that does not, and peers that don't answer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab.lab import VXLAN_CONF, LabNode, lab
from tests.lab.space import REPO
from tests.lab.talk import TARGET, Servers, ask
from tests.support import eventually


@pytest.fixture(scope="module")
def broken_nic(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    built = tmp_path_factory.mktemp("nic") / "broken_nic.o"
    triplet = subprocess.run(
        ["gcc", "-print-multiarch"], capture_output=True, text=True, check=True
    ).stdout.strip()
    command = ["clang", "-O2", "-g", "-target", "bpf", f"-I/usr/include/{triplet}", "-c"]
    subprocess.run([*command, str(REPO / "tests/lab/broken_nic.c"), "-o", str(built)], check=True)
    return Path(built).read_bytes()


def breaks(node: LabNode, broken_nic: bytes) -> None:
    node.path("/opt/broken_nic.o").write_bytes(broken_nic)
    node.space.exec("tc", "qdisc", "add", "dev", "eth0", "clsact")
    node.space.exec(
        "tc", "filter", "add", "dev", "eth0", "egress", "bpf", "da", "obj", "/opt/broken_nic.o", "sec", "tc"
    )


@pytest.mark.parametrize("backend", ["ebpf", "kernel"])
def test_a_nic_that_corrupts_checksums_is_done_without(broken_nic: bytes, backend: str) -> None:
    conf = VXLAN_CONF.replace('"mode"', f'"vxlanBackend": "{backend}", "mode"')
    with lab(2, conf=conf, agents=False) as it, Servers() as servers:
        one, two = it.nodes
        breaks(one, broken_nic)
        it.each(lambda node: node.start_agent())
        it.each(LabNode.wait_ready)
        a, b = one.add_pod("a"), two.add_pod("b")
        servers.start(b)
        eventually(lambda: "corrupts checksums" in str(one.problems()))
        assert ask(a, "udp", b.address, TARGET) == a.address
        assert two.problems() == []
        one.stop_agent()
        one.start_agent()
        one.wait_ready()
        eventually(lambda: "corrupts checksums" in str(one.problems()))
        one.space.exec("tc", "qdisc", "del", "dev", "eth0", "clsact")
        one.space.exec("ip", "link", "delete", "testcni-vxlan")
        eventually(lambda: one.problems() == [])
        assert ask(a, "udp", b.address, TARGET) == a.address


def test_a_peer_that_does_not_answer_says_nothing() -> None:
    with lab(2, conf=VXLAN_CONF) as it:
        one, two = it.nodes
        two.space.exec(
            "nft", "add table ip mute { chain in { type filter hook input priority 0; udp dport > 60000 drop; }; }"
        )
        one.space.exec("ip", "link", "delete", "testcni-vxlan")
        eventually(lambda: one.space.exec("ip", "link", "show", "testcni-vxlan", check=False).returncode == 0)
        with pytest.raises(AssertionError):
            eventually(lambda: any("datagrams" in str(p) or "checksum" in str(p) for p in one.problems()), 8)
