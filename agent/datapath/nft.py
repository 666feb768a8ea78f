"""The nft table `testcni`: masquerade of what leaves the cluster. Replaced as a whole, in one transaction."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable
from typing import Any

from agent.datapath.state import NFT_TABLE, Masquerade
from agent.model import Subnet

TIMEOUT = 20.0  # seconds; nft takes 5 ms
FAMILIES = ((4, "ip", "ipv4_addr", "224.0.0.0/4"), (6, "ip6", "ipv6_addr", "ff00::/8"))


class NftError(OSError):
    """nft is missing, or refused; its own words are in the message."""


def render(masquerade: Masquerade) -> str:
    """The transaction that makes the table what it should be; multicast is never masqueraded."""
    lines = [f"add table inet {NFT_TABLE}", f"delete table inet {NFT_TABLE}"]
    if not masquerade.sources:
        return "\n".join(lines) + "\n"
    lines.append(f"table inet {NFT_TABLE} {{")
    rules = []
    for version, protocol, kind, multicast in FAMILIES:
        sources = _collapsed(masquerade.sources, version)
        if not sources:
            continue
        exempt = _collapsed([*masquerade.exempt, ipaddress.ip_network(multicast)], version)
        lines += [_set(f"pods{version}", kind, sources), _set(f"cluster{version}", kind, exempt)]
        rules.append(
            f"    {protocol} saddr @pods{version} {protocol} daddr != @cluster{version} masquerade fully-random"
        )
    lines += [
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
        *rules,
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


class Table:
    """The table in the kernel; it is written when what is wanted changed or somebody else changed it."""

    def __init__(self) -> None:
        self._wanted = ""
        self._listed: list[dict[str, Any]] | None = None

    def sync(self, masquerade: Masquerade, *, verify: bool) -> bool:
        """Make the table what it should be; whether it had to be written. Raises NftError.

        Whether somebody else has changed it is looked up only with `verify`, as that costs a process.
        """
        wanted = render(masquerade)
        if wanted == self._wanted and (not verify or self._listed == _list()):
            return False
        _nft(["-f", "-"], wanted)
        self._wanted, self._listed = wanted, _list()
        return True


def _set(name: str, kind: str, elements: Iterable[Subnet]) -> str:
    return f"  set {name} {{ type {kind}; flags interval; elements = {{ {', '.join(map(str, elements))} }} }}"


def _collapsed(subnets: Iterable[Subnet], version: int) -> list[Subnet]:
    if version == 4:
        return list(ipaddress.collapse_addresses(s for s in subnets if isinstance(s, ipaddress.IPv4Network)))
    return list(ipaddress.collapse_addresses(s for s in subnets if isinstance(s, ipaddress.IPv6Network)))


def _list() -> list[dict[str, Any]]:
    """The table without its handles and nft's own version, which change by themselves."""
    try:
        out = _nft(["-j", "list", "table", "inet", NFT_TABLE])
    except NftError:
        return []  # no such table, which is as good as an empty one
    entries = json.loads(out)["nftables"]
    return [_bare(entry) for entry in entries if "metainfo" not in entry]


def _bare(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if key != "handle"}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    return value


def _nft(args: list[str], stdin: str = "") -> str:
    try:
        done = subprocess.run(
            ["nft", *args], input=stdin, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        raise NftError("nft is not installed; Debian's package is nftables") from error
    except subprocess.TimeoutExpired as error:
        raise NftError(f"nft did not end within {TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        raise NftError(f"nft: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
