"""Read a netconf into frozen values; a wrong field is error 7 with field, value and remedy.

Forms: CNI specification 1.1, section 1; fields as users know them from the bridge and host-local plugins.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from agent.codec import cni_args, json_fields, strict_json
from agent.codec.json_fields import Fields
from agent.codec.strict_json import JsonError
from agent.errors import CniError, Code, invalid_config
from agent.ip import Address, Subnet
from agent.model.network import ExtraRoute, Network
from agent.modes.base import ConfFields
from agent.modes.registry import Modes

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NAME_LIMIT = 63
CACHED = 8192  # characters: the same netconf comes with each pod, and is parsed once
MTU_LIMITS = (576, 65535)  # 576: every IPv4 host must accept it (RFC 791)

# Keys for the runtime, and those of the specification that testcni does not need.
FOREIGN = frozenset({"cniVersions", "type", "disableCheck", "disableGC", "loadOnlyInlinedPlugins"})
# Keys that the plugin itself reads (cni-bin/testcni.c, take_member), with the same limits as there.
PLUGIN_KEYS: Mapping[str, Callable[[str, object], object]] = {
    "socket": partial(json_fields.path, longest=107),  # struct sockaddr_un
    "stateDir": partial(json_fields.path, longest=1023),
    "agentWait": partial(json_fields.seconds, longest=300),
}
CAPABILITIES = ("ips", "mac", "bandwidth")


@dataclass(frozen=True, slots=True)
class NetConf:
    """The values of a netconf that the pod path uses."""

    cni_version: str
    network: Network
    routes: tuple[ExtraRoute, ...] = ()
    dns: Mapping[str, Any] = field(default_factory=dict)
    ips: tuple[Address, ...] = ()
    mac: str | None = None
    probe: bool = False
    """Whether to probe on the segment if another machine has an address, before a pod gets it."""
    limited: bool = False
    """Whether the plugin `bandwidth` will limit what the pod sends."""
    prev_result: Mapping[str, Any] | None = None
    valid_attachments: frozenset[tuple[str, str]] | None = None
    """The attachments that GC must keep; None if the runtime does not list them."""


def parse_json(data: bytes | str) -> dict[str, Any]:
    """Return the netconf's JSON object. Raises CniError 6 with line and column."""
    try:
        return strict_json.mapping(data)
    except JsonError as error:
        what = f"netconf is not a valid JSON object: {error}"
        raise CniError(Code.DECODING_FAILURE, what, "write it as RFC 8259 says") from error


def deleting(data: str, modes: Modes) -> tuple[str, str]:
    """Return name and mode of the network that a DEL names, each empty where that cannot be read.

    An invalid netconf must not keep a pod from being deleted.
    """
    try:
        doc = strict_json.mapping(data)
    except JsonError:
        return "", ""
    name, mode = doc.get("name"), doc.get("mode") or modes.default
    return name if isinstance(name, str) else "", mode if isinstance(mode, str) and mode in modes else ""


def read(config: str, args: str, modes: Modes) -> NetConf:
    """Return a netconf's text and CNI_ARGS as values. Raises CniError 1, 4, 6 or 7."""
    known = _read if len(config) <= CACHED else _read.__wrapped__
    return _with_args(known(config, modes), args)


def parse(doc: Mapping[str, Any], args: str, modes: Modes) -> NetConf:
    """Return a decoded netconf and CNI_ARGS as values. Raises CniError 1, 4 or 7."""
    return _with_args(_parse(doc, modes), args)


@functools.lru_cache(64)
def _read(config: str, modes: Modes) -> NetConf:
    return _parse(parse_json(config), modes)


