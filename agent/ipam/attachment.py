"""An interface of a container on a network: what is known of it, and how it is written to its file."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from agent.codec import strict_json
from agent.ip import Address, Subnet
from agent.ipam.blocks import is_single
from agent.model.marks import LINK_PREFIX
from agent.model.network import MODES, Network, Uplink

FORMAT = 2
"""Of a file's first line. Keys may be added to it: whoever does not know them skips them.

A change of what a key means needs a new number, which one release reads and the next one writes.
"""
LINK = re.compile(f"{LINK_PREFIX}[0-9a-f]{{{15 - len(LINK_PREFIX)}}}")
TEXTS = ("container_id", "ifname", "netns", "pod", "mac")


def _address(value: object) -> Address:
    return ipaddress.ip_address(_text(value))


def _subnet(value: object) -> Subnet:
    return ipaddress.ip_network(_text(value))


def _subnets(value: object) -> tuple[Subnet, ...]:
    return tuple(map(_subnet, _list(value)))


PARSED: Mapping[str, Callable[[object], Any]] = {
    "subnet": _subnet,
    "range_start": _address,
    "range_end": _address,
    "gateway": _address,
    "via_host": _subnets,
}


def link_name(container_id: str, ifname: str) -> str:
    """The host's end of an attachment: always the same for the same one, so a crash can't lose it."""
    return LINK_PREFIX + hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()[: 15 - len(LINK_PREFIX)]


def is_link_name(name: str) -> bool:
    """Whether a host end may be named so."""
    return bool(LINK.fullmatch(name))


@dataclass(frozen=True, slots=True)
class Lease:
    """An address of a pod and the block that it is from."""

    address: Address
    block: Subnet


@dataclass(frozen=True, slots=True)
class Attachment:
    """An interface of a container on a network."""

    container_id: str
    ifname: str
    network: Network
    netns: str
    pod: str
    leases: tuple[Lease, ...]
    mac: str
    wired: Mapping[str, Any] | None = field(default=None, hash=False)
    """Interfaces, ips and routes of ADD's answer; None while ADD is at work."""
    uplink: Uplink | None = None
    """Where its slave hangs, in modes that have slaves."""
    limited: bool = field(default=False, compare=False)
    """Whether the plugin `bandwidth` is about to limit what it sends; not kept, as the kernel shows it then."""
    owner: str = ""
    """Of its reserved address; empty: none of its addresses is reserved."""

    @property
    def held(self) -> tuple[Address, ...]:
        """Those of its addresses that are reserved."""
        return tuple(lease.address for lease in self.leases if self.owner and lease.address.version == 4)

    @property
    def guests(self) -> tuple[Subnet, ...]:
        """Those of its addresses that are in no block of this node."""
        return tuple(lease.block for lease in self.leases if is_single(lease.block))

    @property
    def key(self) -> tuple[str, str]:
        """Container and interface name: the identity of an attachment."""
        return (self.container_id, self.ifname)

    @property
    def link(self) -> str:
        """Name of its host end, and of its file."""
        return link_name(self.container_id, self.ifname)


def encode(attachment: Attachment) -> bytes:
    """An attachment as the first line of its file: JSON, addresses as text.

    What its uplink reserves is left out, as that concerns addresses yet to be given.
    """
    doc = {
        "format": FORMAT,
        "container_id": attachment.container_id,
        "ifname": attachment.ifname,
        "network": encode_network(attachment.network),
        "netns": attachment.netns,
        "pod": attachment.pod,
        "leases": [{"address": str(lease.address), "block": str(lease.block)} for lease in attachment.leases],
        "mac": attachment.mac,
        **({"owner": attachment.owner} if attachment.owner else {}),
        **(
            {"uplink": encode_uplink(replace(attachment.uplink, reserved=frozenset()))}
            if attachment.uplink
            else {}
        ),
    }
    return json.dumps(doc).encode()


@functools.lru_cache(64)
def encode_network(network: Network) -> dict[str, Any]:
    """A network as JSON; made once, as every pod of a node is on the same one."""
    return {name: _plain(value) if name in PARSED and value else value for name, value in asdict(network).items()}


