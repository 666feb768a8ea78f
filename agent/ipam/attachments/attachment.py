"""An interface of a container on a network, and the format of its file."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent.codec import network_json, strict_json
from agent.codec.network_json import OptionTypes
from agent.ip import Address, Subnet
from agent.ipam.blocks import is_single
from agent.model.marks import LINK_PREFIX
from agent.model.network import Network, ParentLink

FORMAT = 2
"""The format of a file's first line. New keys do not change it: an agent skips keys that it does not know.

A change of a key's meaning needs a new number, which one release reads and the next one writes.
"""
LINK = re.compile(f"{LINK_PREFIX}[0-9a-f]{{{15 - len(LINK_PREFIX)}}}")
TEXTS = ("container_id", "ifname", "netns", "pod", "mac")


def link_name(container_id: str, ifname: str) -> str:
    """Return the name of the host end of an attachment. It is always the same, so that a crash cannot lose it."""
    return LINK_PREFIX + hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()[: 15 - len(LINK_PREFIX)]


def is_link_name(name: str) -> bool:
    """Return whether a host end may have this name."""
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
    """The interfaces, ips and routes of ADD's result; None while ADD is at work."""
    uplink: ParentLink | None = None
    """The parent of its subinterface; None in modes without a parent."""
    limited: bool = field(default=False, compare=False)
    """Whether the plugin `bandwidth` will limit what the pod sends. Not in the file: later the kernel shows it."""
    owner: str = ""
    """The owner of its reserved address; empty if none of its addresses is reserved."""

    @property
    def reserved(self) -> tuple[Address, ...]:
        """Return those of its addresses that are reserved."""
        return tuple(lease.address for lease in self.leases if self.owner and lease.address.version == 4)

    @property
    def off_block(self) -> tuple[Subnet, ...]:
        """Return those of its addresses that are in no block of this node."""
        return tuple(lease.block for lease in self.leases if is_single(lease.block))

    @property
    def key(self) -> tuple[str, str]:
        """Return container and interface name: the identity of an attachment."""
        return (self.container_id, self.ifname)

    @property
    def link(self) -> str:
        """Return the name of its host end, which is also that of its file."""
        return link_name(self.container_id, self.ifname)


def encode(attachment: Attachment) -> bytes:
    """Return an attachment as the first line of its file: JSON, addresses as text.

    The addresses that its uplink reserves are left out, as they matter only for new pods.
    """
    doc = {
        "format": FORMAT,
        "container_id": attachment.container_id,
        "ifname": attachment.ifname,
        "network": network_json.encode_network(attachment.network),
        "netns": attachment.netns,
        "pod": attachment.pod,
        "leases": [{"address": str(lease.address), "block": str(lease.block)} for lease in attachment.leases],
        "mac": attachment.mac,
        **({"owner": attachment.owner} if attachment.owner else {}),
        **(
            {"uplink": network_json.encode_uplink(replace(attachment.uplink, reserved=frozenset()))}
            if attachment.uplink
            else {}
        ),
    }
    return json.dumps(doc).encode()


def decode(data: bytes, types: OptionTypes, *, whole: bool) -> Attachment:
    """Return the attachment of a file's bytes, wired if it is `whole`. Raises ValueError with the reason."""
    try:
        first, _, second = data.partition(b"\n")
        doc = strict_json.mapping(first)
        if doc["format"] != FORMAT:
            raise ValueError(f"it is of format {doc['format']!r}, not {FORMAT}")
        made = decode_line(doc, types)
        return replace(made, wired=_wired(strict_json.mapping(second))) if whole else made
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no attachment: {error!r}") from error


def decode_line(doc: dict[str, Any], types: OptionTypes) -> Attachment:
    """Return the attachment of a first line of any format. Raises KeyError, TypeError, ValueError."""
    leases = tuple(
        Lease(network_json.address(item["address"]), network_json.subnet(item["block"]))
        for item in network_json.items(doc["leases"])
    )
    if not leases:
        raise ValueError("it has no address")
    container_id, ifname, netns, pod, mac = (network_json.text(doc[name]) for name in TEXTS)
    network = network_json.decode_network(doc["network"], types)
    uplink = network_json.decode_uplink(doc["uplink"]) if doc.get("uplink") else None
    owner = network_json.text(doc.get("owner", ""))
    return Attachment(container_id, ifname, network, netns, pod, leases, mac, uplink=uplink, owner=owner)


def _wired(doc: object) -> dict[str, Any]:
    """Return the result of ADD: three lists of objects. Other keys are those of later versions."""
    if not isinstance(doc, dict):
        raise TypeError(f"the second line is {type(doc).__name__}, not an object")
    lists = {name: network_json.items(doc.get(name, [])) for name in ("interfaces", "ips", "routes")}
    if not all(isinstance(item, dict) for items in lists.values() for item in items):
        raise TypeError("the second line has other things than objects")
    return {**doc, **lists}


def answered(attachment: Attachment) -> frozenset[Address]:
    """Return the addresses in the result of ADD, which is the second line of the file."""
    ips = attachment.wired.get("ips") if attachment.wired else None
    found = set()
    for entry in ips if isinstance(ips, list) else ():
        try:
            found.add(ipaddress.ip_interface(entry["address"]).ip)
        except (ValueError, TypeError, KeyError):
            continue
    return frozenset(found)
