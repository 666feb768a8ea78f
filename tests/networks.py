"""Networks for tests, by the fields that a netconf has: each goes to the options of the mode that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from agent.cni import netconf
from agent.cni.netconf import NetConf
from agent.ip import Subnet
from agent.model.network import Network
from agent.modes.registry import BUILT_IN, Modes

MODES = BUILT_IN.names
ROUTED = BUILT_IN.routed.by_preference
OPTIONS = BUILT_IN.options
AGENT_OPTIONS = BUILT_IN.agent_options
COMMON = {f.name for f in fields(Network)} - {"options", "transition"}


def network_of(
    name: str, mode: str = MODES[0], subnet: Subnet | None = None, modes: Modes = BUILT_IN, **given: Any
) -> Network:
    """A network of a mode; what is given for other routed modes is for the transition."""
    known = {
        other: kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given})
        for other, kind in sorted(modes.options.items(), key=lambda item: item[0] != mode)
    }
    assert given.keys() <= COMMON, f"no mode has {given.keys() - COMMON}"
    return Network(name, known[mode], subnet, **given).with_options(known[mode], *known.values())


def parse_conf(doc: Mapping[str, Any], args: str = "") -> NetConf:
    """The values of a decoded netconf and CNI_ARGS."""
    return netconf.parse(doc, args, BUILT_IN)


def read_conf(text: str, args: str = "") -> NetConf:
    """The values of a netconf's text and CNI_ARGS."""
    return netconf.read(text, args, BUILT_IN)


def changed(network: Network, **given: Any) -> Network:
    """The same network with other values, as if its netconf had been edited."""
    values = {name: getattr(network, name) for name in COMMON}
    for options in (*network.transition, network.options):
        values.update(asdict(options))
    return network_of(**{**values, "mode": network.mode, **given})
