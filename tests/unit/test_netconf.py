"""Netconfs: the seed's as they stand, and for every wrong one the field, the value and what is allowed."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cni import netconf
from agent.codec import cni_args
from agent.codec.cni_args import PodIdentity
from agent.errors import CniError, Code
from agent.model.network import Network
from agent.modes.parent.options import SERVICES
from tests.networks import network_of, parse_conf, read_conf
from tests.unit.properties import examples

HOST_GW = """{
  "cniVersion": "0.3.0",
  "name": "testcni",
  "type": "testcni",
  "bridge": "testcni0",
  "subnet": "10.244.0.0/16"
}"""
VXLAN = """{
  "cniVersion": "0.3.0",
  "name": "testcni",
  "type": "testcni",
  "mode": "vxlan",
  "subnet": "10.244.0.0"
}"""
IPIP = VXLAN.replace("vxlan", "ipip").replace("10.244.0.0", "10.244.0.0/16")
IPVLAN = """{
  "cniVersion": "0.3.0",
  "name": "testcni",
  "type": "testcni",
  "mode": "ipvlan",
  "subnet": "192.168.64.0/24",
  "ipam": {
    "rangeStart": "192.168.64.90",
    "rangeEnd": "192.168.64.100"
  }
}"""
PODS = ipaddress.ip_network("10.244.0.0/16")
BASE: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "testcni"}


@pytest.mark.parametrize(
    ("text", "network"),
    [
        (HOST_GW, network_of("testcni", "host-gw", PODS, bridge="testcni0")),
        (VXLAN, network_of("testcni", "vxlan", PODS)),
        (IPIP, network_of("testcni", "ipip", PODS)),
        (
            IPVLAN,
            network_of(
                "testcni",
                "ipvlan",
                ipaddress.ip_network("192.168.64.0/24"),
                range_start=ipaddress.ip_address("192.168.64.90"),
                range_end=ipaddress.ip_address("192.168.64.100"),
                link_mode="l2",
                via_host=SERVICES,
            ),
        ),
    ],
)
def test_the_seeds_confs_letter_for_letter(text: str, network: Network) -> None:
    assert read_conf(text) == netconf.NetConf("0.3.0", network, probe=network.shared)


@pytest.mark.parametrize(
    ("text", "subnet"),
    [("10.0.0.0", "10.0.0.0/8"), ("10.244.0.0", "10.244.0.0/16"), ("10.244.7.0", "10.244.7.0/24"),
     ("10.244.7.0/25", "10.244.7.0/25"), ("fd00::/64", "fd00::/64")],
)  # fmt: skip
def test_a_subnet_without_mask_has_that_of_its_zero_bytes(text: str, subnet: str) -> None:
    assert parse_conf({**BASE, "subnet": text}).network.subnet == ipaddress.ip_network(subnet)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"name": "a b"}, "name"),
    ({"name": "x" * 64}, "name"),
    ({"name": 5}, "name"),
    ({"mode": "hostgw"}, "mode"),
    ({"mode": ["host-gw"]}, "mode"),
    ({"subnet": "10.244.1.5/16"}, "subnet"),
    ({"subnet": "10.244.1.5"}, "subnet"),
    ({"subnet": "0.0.0.0/0"}, "subnet"),
    ({"subnet": 10}, "subnet"),
    ({"bridge": "sixteen-letters-"}, "bridge"),
    ({"bridge": "a/b"}, "bridge"),
    ({"bridge": ".."}, "bridge"),
    ({"mtu": 100}, "mtu"),
    ({"mtu": True}, "mtu"),
    ({"mtu": "1500"}, "mtu"),
    ({"vni": 0}, "vni"),
    ({"vni": 1 << 24}, "vni"),
    ({"vni": True}, "vni"),
    ({"vxlanBackend": "bpf"}, "vxlanBackend"),
    ({"port": 65536}, "port"),
    ({"port": "8472"}, "port"),
    ({"ipMasq": "yes"}, "ipMasq"),
    ({"hairpinMode": 1}, "hairpinMode"),
    ({"ipam": []}, "ipam"),
    ({"ipam": {"rangeStart": "10.244.0.0/16"}}, "ipam.rangeStart"),
    ({"subnet": "10.244.0.0/16", "ipam": {"rangeEnd": "10.245.0.1"}}, "ipam.rangeEnd"),
    ({"ipam": {"rangeStart": "10.244.0.9", "rangeEnd": "10.244.0.8"}}, "ipam.rangeEnd"),
    ({"ipam": {"type": "host-local"}}, "ipam.type"),
    ({"ipam": {"probe": "yes"}}, "ipam.probe"),
    ({"ipam": {"probe": True}}, "ipam.probe"),
    ({"mode": "ipvlan", "linkMode": "l3", "subnet": "10.9.0.0/16", "ipam": {"probe": True}}, "ipam.probe"),
    ({"ipam": {"routes": [{"gw": "10.0.0.1"}]}}, r"ipam.routes\[0\]"),
    ({"ipam": {"routes": [{"dst": "10.0.0.1/8"}]}}, r"ipam.routes\[0\].dst"),
    ({"ipam": {"routes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]}}, r"ipam.routes\[0\].gw"),
    ({"dns": {"nameservers": "10.0.0.10"}}, "dns.nameservers"),
    ({"dns": {"servers": []}}, "dns.servers"),
    ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, "runtimeConfig.mac"),
    ({"runtimeConfig": {"ips": ["10.0.0"]}}, r"runtimeConfig.ips\[0\]"),
    ({"capabilities": {"portMappings": True}}, "capabilities"),
    ({"args": {"cni": {"ips": ["x"]}}}, r"args.cni.ips\[0\]"),
    ({"prevResult": []}, "prevResult"),
    ({"cni.dev/valid-attachments": [{"id": "x"}]}, "cni.dev/valid-attachments"),
    ({"brigde": "x"}, "brigde"),
]


@pytest.mark.parametrize(("fields", "where"), WRONG, ids=[json.dumps(fields)[:60] for fields, _ in WRONG])
def test_a_wrong_field_is_error_7_with_its_name_and_what_is_allowed(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(CniError, match=where) as caught:
        parse_conf({**BASE, **fields})
    assert caught.value.code == Code.INVALID_CONFIG
    assert caught.value.details.startswith("allowed: ")


def test_an_unknown_version_is_error_1() -> None:
    with pytest.raises(CniError, match=r"'2\.0' is not supported") as caught:
        parse_conf({**BASE, "cniVersion": "2.0"})
    assert caught.value.code == Code.INCOMPATIBLE_VERSION


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "[" * 100_000])
def test_what_is_no_json_object_is_error_6(text: str) -> None:
    with pytest.raises(CniError, match="netconf is") as caught:
        read_conf(text)
    assert caught.value.code == Code.DECODING_FAILURE


def test_keys_of_others_pass() -> None:
    foreign = {"example.com/key": 1, "disableCheck": True, "socket": "/x", "agentWait": 1, "stateDir": "/y"}
    assert parse_conf({**BASE, **foreign}) == parse_conf(BASE)


def test_wishes_for_addresses_by_rank() -> None:
    def asked(**fields: Any) -> list[str]:
        return [str(a) for a in parse_conf({**BASE, **fields}, "IP=10.0.0.3,fd00::3;MAC=02-00-00-00-00-03").ips]

    args, capability = {"cni": {"ips": ["10.0.0.1/24"]}}, {"ips": ["10.0.0.2"]}
    assert asked() == ["10.0.0.3", "fd00::3"]
    assert asked(runtimeConfig=capability) == ["10.0.0.2"]
    assert asked(runtimeConfig=capability, args=args) == ["10.0.0.1"]


def test_cni_args() -> None:
    kubelet = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=y"
    assert read_conf(HOST_GW, kubelet) == read_conf(HOST_GW)
    assert cni_args.pod(kubelet) == PodIdentity("ns/web-0", "y")
    assert cni_args.pod("") is cni_args.pod("IP=10.0.0.1") is None
    assert read_conf(HOST_GW, "MAC=02:00:00:00:00:03").mac == "02:00:00:00:00:03"
    for args in ("WHO=me", "IgnoreUnknown=0;WHO=me", "IP"):
        with pytest.raises(CniError, match="CNI_ARGS") as caught:
            read_conf(HOST_GW, args)
        assert caught.value.code == Code.INVALID_ENVIRONMENT
    assert read_conf(HOST_GW, "IgnoreUnknown=true;WHO=me")


KEYS = ["name", "mode", "subnet", "bridge", "mtu", "vni", "port", "vxlanBackend", "ipMasq", "hairpinMode", "ipam",
        "dns", "runtimeConfig", "args", "capabilities", "prevResult", "cni.dev/valid-attachments", "cniVersion",
        "unknown"]  # fmt: skip
SUBKEYS = ["rangeStart", "routes", "dst", "gw", "ips", "mac", "cni", "nameservers", "containerID", "x"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(
    ["10.0.0.0/8", "10.0.0.1", "fd00::/64", "02:00:00:00:00:01", "1.1.0", "host-gw"])  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SUBKEYS), inner, max_size=3),
)


@settings(max_examples=examples(300), deadline=None)
# few fields: the first wrong one is the answer, and the others would not be read
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), st.text(max_size=30))
def test_whatever_comes_is_a_netconf_or_a_cni_error(fields: dict[str, Any], args: str) -> None:
    try:
        parse_conf({**BASE, **fields}, args)
    except CniError as error:
        assert error.msg  # noqa: PT017 - both ways out are fine, a third is not
