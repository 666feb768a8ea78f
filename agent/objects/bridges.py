"""Bridges with our alias: set up by pyroute2 (rare), read by raw netlink (often).

Pods know a bridge by its MAC, some permanently. It is recorded as another name of the bridge, `NAME-mac-HEX`, and
not in the alias, which earlier versions compare as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agent.ip import Subnet
from agent.kernel.ip_addresses import LinkAddress
from agent.kernel.ip_links import Link
from agent.model.marks import BRIDGE_ALIAS
from agent.model.problem import Problem
from agent.objects import bridge_paths
from agent.objects.base import Context, KernelState, NodeObject, Result, Stage
from agent.objects.bridge_link import MAC, interfaces, is_ours, is_plain, recorded
from agent.objects.state import Bridge, NodeState

NETFILTER = "bridge"  # of /proc/sys/net: there while the module br_netfilter is loaded


log = logging.getLogger(__name__)


def as_told(desired: frozenset[Bridge], told: Mapping[str, str]) -> frozenset[Bridge]:
    """The desired bridges, a new one with the MAC that its pods were told: earlier versions chose it otherwise."""
    known = {name: mac for name, mac in told.items() if MAC.fullmatch(mac.replace(":", ""))}
    return frozenset(replace(bridge, mac=known.get(bridge.name, bridge.mac)) for bridge in desired)


def adopt(desired: frozenset[Bridge], links: Iterable[Link]) -> frozenset[Bridge]:
    """The desired bridges with the MACs of those that are there: the recorded one, else that which it has."""
    macs = {link.name: recorded(link) or link.mac for link in links if is_ours(link)}
    return frozenset(replace(bridge, mac=macs.get(bridge.name, bridge.mac)) for bridge in desired)


def without_netfilter(desired: frozenset[Bridge], switches: Path) -> list[Problem]:
    """Return problems of bridges if the kernel has no br_netfilter. `switches` is /proc/sys/net."""
    if (switches / NETFILTER).exists():
        return []
    what = "the kernel module br_netfilter is not loaded, so a pod that calls a Service gets no answer"
    what += " from a pod of its own node"
    remedy = "load it: modprobe br_netfilter (and name it in /etc/modules-load.d)"
    return [Problem(f"bridge {name}", what, remedy) for name in sorted(bridge.name for bridge in desired)]


def read(links: Sequence[Link], addresses: Iterable[LinkAddress]) -> frozenset[Bridge]:
    """Our bridges that are up and marked, as they are; IPv6 link-local addresses are the kernel's own."""
    held = list(addresses)
    return frozenset(
        Bridge(
            link.name,
            link.mac,
            link.mtu,
            interfaces(link.index, held),
            nf_call=link.nf_call is not False,
            plain=is_plain(link),
        )
        for link in links
        if is_ours(link) and link.up and link.alias == BRIDGE_ALIAS and recorded(link)
    )


def _make(desired: frozenset[Bridge], kernel: KernelState, sysctls: Path) -> list[Problem]:
    """Make our bridges those desired, with the MACs that `adopt` found; others go with their last port."""
    links, actual = kernel.links, read(kernel.links, kernel.addresses)
    wanted = {bridge.name for bridge in desired}
    stale = [link for link in links if is_ours(link) and link.name not in wanted and not _ports(link, links)]
    problems = _clashes(desired, actual)
    clashing = {problem.where.removeprefix("bridge ") for problem in problems}
    by_name = {link.name: link for link in links}
    todo = {bridge: by_name.get(bridge.name) for bridge in desired - actual if bridge.name not in clashing}
    foreign = [link for link in todo.values() if link and not is_ours(link)]
    problems += map(_foreign, foreign)
    ours = {bridge: link for bridge, link in todo.items() if link not in foreign}
    if not ours and not stale:
        return problems
    try:
        from agent.objects import bridge_setup  # noqa: PLC0415 - where all bridges are there already, it costs nothing
    except ImportError as error:  # other objects go on
        names = [*(bridge.name for bridge in ours), *(link.name for link in stale)]
        return problems + [_refused(name, f"pyroute2 cannot be loaded: {error}") for name in names]
    errors = bridge_setup.delete(stale) | bridge_setup.ensure(ours, kernel.addresses, sysctls)
    return problems + [_refused(name, error) for name, error in errors.items()]


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


def _ports(bridge: Link, links: Iterable[Link]) -> bool:
    return any(link.master == bridge.index for link in links)


def _refused(name: str, error: str) -> Problem:
    return Problem(f"bridge {name}", error, "see `ip -d link` on this node")


def _foreign(link: Link) -> Problem:
    kind = link.kind or "interface"
    return Problem(
        f"bridge {link.name}",
        f"a {kind} of that name exists and is not testcni's",
        f"choose another name by `bridge` in the netconf, or delete it: ip link del {link.name}",
    )


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
