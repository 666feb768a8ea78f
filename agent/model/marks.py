"""How testcni knows what it owns in the kernel: by these marks, never from memory (docs/marks.md)."""

from __future__ import annotations

import hashlib

from agent.ip import Address

ROUTE_PROTOCOL = 116
"""By which our routes are known, unless an option says otherwise: 't', registered by nobody (docs/marks.md)."""


# How testcni's own things are known in the kernel: by mark, never by memory. Why these: docs/marks.md.
LINK_PREFIX = "tcni"


ALIAS = "testcni"


BRIDGE_ALIAS = f"{ALIAS} bridge"


NFT_TABLE = "testcni"


VXLAN_DEVICE = "testcni-vxlan"


VXLAN_ALIAS = f"{ALIAS} vxlan port"


IPIP_DEVICE = "testcni-ipip"


IPIP_ALIAS = f"{ALIAS} ipip"


MAC_PREFIX = "0a:58"  # locally administered


BRIDGE_MAC_PREFIX = "0a:62:74:63"  # so is this one; long, as a bridge of others may have any MAC


def mac_for(address: Address) -> str:
    """The MAC of whoever has `address`: neighbours that knew the last one need not learn a new one."""
    return f"{MAC_PREFIX}:{address.packed[-4:].hex(':')}"


def bridge_mac(node: str, name: str) -> str:
    """The MAC of a new bridge: neither the node's blocks nor the bridge's ports change it."""
    return f"{BRIDGE_MAC_PREFIX}:{hashlib.sha256(f'{node}/{name}'.encode()).digest()[:2].hex(':')}"
