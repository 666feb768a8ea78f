"""A plugin after testcni that gives the pod another MAC: refused where it is known, named where it is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cni import conflist
from agent.cni.later_plugins import LaterPlugins
from agent.errors import CniError, Code
from agent.host import cni_conf_dir
from agent.modes.registry import BUILT_IN
from tests.netns.node import CONF, IPIP, MACVLAN, VXLAN, Host, Pod

MAC, OTHER = "02:11:22:33:44:55", "02:11:22:33:44:66"
MODES: dict[str, Mapping[str, Any]] = {
    "host-gw": CONF,
    "vxlan": VXLAN,
    "ipip": IPIP,
    "macvlan": {**MACVLAN, "master": "eth0"},
}


WAYS: tuple[dict[str, Any], ...] = (
    {"MAC": MAC},
    {"args": {"cni": {"mac": MAC}}},
    {"runtimeConfig": {"mac": MAC}},
)


def chain(conf: Mapping[str, Any], asks: Mapping[str, Any]) -> bytes:
    ours = {key: value for key, value in conf.items() if key not in ("name", "cniVersion")}
    tuning = {"type": "tuning", **asks}
    return json.dumps({"name": conf["name"], "cniVersion": "1.1.0", "plugins": [ours, tuning]}).encode()


def behind(host: Host, asks: Mapping[str, Any]) -> None:
    """Have the node's conf folder name a plugin after testcni that sets a MAC."""
    found = cni_conf_dir.of(conflist.conflist(chain(host.conf, asks), host.run_dir), modes=BUILT_IN)
    host.handler = host.new_handler(
        later=LaterPlugins(
            lambda network: found.foreign_macs.get(network, ""), lambda network: found.unseen_macs.get(network, "")
        )
    )


@pytest.mark.parametrize("mode", MODES)
def test_an_add_is_refused_where_tuning_sets_a_mac_after_it(tmp_path: Path, mode: str) -> None:
    host, pod = Host(tmp_path, conf=MODES[mode]), Pod("c1")
    behind(host, {"mac": MAC})
    with pytest.raises(CniError) as refused:
        host.add(pod)
    assert refused.value.code == Code.INVALID_CONFIG
    assert MAC in str(refused.value)
    assert "runtimeConfig.mac" in str(refused.value)
    assert host.attachments.all() == ()


@pytest.mark.parametrize("asks", WAYS)
def test_an_add_is_refused_by_whichever_way_tuning_is_given_a_mac(tmp_path: Path, asks: dict[str, Any]) -> None:
    host, pod = Host(tmp_path, conf=VXLAN), Pod("c1")
    behind(host, asks)
    with pytest.raises(CniError, match=MAC) as refused:
        host.add(pod)
    assert refused.value.code == Code.INVALID_CONFIG
    host.add(pod, {**VXLAN, "runtimeConfig": {"mac": MAC}})
    assert pod.json("link", "show", "eth0")[0]["address"] == MAC


@pytest.mark.parametrize("asks", [{"runtimeConfig": {"mac": MAC}}, {"args": {"cni": {"mac": MAC}}}, {}])
def test_a_mac_that_both_plugins_are_asked_for_is_the_pods(tmp_path: Path, asks: dict[str, Any]) -> None:
    host, pod = Host(tmp_path, conf=VXLAN), Pod("c1")
    behind(host, {"mac": MAC.upper()})
    host.add(pod, {**VXLAN, **asks}, args="" if asks else f"IgnoreUnknown=1;MAC={MAC}")
    assert pod.json("link", "show", "eth0")[0]["address"] == MAC
    assert pod.reaches("192.0.2.1")


@pytest.mark.parametrize("mode", MODES)
def test_a_check_says_who_has_changed_the_mac(tmp_path: Path, mode: str) -> None:
    host, pod = Host(tmp_path, conf=MODES[mode]), Pod("c1")
    result = host.add(pod)
    pod.run("ip", "link", "set", "eth0", "address", OTHER)
    changed = [{**i, "mac": OTHER} if i.get("sandbox") else i for i in result["interfaces"]]
    with pytest.raises(CniError) as refused:
        host.call("CHECK", pod, {**host.conf, "prevResult": {**result, "interfaces": changed}})
    assert "a later plugin of the chain changed the MAC of eth0" in str(refused.value)
    assert "runtimeConfig.mac" in str(refused.value)


@pytest.mark.parametrize("mode", MODES)
def test_no_pod_is_added_that_tuning_may_give_a_mac_unseen(tmp_path: Path, mode: str) -> None:
    """The runtime gives the value of a capability to the plugins that name it, and to no other."""
    host, pod = Host(tmp_path, conf=MODES[mode]), Pod("c1")
    behind(host, {"capabilities": {"mac": True}})
    for verb in ("ADD", "STATUS"):
        with pytest.raises(CniError) as refused:
            host.call(verb, pod)
        assert refused.value.code == Code.INVALID_CONFIG
        assert "tuning after testcni has the capability `mac`" in str(refused.value)
        assert '"capabilities": {"mac": true}' in str(refused.value)
    assert host.attachments.all() == ()
    host.conf = {**host.conf, "capabilities": {"mac": True}}
    behind(host, {"capabilities": {"mac": True}})
    host.add(pod, {**host.conf, "runtimeConfig": {"mac": MAC}})
    assert pod.json("link", "show", "eth0")[0]["address"] == MAC
    host.call("DEL", pod)
