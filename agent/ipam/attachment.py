"""An interface of a container on a network: what is known of it, and how it is written to its file."""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from agent.datapath.state import LINK_PREFIX
from agent.ipam.blocks import is_single
from agent.model import MODES, Address, Network, Subnet, Uplink

FORMAT = 2
PARSED: Mapping[str, Callable[[str], Any]] = {
    "subnet": ipaddress.ip_network,
    "range_start": ipaddress.ip_address,
    "range_end": ipaddress.ip_address,
    "gateway": ipaddress.ip_address,
    "via_host": lambda cidrs: tuple(map(ipaddress.ip_network, cidrs)),
}


def link_name(container_id: str, ifname: str) -> str:
    """The host's end of an attachment: always the same for the same one, so a crash can't lose it."""
    return LINK_PREFIX + hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()[: 15 - len(LINK_PREFIX)]


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
    """What `encode_uplink` made it of. Raises KeyError, TypeError, ValueError."""
    return Uplink(
        doc["device"],
        tuple(map(ipaddress.ip_address, doc["hosts"])),
        ipaddress.ip_address(doc["gateway"]) if doc["gateway"] else None,
        tuple(map(ipaddress.ip_network, doc["via_host"])),
        frozenset(map(ipaddress.ip_address, doc.get("reserved", ()))),
    )


def decode_network(doc: dict[str, Any]) -> Network:
    """What `encode_network` made it of. Raises KeyError, TypeError, ValueError."""
    values = {f.name: doc[f.name] for f in fields(Network) if f.name in doc}
    for name, parse in PARSED.items():
        if values.get(name) is not None:
            values[name] = parse(values[name])
    network = Network(**values)
    if network.mode not in MODES:  # an agent that knew more modes may have written it
        raise ValueError(f"mode {network.mode!r} is none of {', '.join(MODES)}")
    return network


def decode(data: bytes, *, whole: bool) -> Attachment:
    """The attachment of a file's bytes, wired if it is `whole`; raises ValueError that says what is wrong."""
    try:
        first, _, second = data.partition(b"\n")
        doc = json.loads(first)
        if doc.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        doc["network"] = decode_network(doc["network"])
        doc["leases"] = tuple(
            Lease(ipaddress.ip_address(item["address"]), ipaddress.ip_network(item["block"]))
            for item in doc["leases"]
        )
        if "uplink" in doc:
            doc["uplink"] = decode_uplink(doc["uplink"])
        return Attachment(**doc, wired=json.loads(second) if whole else None)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an attachment: {error!r}") from error
