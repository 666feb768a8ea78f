"""Bridges with our alias: set up by pyroute2 (rare), read by raw netlink (often).

Pods know a bridge by its MAC, some for good. It is recorded as another name of the bridge, `NAME-mac-HEX`, and not
in the alias, which earlier versions compare as a whole.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.ip import Interface, Subnet
from agent.kernel import hardening, link_setup, sysctl
from agent.kernel.ip_addresses import LinkAddress
from agent.kernel.ip_links import IFF_NOARP, IFLA_BR_STP_STATE, IFLA_BR_VLAN_FILTERING, Link
from agent.model.marks import BRIDGE_ALIAS, BRIDGE_MAC_PREFIX
from agent.model.problem import Problem
from agent.objects import bridge_paths
from agent.objects.base import Context, KernelState, NodeObject, Result, Stage
from agent.objects.state import Bridge, NodeState

MAC = re.compile(r"[0-9a-f]{12}")
# by pyroute2's names
SWITCHES: Mapping[str, int] = {"br_stp_state": IFLA_BR_STP_STATE, "br_vlan_filtering": IFLA_BR_VLAN_FILTERING}
NETFILTER = "bridge"  # of /proc/sys/net: there while the module br_netfilter is loaded


log = logging.getLogger(__name__)


def is_ours(link: Link) -> bool:
    """Whether testcni made this bridge: it has its MAC from the start, its alias a moment later."""
    return link.kind == "bridge" and (link.alias == BRIDGE_ALIAS or link.mac.startswith(BRIDGE_MAC_PREFIX))


def as_told(desired: frozenset[Bridge], told: Mapping[str, str]) -> frozenset[Bridge]:
    """The desired bridges, a new one with the MAC that its pods were told: earlier versions chose it otherwise."""
    known = {name: mac for name, mac in told.items() if MAC.fullmatch(mac.replace(":", ""))}
    return frozenset(replace(bridge, mac=known.get(bridge.name, bridge.mac)) for bridge in desired)


def adopt(desired: frozenset[Bridge], links: Iterable[Link]) -> frozenset[Bridge]:
    """The desired bridges with the MACs of those that are there: the recorded one, else that which it has."""
    macs = {link.name: _recorded(link) or link.mac for link in links if is_ours(link)}
    return frozenset(replace(bridge, mac=macs.get(bridge.name, bridge.mac)) for bridge in desired)


def without_netfilter(desired: frozenset[Bridge], switches: Path) -> list[Problem]:
    """Return problems of bridges if the kernel has no br_netfilter. `switches` is /proc/sys/net."""
    if (switches / NETFILTER).exists():
        return []
    what = "the kernel module br_netfilter is not loaded, so a pod that calls a Service gets no answer"
    what += " from a pod of its own node"
    remedy = "load it: modprobe br_netfilter (and name it in /etc/modules-load.d)"
    return [Problem(f"bridge {name}", what, remedy) for name in sorted(bridge.name for bridge in desired)]


def _record(name: str, mac: str) -> str:
    return f"{name}-mac-{mac.replace(':', '')}"


def _recorded(link: Link) -> str | None:
    """The MAC that a bridge was given, if it was recorded."""
    mark = _record(link.name, "")
    found = (name.removeprefix(mark) for name in link.altnames if name.startswith(mark))
    return next((bytes.fromhex(text).hex(":") for text in found if MAC.fullmatch(text)), None)


def read(links: Sequence[Link], addresses: Iterable[LinkAddress]) -> frozenset[Bridge]:
    """Our bridges that are up and marked, as they are; IPv6 link-local addresses are the kernel's own."""
    held = list(addresses)
    return frozenset(
        Bridge(
            link.name,
            link.mac,
            link.mtu,
            _interfaces(link.index, held),
            nf_call=link.nf_call is not False,
            plain=_is_plain(link),
        )
        for link in links
        if is_ours(link) and link.up and link.alias == BRIDGE_ALIAS and _recorded(link)
    )


def _is_plain(link: Link) -> bool:
    return link.arp and not link.master and not _switched_on(link)


def _switched_on(link: Link) -> dict[str, int]:
    """What keeps packets from a bridge's ports and is on, and is to be 0; a kernel may lack either."""
    found = {name: link_setup.option(link, number) for name, number in SWITCHES.items()}
    return {name: 0 for name, value in found.items() if any(value or b"")}


def _make_plain(ipr: IPRoute, link: Link) -> None:
    """Let a bridge carry what its ports send. Raises NetlinkError."""
    if switches := _switched_on(link):
        ipr.link("set", index=link.index, kind="bridge", **switches)
    ipr.link("set", index=link.index, master=0, flags=0, change=IFF_NOARP)


