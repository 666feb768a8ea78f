"""What was prepared for pods, on file in the run-dir, which lives as long as the kernel's state does.

An agent that is restarted while the datastore is away serves pods by it: what was prepared still is.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from agent.ipam.attachments import decode_network, encode_network
from agent.model import Network, Subnet

FORMAT = 1

log = logging.getLogger(__name__)

Blocks = Mapping[Network, tuple[Subnet, ...]]
"""The blocks of each network whose node state is in the kernel."""


def load(path: Path) -> Blocks:
    """What an earlier run noted; nothing where that can't be read."""
    try:
        doc = json.loads(path.read_bytes())
        if doc["format"] != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        return {
            decode_network(entry["network"]): tuple(map(ipaddress.ip_network, entry["blocks"]))
            for entry in doc["networks"]
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s can't be used, so pods wait for the datastore: %r", path, error)
        return {}


def save(path: Path, blocks: Blocks) -> None:
    """Note what is prepared now; a failure costs no more than the note.

    Networks whose pods have a slave of a parent are found out anew: the parent may have changed.
    """
    entries = [
        {"network": encode_network(network), "blocks": list(map(str, own))}
        for network, own in blocks.items()
        if not network.link_mode
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
