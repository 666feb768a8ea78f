"""What was prepared for pods, on file in the run-dir, which lives as long as the kernel's state does.

An agent that is restarted while the datastore is away serves pods by it: what was prepared still is.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from pathlib import Path
from typing import Any

from agent.ipam.attachments import decode_network, decode_uplink, encode_network, encode_uplink
from agent.shared import NodeStatus

FORMAT = 1

log = logging.getLogger(__name__)


def load(path: Path) -> NodeStatus:
    """Blocks and uplinks that an earlier run noted; nothing where that can't be read."""
    try:
        doc = json.loads(path.read_bytes())
        if doc["format"] != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        entries = [(decode_network(entry["network"]), entry) for entry in doc["networks"]]
        return NodeStatus(
            blocks={network: tuple(map(ipaddress.ip_network, entry["blocks"])) for network, entry in entries},
            uplinks={network: decode_uplink(entry["uplink"]) for network, entry in entries if "uplink" in entry},
        )
    except FileNotFoundError:
        return NodeStatus()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s can't be used, so pods wait for the datastore: %r", path, error)
        return NodeStatus()


def save(path: Path, status: NodeStatus) -> None:
    """Note what is prepared now; a failure costs no more than the note."""
    entries: list[dict[str, Any]] = [
        {
            "network": encode_network(network),
            "blocks": list(map(str, own)),
            **({"uplink": encode_uplink(status.uplinks[network])} if network in status.uplinks else {}),
        }
        for network, own in status.blocks.items()
    ]
    new = path.with_suffix(".new")
    try:
        if not entries:
            path.unlink(missing_ok=True)
            return
        new.write_text(json.dumps({"format": FORMAT, "networks": entries}))
        os.chmod(new, 0o600)  # noqa: PTH101
        new.rename(path)
    except OSError as error:
        log.warning("%s can't be written: %s", path, error)
