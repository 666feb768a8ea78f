"""Define the marks by which testcni recognises what it owns in the kernel (docs/marks.md)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.ip import Address

ROUTE_PROTOCOL = 116
"""The default protocol number of testcni's routes: the letter t, which is not registered (docs/marks.md)."""


LINK_PREFIX = "tcni"


ALIAS = "testcni"


BRIDGE_ALIAS = f"{ALIAS} bridge"


NFT_TABLE = "testcni"


BPF_PINS = Path("/sys/fs/bpf/testcni")
"""The directory of the pins of eBPF programs and maps."""


MAC_PREFIX = "0a:58"  # locally administered


BRIDGE_MAC_PREFIX = "0a:62:74:63"  # locally administered; long, as a bridge of another program may have any MAC


def mac_for(address: Address) -> str:
    """Return the MAC of pods with an address: the same for each, so that neighbours need not learn a new one."""
    return f"{MAC_PREFIX}:{address.packed[-4:].hex(':')}"


def bridge_mac(node: str, name: str) -> str:
    """Return the MAC for a new bridge; changes of the node's blocks or the bridge's ports do not change it."""
    return f"{BRIDGE_MAC_PREFIX}:{hashlib.sha256(f'{node}/{name}'.encode()).digest()[:2].hex(':')}"