def _plain(value: object) -> str | list[str]:
    return [str(item) for item in value] if isinstance(value, tuple) else str(value)


def encode_uplink(uplink: Uplink) -> dict[str, Any]:
    """An uplink as JSON."""
    return {
        "device": uplink.device,
        "hosts": _plain(uplink.hosts),
        "gateway": str(uplink.gateway) if uplink.gateway else None,
        "via_host": _plain(uplink.via_host),
        **({"reserved": sorted(map(str, uplink.reserved))} if uplink.reserved else {}),
    }


def decode_uplink(doc: dict[str, Any]) -> Uplink:
    """The uplink that `encode_uplink` wrote. Raises KeyError, TypeError, ValueError."""
    hosts = tuple(map(_address, _list(doc["hosts"])))
    if not hosts:
        raise ValueError("the uplink has no host")
    return Uplink(
        _text(doc["device"]),
        hosts,
        _address(doc["gateway"]) if doc["gateway"] else None,
        _subnets(doc["via_host"]),
        frozenset(map(_address, _list(doc.get("reserved", [])))),
    )


def decode_network(doc: dict[str, Any]) -> Network:
    """The network that `encode_network` wrote. Raises KeyError, TypeError, ValueError."""
    values = {f.name: doc[f.name] for f in fields(Network) if f.name in doc}
    for name, parse in PARSED.items():
        if values.get(name) is not None:
            values[name] = parse(values[name])
    for name, hint in _plain_fields().items():
        value = values.get(name)
        if name in values and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
            raise TypeError(f"network.{name} is {value!r:.80}")
    network = Network(**values)
    if network.mode not in MODES:  # an agent that knew more modes may have written it
        raise ValueError(f"mode {network.mode!r} is none of {', '.join(MODES)}")
    return network


@functools.cache
def _plain_fields() -> Mapping[str, Any]:
    """The fields of a network that JSON has as they are, and their types."""
    return {name: hint for name, hint in get_type_hints(Network).items() if name not in PARSED}


def decode(data: bytes, *, whole: bool) -> Attachment:
    """The attachment of a file's bytes, wired if it is `whole`; raises ValueError that says what is wrong."""
    try:
        first, _, second = data.partition(b"\n")
        doc = strict_json.mapping(first)
        if doc["format"] != FORMAT:
            raise ValueError(f"it is of format {doc['format']!r}, not {FORMAT}")
        made = decode_line(doc)
        return replace(made, wired=_wired(strict_json.mapping(second))) if whole else made
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no attachment: {error!r}") from error


def decode_line(doc: dict[str, Any]) -> Attachment:
    """The attachment of a first line, whatever its format says. Raises KeyError, TypeError, ValueError."""
    leases = tuple(Lease(_address(item["address"]), _subnet(item["block"])) for item in _list(doc["leases"]))
    if not leases:
        raise ValueError("it has no address")
    container_id, ifname, netns, pod, mac = (_text(doc[name]) for name in TEXTS)
    network = decode_network(doc["network"])
    uplink = decode_uplink(doc["uplink"]) if doc.get("uplink") else None
    owner = _text(doc.get("owner", ""))
    return Attachment(container_id, ifname, network, netns, pod, leases, mac, uplink=uplink, owner=owner)


def _wired(doc: object) -> dict[str, Any]:
    """What ADD answered: three lists of objects, whose other keys are later versions'."""
    if not isinstance(doc, dict):
        raise TypeError(f"the second line is {type(doc).__name__}, not an object")
    lists = {name: _list(doc.get(name, [])) for name in ("interfaces", "ips", "routes")}
    if not all(isinstance(item, dict) for items in lists.values() for item in items):
        raise TypeError("the second line has other things than objects")
    return {**doc, **lists}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not text")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} is not a list")
    return value


def answered(attachment: Attachment) -> frozenset[Address]:
    """The addresses that ADD answered, as far as the file says so in its second line."""
    ips = attachment.wired.get("ips") if attachment.wired else None
    found = set()
    for entry in ips if isinstance(ips, list) else ():
        try:
            found.add(ipaddress.ip_interface(entry["address"]).ip)
        except (ValueError, TypeError, KeyError):
            continue
    return frozenset(found)
