"""The nft table `testcni`: masquerade, SNAT to the node, and which packets of tunnels are accepted.

One list of objects in the form of libnftables-json(5) is what is written and what the kernel's is compared with.
"""

from __future__ import annotations

import ipaddress
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from agent.ip import Subnet
from agent.kernel import nft
from agent.kernel.nft import NftError, Object, UnreadableError
from agent.model.marks import LINK_PREFIX, NFT_TABLE
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.state import AcceptedSources, Masquerade, NodeSnat, NodeState, Shut

FAMILIES = ((4, "ip", "ipv4_addr", "224.0.0.0/4"), (6, "ip6", "ipv6_addr", "ff00::/8"))
TABLE: Mapping[str, Any] = {"family": "inet", "name": NFT_TABLE, "flags": ()}
"""The table without flags: a dormant table does nothing."""
INSIDE: Mapping[str, Any] = {"family": "inet", "table": NFT_TABLE}
CHAIN: Mapping[str, Any] = {
    "name": "postrouting",
    "type": "nat",
    "hook": "postrouting",
    "prio": 100,
    "policy": "accept",
}

INPUT: Mapping[str, Any] = {"name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": "accept"}
OUTPUT: Mapping[str, Any] = {**INPUT, "name": "output", "hook": "output"}
FORWARD: Mapping[str, Any] = {**INPUT, "name": "forward", "hook": "forward"}
# before any masquerade: what is dropped is known by where it comes from
TUNNELS: Mapping[str, Any] = {**INPUT, "name": "tunnels", "hook": "postrouting", "prio": 90}
TUNNEL_PROTOCOLS = (4, 41)  # IPv4 and IPv6 in IPv4

log = logging.getLogger(__name__)

Counted = dict[str, int]

DROP: Mapping[str, Any] = {"drop": None}
TRANSLATED: Mapping[str, Any] = {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}
OPEN = Shut()
NONE: Mapping[int, Any] = MappingProxyType({})
PROTOCOL: Mapping[str, Any] = {"payload": {"protocol": "ip", "field": "protocol"}}


def objects(
    masquerade: Masquerade,
    accepted_sources: AcceptedSources = NONE,
    counted: Mapping[int, Counted] = NONE,
    no_redirects_on: frozenset[str] = frozenset(),
    shut: Shut = OPEN,
) -> list[Object]:
    """Return the objects of the table, none where it would do nothing; multicast is never masqueraded.

    Packets of the protocols in `accepted_sources` are accepted from these addresses only; others are dropped and
    counted, beginning at `counted`. No ICMP redirects leave by the devices `no_redirects_on`. No packet of a pod
    goes to what is `shut`, nor any that was translated on its way.
    """
    sets: list[Object] = []
    rules: list[Object] = []
    for version, protocol, kind, multicast in FAMILIES:
        sources = _collapsed(masquerade.sources, version)
        if not sources:
            continue
        exempt = _collapsed([*masquerade.exempt, ipaddress.ip_network(multicast)], version)
        sets += [_set(f"pods{version}", kind, sources), _set(f"cluster{version}", kind, exempt)]
        rules.append(_masquerade(version, protocol))
    for snat in sorted(masquerade.node_snats, key=str):
        rules += _node_snat(snat)
    chains: list[Object] = [{"chain": {**INSIDE, **CHAIN}}] if rules else []
    closed = _shut(shut, from_pods=any(source.version == 4 for source in masquerade.sources))
    for number, accepted in sorted(accepted_sources.items(), reverse=True):
        name = _sources_of(number)
        sets += [_set(name, "ipv4_addr", _collapsed(map(ipaddress.ip_network, accepted), 4))]
        closed = [_only_sources(number, counted.get(number)), *closed]
    chains += [
        {"chain": {**INSIDE, **chain}}
        for chain in (INPUT, FORWARD, TUNNELS)
        if any(rule["rule"]["chain"] == chain["name"] for rule in closed)
    ]
    rules += closed
    if no_redirects_on:
        chains += [{"chain": {**INSIDE, **OUTPUT}}]
        rules += [_no_redirects(device) for device in sorted(no_redirects_on)]
    return [{"table": TABLE}, *sets, *chains, *rules] if rules else []


