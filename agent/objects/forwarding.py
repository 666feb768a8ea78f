"""The forwarding of packets between interfaces of the node (ip-sysctl in the kernel's documentation)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from agent.kernel import hardening, ip_links, ip_routes
from agent.model.problem import Problem
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.state import NodeState

ACCEPTED, ALSO_WHILE_FORWARDING = 1, 2  # of accept_ra
STRICT, LOOSE = 1, 2  # of rp_filter: sources must be reached by the same interface, or by any
SWITCHES: Mapping[int, str] = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}

log = logging.getLogger(__name__)


def _turn_on(
    versions: frozenset[int], sysctls: Path, advertised: Callable[[], Iterable[str]] = tuple
) -> list[int]:
    """Turn forwarding on for these IP versions; returns those for which it was off. Raises OSError.

    `sysctls` is /proc/sys/net, or where a container has it mounted: its own can't be written. `advertised` names
    the interfaces with a default route that a router has advertised: a node that forwards drops such a route and
    accepts no other, unless accept_ra is 2. It is set before; where it cannot be, forwarding stays off.
    """
    off = [version for version in sorted(versions) if not _is_on(sysctls / SWITCHES[version])]
    for version in off:
        for device in advertised() if version == 6 else ():
            switch = sysctls / f"ipv6/conf/{device}/accept_ra"
            if _number(switch) == ACCEPTED:
                switch.write_text(str(ALSO_WHILE_FORWARDING))
                log.info("%s accepts router advertisements also while the node forwards (accept_ra 2)", device)
        (sysctls / SWITCHES[version]).write_text("1")
    return off


def _turn_on_each(versions: frozenset[int], devices: Iterable[str], sysctls: Path) -> list[str]:
    """Turn forwarding on for interfaces that we made; those for which it was off. Raises OSError.

    The kernel asks the interface that a packet came by; it has the switch of new interfaces, `default`.
    """
    found = []
    for device in sorted(devices):
        switches = [sysctls / f"ipv{version}/conf/{device}/forwarding" for version in sorted(versions)]
        off = [switch for switch in switches if switch.exists() and not _is_on(switch)]
        for switch in off:
            switch.write_text("1")
        found += [device] if off else []
    return found


def _blocked(devices: Iterable[str], sysctls: Path) -> list[str]:
    """Return the interfaces whose packets the node does not forward, though it does forward. Raises OSError."""
    switches = {device: sysctls / f"ipv4/conf/{device}/forwarding" for device in sorted(devices)}
    return [device for device, switch in switches.items() if switch.exists() and not _is_on(switch)]


def _loosen(devices: Iterable[str], sysctls: Path) -> list[str]:
    """Let interfaces take packets that would go back by another one; those that did not. Raises OSError."""
    folder = sysctls / "ipv4/conf"
    for_all, found = _number(folder / "all/rp_filter"), []
    for device in sorted(devices):
        switch = folder / device / "rp_filter"
        if switch.exists() and max(for_all, _number(switch)) == STRICT:  # the kernel goes by the higher one
            switch.write_text(str(LOOSE))
            found.append(device)
    return found


def _answer(bridges: Iterable[str], sysctls: Path) -> list[str]:
    """Have bridges answer ARP for what is reached by another interface; those that did not. Raises OSError."""
    found = []
    for bridge in sorted(bridges):
        proxy, delay = sysctls / f"ipv4/conf/{bridge}/proxy_arp", sysctls / f"ipv4/neigh/{bridge}/proxy_delay"
        if proxy.exists() and (_number(proxy), _number(delay)) != (1, 0):
            delay.write_text("0")
            proxy.write_text("1")
            found.append(bridge)
    return found


def _is_on(switch: Path) -> bool:
    if not switch.exists() and "ipv6" in switch.parts:
        raise OSError(errno.EAFNOSUPPORT, "the kernel has no IPv6, but the node has IPv6 blocks for pods")
    return _number(switch) != 0


def _number(switch: Path) -> int:
    return int(switch.read_text())


class Forwarding(NodeObject):
    """The switches of the node and of our devices that let packets pass between interfaces, and no more."""

    kind = "forwarding"
    stage = Stage.FORWARDING

    def wanted(self, desired: NodeState) -> object:
        """Return the IP versions."""
        return desired.forwarding

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Turn the switches on or off as they should be. Raises OSError."""
        there = {link.name: link for link in ctx.kernel.links}
        if not desired.made <= there.keys():  # some were made a moment ago
            there = {link.name: link for link in ip_links.links(ctx.nl)}
        for device in hardening.sync(
            ctx.host.sysctls, (there[name] for name in sorted(desired.made & there.keys()))
        ):
            log.info("%s takes no router advertisements and redirects from now on", device)
        turned_on = _turn_on(desired.forwarding, ctx.host.sysctls, lambda: _advertised(ctx))
        for version in turned_on:
            log.info("forwarding of IPv%d turned on", version)
        each = _turn_on_each(desired.forwarding, desired.made, ctx.host.sysctls)
        if each:
            log.info("forwarding turned on for %s", ", ".join(each))
        for device in _loosen(desired.loose_rp_filter_on, ctx.host.sysctls):
            log.info("rp_filter of %s is loose from now on, as modes are being changed", device)
        for bridge in _answer(desired.proxy_arp_on, ctx.host.sysctls):
            log.info("%s answers ARP for pods of other modes", bridge)
        return Result(changed=len(turned_on) + len(each))


class UnderlayForwarding(NodeObject):
    """The interfaces of the node itself: they are not ours, but pods are cut off by those that do not forward.

    Replies from outside come by the interface of the default route. For IPv6 the kernel asks only the switch of
    all interfaces (ip6_forward in net/ipv6/ip6_output.c).
    """

    kind = Forwarding.kind
    stage = Stage.CHECKS

    def wanted(self, desired: NodeState) -> object:  # noqa: ARG002
        """Return nothing: it changes nothing."""
        return ()

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Report the interfaces that do not forward. Raises OSError."""
        if 4 not in desired.forwarding:
            return Result()
        names = {local.device for local in ctx.kernel.local if local.interface.ip in ctx.node_addresses}
        names |= ctx.kernel.default_devices
        names |= {route.device for route in desired.routes} | {uplink.device for uplink in desired.uplinks}
        problems = tuple(map(_not_forwarding, _blocked(names - desired.made, ctx.host.sysctls)))
        return Result(problems, desired.devices if problems else frozenset(), failed=bool(problems))


def _not_forwarding(device: str) -> Problem:
    switch = f"net.ipv4.conf.{device}.forwarding"
    what = f"{switch} is 0, so packets to pods that come by it are dropped, though net.ipv4.ip_forward is 1"
    remedy = f"sysctl -w {switch}=1, and change what sets it: grep -r forwarding /etc/sysctl.d /etc/sysctl.conf"
    return Problem(f"interface {device}", what, remedy)


def _advertised(ctx: Context) -> list[str]:
    """Return the interfaces with a default route that a router has advertised (RFC 4861). Raises OSError."""
    names = {link.index: link.name for link in ctx.kernel.links}
    found = ip_routes.routes(ctx.nl, 6, ip_routes.RTPROT_RA)
    return [names[route.index] for route in found if not route.dst.prefixlen and route.index in names]
