"""The facts of a bridge of testcni in its interface: its maker, the recorded MAC, addresses and switches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from agent.ip import Interface
from agent.kernel import link_setup
from agent.kernel.ip_addresses import LinkAddress
from agent.kernel.ip_links import IFLA_BR_STP_STATE, IFLA_BR_VLAN_FILTERING, Link
from agent.model.marks import BRIDGE_ALIAS, BRIDGE_MAC_PREFIX

MAC = re.compile(r"[0-9a-f]{12}")
# by pyroute2's names
SWITCHES: Mapping[str, int] = {"br_stp_state": IFLA_BR_STP_STATE, "br_vlan_filtering": IFLA_BR_VLAN_FILTERING}


def is_ours(link: Link) -> bool:
    """Return whether testcni made this bridge: it has its MAC from the start, its alias a moment later."""
    return link.kind == "bridge" and (link.alias == BRIDGE_ALIAS or link.mac.startswith(BRIDGE_MAC_PREFIX))


def record(name: str, mac: str) -> str:
    """Return the other name of a bridge that records its MAC."""
    return f"{name}-mac-{mac.replace(':', '')}"


def recorded(link: Link) -> str | None:
    """The MAC that a bridge was given, if it was recorded."""
    mark = record(link.name, "")
    found = (name.removeprefix(mark) for name in link.altnames if name.startswith(mark))
    return next((bytes.fromhex(text).hex(":") for text in found if MAC.fullmatch(text)), None)


def is_plain(link: Link) -> bool:
    """Return whether a bridge carries what its ports send."""
    return link.arp and not link.master and not switched_on(link)


def switched_on(link: Link) -> dict[str, int]:
    """Return 0 for each switch that is on and keeps packets from a bridge's ports; a kernel may lack either."""
    found = {name: link_setup.option(link, number) for name, number in SWITCHES.items()}
    return {name: 0 for name, value in found.items() if any(value or b"")}


def interfaces(index: int, addresses: Iterable[LinkAddress]) -> frozenset[Interface]:
    """Return the addresses of a link, without IPv6 link-local ones: they are the kernel's own."""
    return frozenset(a.interface for a in addresses if a.index == index and not a.address.is_link_local)