def write(
    masquerade: Masquerade,
    accepted_sources: AcceptedSources = NONE,
    no_redirects_on: frozenset[str] = frozenset(),
    shut: Shut = OPEN,
) -> bool:
    """Make the table what it should be, in one transaction; return whether it was not. Raises NftError."""
    actual = _list_if_readable()
    counted = _counters(actual or (), accepted_sources)
    wanted = objects(masquerade, accepted_sources, counted, no_redirects_on, shut)
    if actual is not None and nft.is_same(wanted, actual):
        return False
    nft.replace_table(TABLE, wanted)
    if actual is None:
        _list()  # the new table must be readable, else nft has failed
    return True


def _list_if_readable() -> list[Object] | None:
    """Return the table's objects, None where nft lists them in a form that is no JSON. Raises NftError."""
    try:
        return _list()
    except UnreadableError as error:
        log.warning("%s: the table is written again", error)
        return None


def is_filtering(protocol: int, *, last_known: bool) -> bool:
    """Return whether packets of an IP protocol are dropped but from accepted sources.

    Where nft fails, return what was known last.
    """
    try:
        actual = _list()
    except UnreadableError:
        return False
    except NftError:
        return last_known
    wanted: list[Object] = [{"table": TABLE}, {"chain": {**INSIDE, **INPUT}}, _only_sources(protocol, None)]
    return nft.includes(actual, wanted)


def dropped(protocol: int) -> int:
    """Return how many packets of an IP protocol from other sources were dropped. Raises NftError."""
    found = _counters(_list(), [protocol]).get(protocol)
    return found["packets"] if found else 0


def _counters(actual: Sequence[Object], protocols: Iterable[int]) -> dict[int, Counted]:
    """Return packets and bytes that our own rules have counted, by IP protocol. Rules of others do not count."""
    found = {}
    for protocol in protocols:
        ours = (entry for entry in actual if nft.includes([entry], [_only_sources(protocol, None)]))
        counters = (step["counter"] for entry in ours for step in entry["rule"]["expr"] if "counter" in step)
        if counter := next((each for each in counters if isinstance(each, dict)), None):  # a named one is a text
            found[protocol] = counter
    return found


def _set(name: str, kind: str, subnets: Iterable[Subnet]) -> Object:
    elements = [_prefix(subnet) for subnet in subnets]
    return {"set": {**INSIDE, "name": name, "type": kind, "flags": ["interval"], "elem": elements}}


def _masquerade(version: int, protocol: str) -> Object:
    pods, elsewhere = f"@pods{version}", f"@cluster{version}"
    to_others = _match(_payload(protocol, "daddr"), elsewhere, "!=")
    steps = _match(_payload(protocol, "saddr"), pods), to_others, {"masquerade": {"flags": ["fully-random"]}}
    return _rule(CHAIN, *steps)


def _sources_of(protocol: int) -> str:
    return f"nodes{protocol}"


def _only_sources(protocol: int, counted: Counted | None) -> Object:
    others = _match(_payload("ip", "saddr"), f"@{_sources_of(protocol)}", "!=")
    return _rule(INPUT, _match(PROTOCOL, protocol), others, {"counter": counted}, DROP)


