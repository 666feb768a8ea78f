"""All that a node holds of networking, as comparable values: what must be as before when all is undone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.lab.lab import LabNode

VOLATILE = {"handle", "metainfo"}
FOLDERS = ("/run/testcni", "/run/netns", "/var/lib/testcni", "/var/lib/cni", "/etc/cni", "/opt/cni")
ROUTE = ("type", "dst", "gateway", "dev", "table", "protocol", "scope", "prefsrc", "metric")
State = dict[str, list[str]]


def net_state(node: LabNode, *, neighbours: bool = False) -> State:
    """Links, addresses, routes, nft rules and files of a node; link-local IPv6 comes and goes by itself."""
    ruleset = json.loads(node.space.exec("nft", "-j", "list", "ruleset").stdout)["nftables"]
    state = {
        "links": sorted(map(_link, _json(node, "ip", "-d", "link"))),
        "addresses": sorted(
            f"{link['ifname']} {a['local']}/{a['prefixlen']}"
            for link in _json(node, "ip", "address")
            for a in link["addr_info"]
            if a["scope"] != "link"
        ),
        "routes": sorted(
            _route(route)
            for version in ("-4", "-6")
            for route in _json(node, "ip", "-N", version, "route", "show", "table", "all")
            if not route.get("dst", "").startswith(("fe80", "ff00", "multicast"))
        ),
        "nft": sorted(json.dumps(_bare(entry), sort_keys=True) for entry in ruleset),
        "files": sorted(_files(node)),
    }
    if neighbours:
        entries = _json(node, "ip", "neighbour", "show", "nud", "all")
        state["neighbours"] = sorted(f"{n['dst']} {n['dev']} {n.get('lladdr', '')}" for n in entries)
    return state


def difference(before: State, after: State) -> list[str]:
    """Return what came and what went, a line each; what is there twice counts twice."""
    came = [f"+ {kind}: {item}" for kind in after for item in _more(after[kind], before.get(kind, []))]
    went = [f"- {kind}: {item}" for kind in before for item in _more(before[kind], after.get(kind, []))]
    return came + went


def fds(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _more(some: list[str], others: list[str]) -> list[str]:
    return sorted((Counter(some) - Counter(others)).elements())


def _link(link: dict[str, Any]) -> str:
    kind = link.get("linkinfo", {}).get("info_kind", "")
    words = (kind, link["ifname"], f"mtu {link['mtu']}", link.get("master", ""), link.get("ifalias", ""))
    return " ".join(filter(None, words))


def _route(route: dict[str, Any]) -> str:
    words = [f"{key} {route[key]}" for key in ROUTE if route.get(key)]
    # the other flags (linkdown, dead) are the carrier's, not anybody's wish
    return " ".join([*words, "onlink"] if "onlink" in route.get("flags", ()) else words)


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
