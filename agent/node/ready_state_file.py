"""The file of the networks prepared for pods, in the run-dir. It lives as long as the kernel's state.

An agent that is restarted while the datastore is away serves pods by it: what was prepared still is.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from agent.codec import strict_json
from agent.codec.network_json import (
    OptionTypes,
    decode_network,
    decode_uplink,
    encode_network,
    encode_uplink,
    subnets,
)
from agent.model.node_status import NodeStatus
from agent.runtime import atomic_file, json_state_file

FORMAT = 1

log = logging.getLogger(__name__)


def load(path: Path, types: OptionTypes) -> NodeStatus:
    """Blocks, what of them is withheld, and uplinks, as an earlier run noted them; nothing if it did not."""
    try:
        doc = strict_json.mapping(atomic_file.read(path))
        if doc["format"] != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        entries = [(decode_network(entry["network"], types), entry) for entry in doc["networks"]]
        return NodeStatus(
            blocks={n: subnets(entry["blocks"]) for n, entry in entries},
            excluded={n: frozenset(subnets(entry["withheld"])) for n, entry in entries if "withheld" in entry},
            uplinks={n: decode_uplink(entry["uplink"]) for n, entry in entries if "uplink" in entry},
            families={n: _versions(entry["families"]) for n, entry in entries if "families" in entry},
        )
    except FileNotFoundError:
        return NodeStatus()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s can't be used, so pods wait for the datastore: %r", path, error)
        return NodeStatus()


def alike(one: NodeStatus, other: NodeStatus) -> bool:
    """Return whether the notes of two are the same."""
    return _noted(one) == _noted(other)


def _noted(status: NodeStatus) -> tuple[object, ...]:
    return (status.blocks, status.excluded, status.uplinks, status.families)


def is_there(path: Path, status: NodeStatus) -> bool:
    """Return whether there is a note, where there should be one."""
    return not status.blocks or path.exists()


def save(path: Path, status: NodeStatus) -> bool:
    """Note what is prepared now, or else nothing; False when an old note may be left, which says other things."""
    entries: list[dict[str, Any]] = [
        {
            "network": encode_network(network),
            "blocks": list(map(str, own)),
            **({"withheld": sorted(map(str, status.excluded[network]))} if network in status.excluded else {}),
            **({"families": sorted(status.families[network])} if network in status.families else {}),
            **({"uplink": encode_uplink(status.uplinks[network])} if network in status.uplinks else {}),
        }
        for network, own in status.blocks.items()
    ]
    if not entries:
        return _forget(path)
    return json_state_file.write(path, {"format": FORMAT, "networks": entries}) or _forget(path)


def _versions(found: list[int]) -> frozenset[int]:
    if not {*found} <= {4, 6}:
        raise ValueError(f"families {found!r:.80} are not 4 and 6")
    return frozenset(found)


def _forget(path: Path) -> bool:
    """Rather no note than one that promises blocks that may be another node's by then."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s can't be removed: %s", path, error)
        return False
    return True
