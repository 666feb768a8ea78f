"""Make the text of bird.conf: a pure function of a BirdConfig and the templates in the folder `bird`.

The language: BIRD 2 User's Guide, chapters "Configuration", "Filters" and "Protocols".
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from string import Template

from agent.model import special_addresses
from agent.modes.ipip.bird import restart_guard
from agent.modes.ipip.bird.types import AS_ALLOWED, AS_NUMBERS, BirdConfig, BirdError, External, Peer, Secret

FOLDERS = (Path(__file__).resolve().parents[4] / "bird", Path("/opt/testcni/bird"))  # a clone's, the image's
PLAIN = re.compile(r"[a-z0-9]{1,40}")
LINK_NAME = re.compile(r"[A-Za-z0-9_.@\-]{1,15}")


def render(config: BirdConfig, *, kernel: bool = True) -> str:
    """Return the text of bird.conf, with secrets; without `kernel` BIRD does not change routes in the kernel.

    Raises BirdError for values that a BIRD configuration cannot have.
    """
    _check(config)
    peers = sorted(config.peers, key=lambda peer: peer.name)
    externals = sorted(config.externals, key=lambda external: int(external.address))
    protocols = [
        *(_peer(config, peer) for peer in peers if config.reflector or peer.reflector or not _reflected(config)),
        *(_external(external) for external in externals),
    ]
    return _template("bird.conf").substitute(
        router_id=config.address,
        asn=config.asn,
        wait=int(restart_guard.LONGEST),
        disabled="no" if kernel else "yes",
        metric=config.metric,
        table=config.table,
        pools=_set(f"{pool}+" for pool in sorted(config.pools)),
        never=_set(
            f"{kept.network}{sign}"
            for kept in special_addresses.CLASSES
            if kept.network.version == 4
            for sign in "+-"
        ),
        own=_set(f"{block}{sign}" for block in sorted(config.blocks) if block.prefixlen < 32 for sign in "+-"),
        blocks="\n".join(f"  route {block} unreachable;" for block in sorted(config.blocks)),
        to_kernel=_to_kernel(config),
        next_hop=_next_hop(config),
        protocols="".join(protocols),
    )


def symbol(name: str) -> str:
    """Return a node's name in BIRD's language: at most 64 of [A-Za-z0-9_], different for different nodes."""
    if PLAIN.fullmatch(name):
        return f"node_{name}"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"node_{re.sub('[^A-Za-z0-9]', '_', name)[:30]}_{digest[:16]}"


def symbols(config: BirdConfig) -> dict[str, str]:
    """Return the names of the peers by the names of their protocols in BIRD."""
    return {
        **{symbol(peer.name): peer.name for peer in config.peers},
        **{_external_symbol(external): external.name for external in config.externals},
    }


def _reflected(config: BirdConfig) -> bool:
    """Return whether there are route reflectors, so that other nodes need no session with each other."""
    return config.reflector or any(peer.reflector for peer in config.peers)


def _check(config: BirdConfig) -> None:
    for asn in (config.asn, *(external.asn for external in config.externals)):
        if asn not in AS_NUMBERS:
            raise BirdError(f"{asn} is not an AS number", AS_ALLOWED)
    if not 1 <= config.metric < 2**32 or not 1 <= config.table < 2**32:
        raise BirdError(f"metric {config.metric} and table {config.table}", "both are from 1 to 4294967295")
    for external in config.externals:
        if external.asn == config.asn:
            raise BirdError(
                f"external peer {external.address} has the cluster's own AS {config.asn}",
                "give the cluster or the router another private AS number",
            )
    if config.tunnel and not LINK_NAME.fullmatch(config.tunnel.device):
        what = f"BIRD does not accept {config.tunnel.device!r} as an interface name"
        raise BirdError(what, "use letters, digits, _ . @ and -")
    addresses = [config.address, *(p.address for p in config.peers), *(e.address for e in config.externals)]
    if len(set(addresses)) < len(addresses):
        twice = next(address for address in addresses if addresses.count(address) > 1)
        raise BirdError(f"{twice} is the address of two nodes or peers", "give each one of its own")


def _set(patterns: Iterable[str]) -> str:
    return ", ".join(patterns)


def _to_kernel(config: BirdConfig) -> str:
    lines = []
    if config.guard:
        lines.append('  if proto = "testcni_blocks" then accept;')
    lines.append("  if source != RTS_BGP then reject;")
    if config.source:
        lines.append(f"  krt_prefsrc = {config.source};")
    if config.tunnel and config.tunnel.mtu:
        lines.append(f"  if ifname = {_quoted(config.tunnel.device)} then krt_mtu = {config.tunnel.mtu};")
    return "\n".join([*lines, "  accept;"])


def _next_hop(config: BirdConfig) -> str:
    lines = []
    if config.direct:
        # not as a set: sets of prefixes do not match addresses
        near = " || ".join(f"bgp_next_hop ~ {network}" for network in sorted(config.direct))
        lines.append(f"  if {near} then {{ gw = bgp_next_hop; accept; }}")
    if config.tunnel:
        # this order matters: BIRD looks gw up on the interface, and accepts it as on-link only after onlink is set
        via = config.tunnel.gateway or "bgp_next_hop"
        lines += [
            f"  ifname = {_quoted(config.tunnel.device)};",
            "  onlink = true;",
            f"  gw = {via};",
            "  accept;",
        ]
    else:
        lines.append("  reject;  # the path would go through routers that do not know our blocks")
    return "\n".join(lines)


def _peer(config: BirdConfig, peer: Peer) -> str:
    client = config.reflector and not peer.reflector
    return _template("node-peer.conf").substitute(
        symbol=symbol(peer.name),
        description=_described(f"node {peer.name}"),
        address=peer.address,
        asn=config.asn,
        options=_password(config.password) + ("  rr client;\n" if client else ""),
        import_filter="from_reflector" if peer.reflector else "from_node",
        export_filter="to_node_reflected" if config.reflector else "to_node",
    )


def _external(external: External) -> str:
    return _template("external-peer.conf").substitute(
        symbol=_external_symbol(external),
        description=_described(external.name),
        address=external.address,
        asn=external.asn,
        options=_password(external.password) + ("  multihop;\n" if external.multihop else ""),
    )


def _external_symbol(external: External) -> str:
    return f"external_{str(external.address).replace('.', '_')}"


def _password(secret: Secret | None) -> str:
    return f'  password "{secret.text}";\n' if secret else ""


def _quoted(text: str) -> str:
    return f'"{text}"'


def _described(text: str) -> str:
    """Return a text for people, without quotes: strings of BIRD have no escapes."""
    return "".join(c if c.isascii() and c.isprintable() and c != '"' else "?" for c in text)[:100]


@functools.cache
def _template(name: str) -> Template:
    for folder in FOLDERS:
        if (folder / name).exists():
            return Template((folder / name).read_text())
    raise BirdError(f"there is no template {name}", f"it must be in {' or '.join(map(str, FOLDERS))}")


def networks(values: Iterable[object]) -> tuple[IPv4Network, ...]:
    """Return the IPv4 networks, in their order: BIRD announces no others here."""
    return tuple(value for value in values if isinstance(value, IPv4Network))