def _parse(doc: Mapping[str, Any], modes: Modes) -> NetConf:
    """Return the netconf in a JSON object. Each field is taken once; a field that is not taken is an error."""
    fields = Fields(doc, "")
    version = fields.take("cniVersion", _version, VERSIONS[0])
    ipam = fields.take("ipam", json_fields.nested, Fields({}, "ipam"))
    network = _network(ConfFields(fields, ipam), modes)
    probe = ipam.take("probe", json_fields.boolean, network.shared)
    if probe and not network.shared:
        raise invalid_config("ipam.probe", probe, "false where pods are not on their parent's own subnet")
    routes = ipam.take("routes", _routes, ())
    ipam.finish()
    runtime = fields.take("runtimeConfig", json_fields.nested, Fields({}, "runtimeConfig"))
    asked, asked_mac = fields.take("args", _args, ((), None))
    capability = runtime.take("ips", json_fields.addresses, ())
    conf = NetConf(
        cni_version=version,
        network=network,
        routes=routes,
        dns=fields.take("dns", _dns, {}),
        ips=asked or capability,
        mac=asked_mac or runtime.take("mac", json_fields.mac, None),
        limited=bool(runtime.take("bandwidth", json_fields.mapping, {}).get("egressRate")),
        probe=probe,
        prev_result=fields.take("prevResult", json_fields.mapping, None),
        valid_attachments=fields.take("cni.dev/valid-attachments", _attachments, None),
    )
    fields.take("capabilities", _capabilities, None)
    for key, check in PLUGIN_KEYS.items():
        fields.take(key, check, None)
    fields.finish(FOREIGN)
    return conf


def _network(conf: ConfFields, modes: Modes) -> Network:
    """Return the network of a netconf, with the options of its mode. Raises CniError 7."""
    fields, ipam = conf.top, conf.ipam
    name = fields.take("name", _name, "")
    if not name:
        raise invalid_config("name", fields.raw("name"), "a network name, which the CNI specification requires")
    mode = modes[fields.take("mode", partial(json_fields.choice, allowed=modes.names), modes.default)]
    given = {each.name: each.parse_options(conf) for each in modes}
    network = Network(
        name=name,
        options=given[mode.name],
        subnet=fields.take("subnet", _subnet, None),
        mtu=fields.take("mtu", _mtu, None),
        masquerade=fields.take("ipMasq", json_fields.boolean, True),
        spoof_check=fields.take("spoofCheck", json_fields.boolean, True),
        range_start=ipam.take("rangeStart", json_fields.address, None),
        range_end=ipam.take("rangeEnd", json_fields.address, None),
    )
    for other in modes:
        for where, value in other.exclusive_fields(given[other.name]).items():
            if where not in mode.exclusive_fields(given[mode.name]):
                raise invalid_config(where, str(value), f"nothing in mode {mode.name}")
    network = network.with_options(mode.complete_options(network, conf), *given.values())
    _check_range(network)
    return network


def _version(where: str, value: object) -> str:
    if value not in VERSIONS:
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"{where}: {value!r} is not supported",
            f"supported: {', '.join(VERSIONS)}",
        )
    return str(value)


def _name(where: str, value: object) -> str:
    if not isinstance(value, str) or not json_fields.CNI_NAME.fullmatch(value) or len(value) > NAME_LIMIT:
        allowed = f"{json_fields.CNI_NAME_ALLOWED}, at most {NAME_LIMIT} in all"
        raise invalid_config(where, value, allowed)
    return value


def _mtu(where: str, value: object) -> int | None:
    low, high = MTU_LIMITS
    if isinstance(value, bool) or not isinstance(value, int) or not (value == 0 or low <= value <= high):
        raise invalid_config(where, value, f"{low} to {high} bytes, or 0 for that of the node's interface")
    return value or None


