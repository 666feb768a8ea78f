"""What was prepared for pods, on file in the run-dir, which lives as long as the kernel's state does.

An agent that is restarted while the datastore is away serves pods by it: what was prepared still is.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from pathlib import Path

from agent.ipam.attachments import decode_network, encode_network
from agent.shared import NodeStatus

FORMAT = 1

log = logging.getLogger(__name__)


def load(path: Path) -> NodeStatus:
    """Blocks and what of them is withheld, as an earlier run noted them; nothing where that can't be read."""
    try:
        doc = json.loads(path.read_bytes())
        if doc["format"] != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        entries = [(decode_network(entry["network"]), entry) for entry in doc["networks"]]
        return NodeStatus(
            blocks={n: tuple(map(ipaddress.ip_network, entry["blocks"])) for n, entry in entries},
            withheld={n: frozenset(map(ipaddress.ip_network, entry.get("withheld", ()))) for n, entry in entries},
        )
    except FileNotFoundError:
        return NodeStatus()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s can't be used, so pods wait for the datastore: %r", path, error)
        return NodeStatus()


def save(path: Path, status: NodeStatus) -> bool:
    """Note what is prepared now, or else nothing; False when an old note may be left, which says something else.

    Networks whose pods have a slave of a parent are found out anew: the parent may have changed.
    """
    entries = [
        {
            "network": encode_network(network),
            "blocks": list(map(str, own)),
            "withheld": sorted(map(str, status.withheld.get(network, ()))),
        }
        for network, own in status.blocks.items()
        if not network.link_mode
    ]
    new = path.with_suffix(".new")
    try:
        if not entries:
            path.unlink(missing_ok=True)
            return True
        new.write_text(json.dumps({"format": FORMAT, "networks": entries}))
        os.chmod(new, 0o600)  # noqa: PTH101
        new.rename(path)
    except OSError as error:
        log.warning("%s can't be written: %s", path, error)
        return _forget(path)
    return True


def _forget(path: Path) -> bool:
    """Rather no note than one that promises blocks that may be another node's by then."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s can't be removed: %s", path, error)
        return False
    return True
