"""ADD's answer in each version of CNI."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cni import netconf, result
from agent.errors import CniError, Code
from agent.modes.base import Wired
from tests.networks import parse_conf

WIRED = Wired(
    interfaces=[{"name": "br", "mac": "m", "mtu": 1500},
                {"name": "eth0", "mac": "m", "mtu": 1500, "sandbox": "/n"}],
    ips=[{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1},
         {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 1}],
    routes=[{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
)  # fmt: skip


def conf(version: str, **more: Any) -> netconf.NetConf:
    return parse_conf({"cniVersion": version, "name": "net", **more})


@pytest.mark.parametrize("version", netconf.VERSIONS)
def test_each_version_has_its_own_fields(version: str) -> None:
    told = result.render(conf(version), WIRED)
    assert told["cniVersion"] == version
    assert [ip.get("version") for ip in told["ips"]] == (["4", "6"] if version < "1" else [None, None])
    assert [i.get("mtu") for i in told["interfaces"]] == ([1500, 1500] if version == "1.1.0" else [None, None])
    assert told["dns"] == {}


def test_what_earlier_plugins_made_comes_first_and_ours_points_at_ours() -> None:
    before = {
        "interfaces": [{"name": "x"}],
        "ips": [{"address": "10.9.0.1/24", "interface": 0}],
        "dns": {"domain": "d"},
    }
    told = result.render(conf("1.0.0", prevResult=before, dns={"nameservers": ["10.0.0.10"]}), WIRED)
    assert [i["name"] for i in told["interfaces"]] == ["x", "br", "eth0"]
    assert [ip["interface"] for ip in told["ips"]] == [0, 2, 2]
    assert told["dns"] == {"domain": "d", "nameservers": ["10.0.0.10"]}


@pytest.mark.parametrize("key", ["interfaces", "ips", "routes", "dns"])
def test_a_spoilt_prev_result_is_error_7(key: str) -> None:
    with pytest.raises(CniError, match=f"prevResult.{key}") as caught:
        result.render(conf("1.0.0", prevResult={key: ["x"]}), WIRED)
    assert caught.value.code == Code.INVALID_CONFIG


def test_check_wants_our_part_in_prev_result() -> None:
    whole = result.render(conf("1.1.0"), WIRED)
    result.check_previous(conf("1.1.0", prevResult=whole), WIRED)
    for key, message in (("interfaces", "has no interface eth0"), ("ips", "lacks address 10.0.0.2/24")):
        with pytest.raises(CniError, match=message):
            result.check_previous(conf("1.1.0", prevResult={**whole, key: []}), WIRED)
