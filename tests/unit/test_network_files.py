"""Networks in files of version 0.1.0, which has all options of all modes: each version reads the files of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.codec.network_json import decode_network, encode_network
from agent.ipam.attachments import attachment
from agent.ipam.attachments.attachment import Attachment, Lease
from agent.model.network import Network
from agent.modes.vxlan.options import VXLAN, VxlanOptions
from agent.node import ready_state_file
from tests.networks import OPTIONS, parse_conf
from tests.support import ip, net

EARLIER: dict[str, Any] = {
    "name": "net", "mode": "host-gw", "subnet": None, "bridge": "testcni0", "mtu": None, "masquerade": True,
    "hairpin": True, "range_start": None, "range_end": None, "vni": 1, "port": 8472, "encapsulate": "always",
    "master": None, "link_mode": "", "gateway": None, "via_host": [], "vxlan_backend": "ebpf", "spoof_check": True,
    "pool": "",
}  # fmt: skip
"""As version 0.1.0 wrote a network of which the netconf says nothing; its readers took these for missing keys."""

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    (
        {"bridge": "br7", "hairpinMode": False, "mtu": 1400, "subnet": "10.244.0.0/16",
         "ipam": {"rangeStart": "10.244.1.5"}},
        {"bridge": "br7", "hairpin": False, "mtu": 1400, "subnet": "10.244.0.0/16", "range_start": "10.244.1.5"},
    ),
    (
        {"mode": "vxlan", "vni": 7, "port": 4789, "vxlanBackend": "kernel"},
        {"mode": "vxlan", "vni": 7, "port": 4789, "vxlan_backend": "kernel"},
    ),
    ({"port": 4789, "encapsulate": "never"}, {"port": 4789, "encapsulate": "never"}),
    (
        {"mode": "ipip", "encapsulate": "crossSubnet", "ipMasq": False, "bridge": "br7"},
        {"mode": "ipip", "encapsulate": "crossSubnet", "masquerade": False, "bridge": "br7"},
    ),
    (
        {"mode": "ipvlan", "linkMode": "l3s", "master": "eth1", "subnet": "192.0.2.0/24",
         "viaHost": ["10.0.0.0/8", "172.16.0.0/12"], "ipam": {"gateway": "192.0.2.254"}},
        {"mode": "ipvlan", "link_mode": "l3s", "master": "eth1", "subnet": "192.0.2.0/24",
         "via_host": ["10.0.0.0/8", "172.16.0.0/12"], "gateway": "192.0.2.254"},
    ),
    (
        {"mode": "macvlan", "subnet": "192.0.2.0/24", "spoofCheck": False, "vni": 9},
        {"mode": "macvlan", "subnet": "192.0.2.0/24", "spoof_check": False, "vni": 9, "link_mode": "bridge",
         "via_host": ["10.96.0.0/12"]},
    ),
]  # fmt: skip
"""Netconfs, and what version 0.1.0 wrote of their networks that differs from EARLIER."""
files = pytest.mark.parametrize(("conf", "written"), CASES, ids=[json.dumps(conf)[:60] for conf, _ in CASES])


def of(conf: dict[str, Any]) -> Network:
    return parse_conf({"cniVersion": "1.1.0", "name": "net", "type": "testcni", **conf}).network


@files
def test_a_network_of_an_earlier_file_is_that_of_the_netconf(
    tmp_path: Path, conf: dict[str, Any], written: dict[str, Any]
) -> None:
    doc = {**EARLIER, **written}
    assert decode_network(doc, OPTIONS) == of(conf), "else its pods are on a network of their own"
    notes = tmp_path / "prepared.json"
    notes.write_text(json.dumps({"format": 1, "networks": [{"network": doc, "blocks": ["10.244.1.0/24"]}]}))
    assert dict(ready_state_file.load(notes, OPTIONS).blocks) == {of(conf): (net("10.244.1.0/24"),)}
    line = {
        "format": 2, "container_id": "c1", "ifname": "eth0", "network": doc, "netns": "/n", "pod": "ns/pod",
        "leases": [{"address": "10.244.1.2", "block": "10.244.1.0/24"}], "mac": "0a:58:0a:f4:01:02",
    }  # fmt: skip
    lease = Lease(ip("10.244.1.2"), net("10.244.1.0/24"))
    pod = Attachment("c1", "eth0", of(conf), "/n", "ns/pod", (lease,), "0a:58:0a:f4:01:02")
    assert attachment.decode(json.dumps(line).encode(), OPTIONS, whole=False) == pod


@files
def test_an_earlier_agent_reads_a_file_of_today_as_its_own(conf: dict[str, Any], written: dict[str, Any]) -> None:
    today = json.loads(json.dumps(encode_network(of(conf))))
    known = {key: value for key, value in today.items() if key in EARLIER}  # it skips the others
    assert {**EARLIER, **known} == {**EARLIER, **written}


def test_options_of_another_mode_are_for_the_change_to_it() -> None:
    network = of({"vni": 7})
    vxlan = network.in_mode(VxlanOptions)
    assert (vxlan.mode, VxlanOptions.of(vxlan).vni, vxlan.transition) == (VXLAN, 7, ())
    assert vxlan == of({"mode": "vxlan", "vni": 7})
    assert of({"bridge": "br7", "mode": "vxlan"}).in_mode(OPTIONS["host-gw"]) == of({"bridge": "br7"})
    with pytest.raises(TypeError, match="host-gw"):
        VxlanOptions.of(network)
