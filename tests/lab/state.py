"""All that a node holds of networking, as comparable values: what must be as before when all is undone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.lab.lab import LabNode

VOLATILE = {"handle", "metainfo"}
FOLDERS = ("/run/testcni", "/run/netns", "/var/lib/testcni", "/var/lib/cni", "/etc/cni", "/opt/cni")


def net_state(node: LabNode) -> dict[str, list[str]]:
    """Links, addresses, routes, nft rules and files of a node; link-local IPv6 comes and goes by itself."""
    links = _json(node, "ip", "-d", "link")
    addresses = _json(node, "ip", "address")
    routes = _json(node, "ip", "route", "show", "table", "all") + _json(
        node, "ip", "-6", "route", "show", "table", "all"
    )
    ruleset = json.loads(node.space.exec("nft", "-j", "list", "ruleset").stdout)["nftables"]
    return {
        "links": sorted(f"{link['ifname']} {link.get('master', '')} {link.get('ifalias', '')}" for link in links),
        "addresses": sorted(
            f"{link['ifname']} {a['local']}/{a['prefixlen']}"
            for link in addresses
            for a in link["addr_info"]
            if a["scope"] != "link"
        ),
        "routes": sorted(
            f"{r.get('dst')} {r.get('gateway', '')} {r.get('dev', '')} {r.get('table', '')}"
            for r in routes
            if not r.get("dst", "").startswith(("fe80", "ff00", "multicast"))
        ),
        "nft": sorted(json.dumps(_bare(entry), sort_keys=True) for entry in ruleset),
        "files": sorted(_files(node)),
    }


def difference(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What came and what went, a line each."""
    lines = [f"+ {kind}: {item}" for kind, items in after.items() for item in items if item not in before[kind]]
    return lines + [
        f"- {kind}: {item}" for kind, items in before.items() for item in items if item not in after[kind]
    ]


def fds(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _json(node: LabNode, *command: str) -> list[dict[str, Any]]:
    out = node.space.exec(command[0], "-j", *command[1:]).stdout
    return json.loads(out) if out.strip() else []


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if key not in VOLATILE}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _files(node: LabNode) -> list[str]:
    return [
        "/" + str(path.relative_to(node.space.root))
        for folder in FOLDERS
        for path in node.path(folder).rglob("*")
        if path.name != "released"  # the log of cool-downs may grow
    ]