def _make(desired: frozenset[Bridge], kernel: KernelState, sysctls: Path) -> list[Problem]:
    """Make our bridges those desired, with the MACs that `adopt` found; others go with their last port."""
    links, actual = kernel.links, read(kernel.links, kernel.addresses)
    wanted = {bridge.name for bridge in desired}
    stale = [link for link in links if is_ours(link) and link.name not in wanted and not _ports(link, links)]
    problems = _clashes(desired, actual)
    clashing = {problem.where.removeprefix("bridge ") for problem in problems}
    todo = {bridge for bridge in desired - actual if bridge.name not in clashing}
    if not todo and not stale:
        return problems
    by_name = {link.name: link for link in links}
    with IPRoute() as ipr:
        for link in stale:
            try:
                ipr.link("del", index=link.index)
            except NetlinkError as error:
                problems.append(_refused(link.name, error))
        for bridge in todo:
            known = by_name.get(bridge.name)
            if known and not is_ours(known):
                problems.append(_foreign(known))
                continue
            try:
                _ensure(ipr, bridge, known, kernel.addresses, sysctls)
            except (NetlinkError, OSError) as error:
                problems.append(_refused(bridge.name, error))
    return problems


def _clashes(desired: frozenset[Bridge], actual: frozenset[Bridge]) -> list[Problem]:
    """Bridges that share a subnet with another, which has it already or is the first by name."""
    there = {bridge.name: bridge.addresses for bridge in actual}
    owners: dict[Subnet, str] = {}
    problems = []
    for bridge in sorted(desired, key=lambda b: (not b.addresses & there.get(b.name, frozenset()), b.name)):
        subnets = {interface.network for interface in bridge.addresses}
        taken = next((subnet for subnet in subnets if subnet in owners), None)
        if taken is None:
            owners.update(dict.fromkeys(subnets, bridge.name))
            continue
        what = f"its block {taken} is that of bridge {owners[taken]}"
        remedy = "give each network a `subnet` of its own, or all of them one bridge"
        problems.append(Problem(f"bridge {bridge.name}", what, remedy))
    return problems


def _interfaces(index: int, addresses: Iterable[LinkAddress]) -> frozenset[Interface]:
    return frozenset(a.interface for a in addresses if a.index == index and not a.address.is_link_local)


def _ports(bridge: Link, links: Iterable[Link]) -> bool:
    return any(link.master == bridge.index for link in links)


def _refused(name: str, error: NetlinkError | OSError) -> Problem:
    return Problem(f"bridge {name}", str(error), "see `ip -d link` on this node")


def _foreign(link: Link) -> Problem:
    kind = link.kind or "interface"
    return Problem(
        f"bridge {link.name}",
        f"a {kind} of that name exists and is not testcni's",
        f"choose another name by `bridge` in the netconf, or delete it: ip link del {link.name}",
    )


def _ensure(
    ipr: IPRoute, bridge: Bridge, link: Link | None, addresses: Iterable[LinkAddress], sysctls: Path
) -> None:
    """Make a bridge, or make it again what it should be. Raises NetlinkError, OSError."""
    if link is None:
        # no spanning tree: a port forwards at once; the MAC is given, else it changes with the ports
        ipr.link("add", ifname=bridge.name, kind="bridge", address=bridge.mac, mtu=bridge.mtu, br_stp_state=0)
        index = ipr.link_lookup(ifname=bridge.name)[0]
    else:
        index = link.index
    if link is None or _recorded(link) is None:
        ipr.link("property_add", index=index, altname=[_record(bridge.name, bridge.mac)])
    if link is None or link.alias != BRIDGE_ALIAS:
        ipr.link("set", index=index, ifalias=BRIDGE_ALIAS)
    if link is None or link.nf_call is False:
        # a kernel without br_netfilter ignores it
        ipr.link("set", index=index, kind="bridge", br_nf_call_iptables=1, br_nf_call_ip6tables=1)
    if link and not _is_plain(link):
        _make_plain(ipr, link)
    if link is None or not link.up or link.mac != bridge.mac or link.mtu != bridge.mtu:
        hardening.before_up(sysctls, bridge.name)
        ipr.link("set", index=index, address=bridge.mac, mtu=bridge.mtu, state="up")
    held = _interfaces(index, addresses)
    if any(interface.version == 6 for interface in bridge.addresses - held):
        sysctl.enable_ipv6(
            sysctls, (bridge.name,)
        )  # the node may have turned it off for all interfaces, or new ones
    for interface in bridge.addresses - held:
        ipr.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)
    for interface in held - bridge.addresses:
        ipr.addr("del", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)


class Bridges(NodeObject):
    """The bridges that pods are ports of, with the routes and entries that the kernel makes of them."""

    kind = "bridges"
    stage = Stage.DEVICES

    def wanted(self, desired: NodeState) -> object:
        """Return the bridges."""
        return desired.bridges

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Make the bridges those desired. Raises OSError."""
        wanted = adopt(desired.bridges, ctx.kernel.links)
        lacking = wanted - read(ctx.kernel.links, ctx.kernel.addresses)
        refused = _make(wanted, ctx.kernel, ctx.host.sysctls)
        unready = frozenset(problem.where.removeprefix("bridge ") for problem in refused)
        restored = 0
        if ctx.verify:
            restored = bridge_paths.repair(ctx.nl, (bridge for bridge in wanted if bridge.name not in unready))
            if restored:
                log.warning("bridges: restored %d routes and entries that somebody had removed", restored)
        return Result(
            (*refused, *without_netfilter(wanted, ctx.host.sysctls)),
            unready,
            sum(bridge.name not in unready for bridge in lacking) + restored,
            failed=bool(refused),
        )
