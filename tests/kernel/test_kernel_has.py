"""The guest has the kinds of devices that a machine's own kernel may lack."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.kernel.nets import Nets, ip

ON_A_PARENT = ("ipvlan mode l2", "ipvlan mode l3", "ipvlan mode l3s", *(
    f"macvlan mode {mode}" for mode in ("bridge", "private", "vepa", "passthru")
))  # fmt: skip


def kind(namespace: str, device: str) -> str:
    return str(json.loads(ip("-n", namespace, "-d", "-j", "link", "show", device))[0]["linkinfo"]["info_kind"])


@pytest.mark.parametrize("wanted", ["dummy", "bridge", "vxlan id 1 dstport 4789", "ipip remote 192.0.2.1"])
def test_a_device_can_be_made(nets: Nets, wanted: str) -> None:
    nets.add("one")
    ip("-n", "one", "link", "add", "it", "type", *wanted.split())
    assert kind("one", "it") == wanted.split(maxsplit=1)[0]


@pytest.mark.parametrize("wanted", ON_A_PARENT)
@pytest.mark.parametrize("parent", ["veth", "bond"])
def test_a_device_can_be_made_on_a_parent(nets: Nets, parent: str, wanted: str) -> None:
    nets.add("one")
    ip("-n", "one", "link", "add", "parent", "type", parent)
    ip("-n", "one", "link", "add", "it", "link", "parent", "type", *wanted.split())
    assert kind("one", "it") == wanted.split(maxsplit=1)[0]


def test_a_namespace_has_the_ipip_device_that_takes_from_anybody(nets: Nets) -> None:
    nets.add("one")
    assert kind("one", "tunl0") == "ipip"


@pytest.mark.parametrize("family", ["inet", "ip", "ip6", "arp", "bridge", "netdev"])
def test_nft_has_a_family(family: str) -> None:
    script = f"table {family} probe {{ chain none {{ counter accept; }}; }}\ndelete table {family} probe\n"
    done = subprocess.run(("nft", "-f", "-"), input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_netem_delays(nets: Nets) -> None:
    nets.add("one")
    ip("netns", "exec", "one", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "30ms")
    out = ip("netns", "exec", "one", "ping", "-c1", "-W2", "127.0.0.1")
    assert float(out.partition("time=")[2].split()[0]) >= 60


def test_the_machines_root_is_there_and_cannot_be_changed() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert [words[2] for words in mounts if words[1] == "/"] == ["overlay"]
    assert [words for words in mounts if words[2] == "hostfs"] == []
