"""Encode networks as JSON for the files by which an agent passes its state to the next one.

The next agent may have another version. All options of a network are keys of one object. An agent ignores unknown
keys, and uses the default for missing ones, so that a file can be read after an upgrade and after a rollback.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any, get_type_hints

from agent.ip import Address, Subnet
from agent.model.network import ModeOptions, Network, ParentLink

OptionTypes = Mapping[str, type[ModeOptions]]
"""The class of the options of each mode, by the mode's name."""

APART = ("mode", "options", "transition")  # fields of Network that are no keys


@functools.lru_cache(64)
def encode_network(network: Network) -> dict[str, Any]:
    """Return a network as JSON. Results are cached, as all pods of a node are on the same few networks."""
    values = {f.name: getattr(network, f.name) for f in fields(Network) if f.name not in APART}
    for options in (*network.transition, network.options):
        values.update(asdict(options))
    return {"mode": network.mode, **{name: _plain(value) for name, value in values.items()}}


def decode_network(doc: dict[str, Any], types: OptionTypes) -> Network:
    """Return the network that `encode_network` made the JSON of. Raises KeyError, TypeError, ValueError."""
    mode = text(doc.get("mode", next(iter(types))))
    if mode not in types:  # an agent with more modes may have written it
        raise ValueError(f"mode {mode!r} is none of {', '.join(types)}")
    known = {name: kind(**_values(kind, doc)) for name, kind in types.items() if kind.routed or name == mode}
    network = Network(options=known[mode], **_values(Network, doc))
    return network.with_options(known[mode], *known.values())


def encode_uplink(uplink: ParentLink) -> dict[str, Any]:
    """Return an uplink as JSON."""
    return {
        "device": uplink.device,
        "hosts": _plain(uplink.hosts),
        "gateway": _plain(uplink.gateway),
        "via_host": _plain(uplink.via_host),
        **({"reserved": sorted(map(str, uplink.reserved))} if uplink.reserved else {}),
    }


def decode_uplink(doc: dict[str, Any]) -> ParentLink:
    """Return the uplink that `encode_uplink` made the JSON of. Raises KeyError, TypeError, ValueError."""
    hosts = tuple(map(address, items(doc["hosts"])))
    if not hosts:
        raise ValueError("the uplink has no host")
    return ParentLink(
        text(doc["device"]),
        hosts,
        address(doc["gateway"]) if doc["gateway"] else None,
        subnets(doc["via_host"]),
        frozenset(map(address, items(doc.get("reserved", [])))),
    )


def address(value: object) -> Address:
    """Return the IP address in a text. Raises TypeError, ValueError."""
    return ipaddress.ip_address(text(value))


def subnet(value: object) -> Subnet:
    """Return the IP network in a text. Raises TypeError, ValueError."""
    return ipaddress.ip_network(text(value))


def subnets(value: object) -> tuple[Subnet, ...]:
    """Return the IP networks in a list of texts. Raises TypeError, ValueError."""
    return tuple(map(subnet, items(value)))


def text(value: object) -> str:
    """Return a value that must be text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not text")
    return value


def items(value: object) -> list[Any]:
    """Return a value that must be a list. Raises TypeError."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} is not a list")
    return value


PARSERS: tuple[tuple[object, Callable[[object], object]], ...] = (
    (Subnet | None, lambda value: None if value is None else subnet(value)),
    (Address | None, lambda value: None if value is None else address(value)),
    (tuple[Subnet, ...], subnets),
)
"""The parsers of fields that are text in JSON, by the type of the field."""


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def _values(kind: type[Any], doc: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the fields that the JSON has. Raises TypeError, ValueError."""
    return {name: read(doc[name]) for name, read in _readers(kind).items() if name in doc}  # type: ignore[arg-type]


@functools.cache
def _readers(kind: type[Any]) -> Mapping[str, Callable[[object], object]]:
    """Return the parser of each field of a class, Network or a ModeOptions."""
    hints = get_type_hints(kind)
    return {f.name: _reader(f.name, hints[f.name]) for f in fields(kind) if f.name not in APART}


def _reader(name: str, hint: type) -> Callable[[object], object]:
    """Return the parser of a field: one of PARSERS by its type, else a check of the type."""
    if parse := next((parse for of, parse in PARSERS if of == hint), None):
        return parse
    return partial(_checked, name, hint)


def _checked(name: str, hint: type, value: object) -> object:
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError(f"network.{name} is {value!r:.80}")
    return value