def _shut(shut: Shut, *, from_pods: bool) -> list[Object]:
    """Drop packets to ports of tunnels, of this node and of others: those of pods, and all that were translated.

    A Service may lead to a node's port: then the packet comes from the node that translated it, or passed it on.
    What goes to a pod is let through. `from_pods`: the set of the pods' addresses is there, for pods that have no
    port with pod_guard. Packets of a tunnel itself pass the chain `input`, so the match that they fail is first.
    """
    interfaces = sorted((f"{LINK_PREFIX}*", *shut.bridges))
    of_pods = (_match(_meta("iifname"), name) for name in interfaces)
    to_pods = [_match(_meta("oifname"), name, "!=") for name in (*interfaces, *sorted(shut.to_pods))]
    rules = [_rule(INPUT, TRANSLATED, _to_port(port), DROP) for port in shut.ports]
    origins = itertools.product((TRANSLATED, *of_pods), shut.ports)
    rules += [_rule(FORWARD, origin, _to_port(port), *to_pods, DROP) for origin, port in origins]
    if shut.bypassed and from_pods:
        own = _match(_payload("ip", "saddr"), "@pods4")
        rules += [_rule(TUNNELS, _match(PROTOCOL, number), own, DROP) for number in TUNNEL_PROTOCOLS]
        rules += [_rule(TUNNELS, _to_port(port), own, *to_pods, DROP) for port in shut.ports]
    return rules


def _to_port(port: int) -> Object:
    return _match(_payload("udp", "dport"), port)


def _no_redirects(device: str) -> Object:
    """A guest is by the same device as who asks for it, but is reached by the node only (RFC 792, redirect)."""
    redirect = _match(_payload("icmp", "type"), "redirect")
    return _rule(OUTPUT, _match(_meta("oifname"), device), redirect, DROP)


def _node_snat(snat: NodeSnat) -> list[Object]:
    """Packets from pods by their veth pair, and translated packets to pods."""
    protocol = "ip" if snat.subnet.version == 4 else "ip6"
    statement = {"snat": {"family": protocol, "addr": str(snat.source)}}

    def rule(interface: str, field: str, *more: Object) -> Object:
        pods = _match(_payload(protocol, field), _prefix(snat.subnet))
        return _rule(CHAIN, _match(_meta(interface), f"{LINK_PREFIX}*"), pods, *more, statement)

    out = rule("iifname", "saddr") if snat.everything else rule("iifname", "saddr", TRANSLATED)
    return [out, rule("oifname", "daddr", TRANSLATED)]


def _rule(chain: Mapping[str, Any], *steps: Object) -> Object:
    return {"rule": {**INSIDE, "chain": chain["name"], "expr": list(steps)}}


def _match(left: Object, right: str | int | Object, operator: str = "==") -> Object:
    return {"match": {"op": operator, "left": left, "right": right}}


def _payload(protocol: str, field: str) -> Object:
    return {"payload": {"protocol": protocol, "field": field}}


def _meta(key: str) -> Object:
    return {"meta": {"key": key}}


def _prefix(subnet: Subnet) -> Object:
    return {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}


def _collapsed(subnets: Iterable[Subnet], version: int) -> list[Subnet]:
    if version == 4:
        return list(ipaddress.collapse_addresses(s for s in subnets if isinstance(s, ipaddress.IPv4Network)))
    return list(ipaddress.collapse_addresses(s for s in subnets if isinstance(s, ipaddress.IPv6Network)))


def _list() -> list[Object]:
    """Return the table's objects; none when there is no such table. Raises NftError."""
    return nft.list_table("inet", NFT_TABLE)


class NftTable(NodeObject):
    """The whole table, in one transaction."""

    kind = "nft"
    stage = Stage.GUARDS
    costly = True

    def wanted(self, desired: NodeState) -> object:
        """Return all that the table is for."""
        return desired.filter

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Write the table where it differs; a device that is still there keeps its filter. Raises OSError."""
        accepted = {**ctx.still_guarded.sources, **desired.accepted_sources}
        if not write(desired.masquerade, accepted, desired.no_redirects_on, desired.shut):
            return Result()
        log.info("nft table written: masquerade of %d blocks", len(desired.masquerade.sources))
        return Result(changed=1)
