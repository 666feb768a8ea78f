"""The result of ADD in the form of each CNI version (specification 1.1, section 5, and earlier ones)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.cni.netconf import NetConf
from agent.errors import MAC_REMEDY, invalid_config
from agent.modes.base import CheckError, Wired


def render(conf: NetConf, wired: Wired) -> dict[str, Any]:
    """Return the result of ADD: that of earlier plugins of the chain, then testcni's."""
    before = conf.prev_result or {}
    interfaces, ips, routes = (_list(before, key) for key in ("interfaces", "ips", "routes"))
    shift = len(interfaces)
    result: dict[str, Any] = {
        "cniVersion": conf.cni_version,
        "interfaces": interfaces + [_interface(i, conf.cni_version) for i in wired["interfaces"]],
        "ips": ips + [_ip(ip, shift, conf.cni_version) for ip in wired["ips"]],
        "routes": routes + wired["routes"],
        "dns": {**_dns(before), **conf.dns},
    }
    return result


def check_previous(conf: NetConf, wired: Wired) -> None:
    """Raise CniError if the chain's final result lacks testcni's interface or addresses, for CHECK."""
    if conf.prev_result is None:
        raise invalid_config("prevResult", None, "the result of ADD, which CHECK compares with")
    pod = wired["interfaces"][-1]
    known = [(i.get("name"), i.get("sandbox")) for i in _list(conf.prev_result, "interfaces")]
    if (pod["name"], pod["sandbox"]) not in known:
        raise CheckError(f"prevResult has no interface {pod['name']} in {pod['sandbox']}")
    macs = {str(i["mac"]).lower() for i in _list(conf.prev_result, "interfaces") if _is(pod, i) and i.get("mac")}
    if macs and pod["mac"] not in macs:
        what = (
            f"a later plugin of the chain changed the MAC of {pod['name']} from {pod['mac']} to {', '.join(macs)}"
        )
        raise CheckError(f"{what}, so other pods cannot reach it; {MAC_REMEDY}")
    addresses = {ip.get("address") for ip in _list(conf.prev_result, "ips")}
    for ip in wired["ips"]:
        if ip["address"] not in addresses:
            raise CheckError(f"prevResult lacks address {ip['address']}, which the pod has")


def _is(pod: Mapping[str, Any], interface: Mapping[str, Any]) -> bool:
    return (interface.get("name"), interface.get("sandbox")) == (pod["name"], pod["sandbox"])


def _dns(result: Mapping[str, Any]) -> dict[str, Any]:
    found = result.get("dns") or {}
    if not isinstance(found, dict):
        raise invalid_config("prevResult.dns", found, "an object, as an earlier plugin gave it")
    return found


def _list(result: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = result.get(key) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise invalid_config(f"prevResult.{key}", found, "a list of objects, as ADD gave it")
    return found


def _interface(interface: dict[str, Any], version: str) -> dict[str, Any]:
    """Return an interface in the form of a CNI version: `mtu` exists since 1.1.0."""
    return interface if version == "1.1.0" else {k: v for k, v in interface.items() if k != "mtu"}


def _ip(ip: dict[str, Any], shift: int, version: str) -> dict[str, Any]:
    """Return an address in the form of a CNI version: `version` exists before 1.0.0."""
    shifted = {**ip, "interface": ip["interface"] + shift}
    return {"version": "6" if ":" in ip["address"] else "4", **shifted} if version < "1" else shifted