def _subnet(where: str, value: object) -> Subnet:
    """Return a CIDR. An IPv4 network without a mask gets one by its trailing zero bytes (10.244.0.0 is a /16)."""
    if isinstance(value, str):
        text = value
        if re.fullmatch(r"\d+(\.\d+){3}", value) and value.endswith(".0"):
            octets = value.split(".")
            while octets and octets[-1] == "0":
                octets.pop()
            text = f"{value}/{8 * len(octets)}"
        try:
            if "/" in text:
                network = ipaddress.ip_network(text)
                if network.prefixlen:
                    return network
        except ValueError:
            pass
    raise invalid_config(where, value, "a network with no host bits set, such as 10.244.0.0/16")


def _check_range(network: Network) -> None:
    start, end = network.range_start, network.range_end
    for where, bound in (("ipam.rangeStart", start), ("ipam.rangeEnd", end)):
        if bound and network.subnet and bound not in network.subnet:
            raise invalid_config(where, str(bound), f"an address of subnet {network.subnet}")
    if start and end and (start.version != end.version or int(start) > int(end)):
        raise invalid_config("ipam.rangeEnd", str(end), f"an address not below ipam.rangeStart {start}")


def _routes(where: str, value: object) -> tuple[ExtraRoute, ...]:
    routes = []
    for number, item in enumerate(json_fields.listed(where, value, '{"dst": CIDR, "gw": address}')):
        fields = Fields(item, f"{where}[{number}]")
        dst = fields.take("dst", json_fields.destination, None)
        if dst is None:
            raise invalid_config(f"{where}[{number}]", item, "an object with dst")
        gateway = fields.take("gw", json_fields.address, None)
        if gateway and gateway.version != dst.version:
            raise invalid_config(f"{where}[{number}].gw", str(gateway), f"an IPv{dst.version} address, as dst is")
        fields.finish()
        routes.append(ExtraRoute(dst, gateway))
    return tuple(routes)


def _dns(where: str, value: object) -> dict[str, Any]:
    fields = Fields(value, where)
    dns: dict[str, Any] = {
        name: fields.take(name, json_fields.strings, []) for name in ("nameservers", "search", "options")
    }
    domain = fields.take("domain", json_fields.string, "")
    fields.finish()
    return {name: entry for name, entry in {**dns, "domain": domain}.items() if entry}


def _args(where: str, value: object) -> tuple[tuple[Address, ...], str | None]:
    """Return the addresses of `args.cni.ips` and the MAC of `args.cni.mac` (CNI conventions).

    Other args are for other plugins. Raises CniError 7.
    """
    cni = json_fields.mapping(f"{where}.cni", json_fields.mapping(where, value).get("cni") or {})
    ips, mac = cni.get("ips"), cni.get("mac")
    return (
        () if ips is None else json_fields.addresses(f"{where}.cni.ips", ips),
        None if mac is None else json_fields.mac(f"{where}.cni.mac", mac),
    )


def _with_args(conf: NetConf, args: str) -> NetConf:
    """Return the netconf with the addresses and the MAC of CNI_ARGS, if it has none itself."""
    if not args:
        return conf
    pairs = cni_args.pairs(args)
    ips, mac = conf.ips, conf.mac
    if "IP" in pairs and not ips:
        ips = tuple(json_fields.masked("CNI_ARGS IP", part.strip()) for part in pairs["IP"].split(","))
    if "MAC" in pairs and not mac:
        mac = json_fields.mac("CNI_ARGS MAC", pairs["MAC"])
    return replace(conf, ips=ips, mac=mac)


def _attachments(where: str, value: object) -> frozenset[tuple[str, str]]:
    found = set()
    for number, item in enumerate(json_fields.listed(where, value, '{"containerID": ..., "ifname": ...}')):
        fields = Fields(item, f"{where}[{number}]")
        found.add(
            (fields.take("containerID", json_fields.string, ""), fields.take("ifname", json_fields.string, ""))
        )
        fields.finish()
    return frozenset(found)


def _capabilities(where: str, value: object) -> None:
    for name in json_fields.mapping(where, value):
        if name not in CAPABILITIES:
            raise invalid_config(where, name, ", ".join(CAPABILITIES))
