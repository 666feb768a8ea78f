"""Node state into the kernel, kind by kind: one that fails does not hold up the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agent.ip import Address
from agent.ipam.attachment_store import AttachmentStore
from agent.kernel import hardening, ip_links, ip_routes
from agent.kernel.bpf import loader
from agent.kernel.bpf.syscall import BpfError
from agent.kernel.netlink import Netlink
from agent.model.marks import IPIP_DEVICE, VXLAN_DEVICE
from agent.model.problem import Problem
from agent.modes.ipip import device as ipip_device
from agent.modes.registry import Modes
from agent.modes.vxlan import device as vxlan_device
from agent.node import pod_port_repair
from agent.node.kernel_state import Kernel, is_made
from agent.objects import bridge_paths, bridges, forwarding, nft_table, pod_guard, proxy_arp, routes
from agent.objects.routes import OURS, Ownership
from agent.objects.state import NodeState
from agent.runtime.counter import LabelledCounter

KINDS = BRIDGES, OVERLAY, TUNNELS, FORWARDING, NFT, ROUTES, PROXIES, PODS, GUARD = (
    "bridges",
    "overlay",
    "ipip",
    "forwarding",
    "nft",
    "routes",
    "proxies",
    "pods",
    "guard",
)

log = logging.getLogger(__name__)


@dataclass
class Programmed:
    """What came of it: problems for people, and the devices that pods can't hang on."""

    problems: list[Problem] = field(default_factory=list)
    unready: set[str] = field(default_factory=set)
    failures: set[str] = field(default_factory=set)
    """The kinds of which something failed that may succeed when it is tried again."""
    changed: dict[str, int] = field(default_factory=dict)
    """How many things of each kind were not as desired and now are."""
    routes: int = 0
    """How many of the desired routes are in the kernel."""
    busy: bool = False
    """Whether pods were left alone that are to be looked at again."""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be tried again."""
        return not self.failures and not self.busy

    def lacks(self, kind: str, device: str, problem: Problem) -> None:
        """Pods can't hang on a device, because of a problem."""
        self.problems.append(problem)
        self.unready.add(device)
        self.failures.add(kind)


def program(  # noqa: PLR0913 - what is desired, what is there, and how ours is known
    nl: Netlink,
    desired: NodeState,
    kernel: Kernel,
    sysctls: Path,
    ownership: Ownership = OURS,
    *,
    verify: bool,
) -> Programmed:
    """Make the kernel's state the desired one; `verify` looks at what is dear to look at, too.

    `sysctls` is the folder /proc/sys/net; `ownership` says which routes are ours.
    """
    done = Programmed()

    steps = {
        GUARD: lambda: _guard(desired, done),
        NFT: lambda: _nft(nl, desired, kernel, done) if verify else None,
        BRIDGES: lambda: _bridges(nl, desired, kernel, done, sysctls, verify=verify),
        OVERLAY: lambda: _overlay(nl, desired, kernel, done),
        TUNNELS: lambda: _tunnels(nl, desired, kernel, done, verify=verify),
        FORWARDING: lambda: _forward(nl, desired, kernel, done, sysctls),
    }
    _uplinks(desired, kernel, done)
    # guards are there before what they guard, and go after it
    leaving = {OVERLAY: desired.overlay is None, TUNNELS: desired.senders is None}
    for what in dict.fromkeys((*(kind for kind, goes in leaving.items() if goes), *steps)):
        if not _attempt(done, what, steps[what]):  # a pod that can't get out must not come up as if it could
            done.unready.update(desired.devices)
    if _attempt(done, ROUTES, lambda: _routes(nl, desired, ownership, done, verify=verify)):
        _attempt(done, OVERLAY, lambda: vxlan_device.tidy(desired.overlay))
        _attempt(done, TUNNELS, ipip_device.tidy)
    _attempt(done, PROXIES, lambda: _proxies(nl, desired, done, sysctls))
    return done


def underlay_forwards(
    desired: NodeState, kernel: Kernel, addresses: Iterable[Address], sysctls: Path, done: Programmed
) -> None:
    """Report interfaces of the node that do not forward: they are not ours, but pods are cut off by them.

    Replies from outside come by the interface of the default route. For IPv6 the kernel asks only the switch of
    all interfaces (ip6_forward in net/ipv6/ip6_output.c).
    """
    if 4 not in desired.forwarding:
        return
    own = frozenset(addresses)
    names = {local.device for local in kernel.local if local.interface.ip in own}
    names |= (
        kernel.outward | {route.device for route in desired.routes} | {uplink.device for uplink in desired.uplinks}
    )

    def look() -> None:
        for device in forwarding.blocked(names - desired.made, sysctls):
            switch = f"net.ipv4.conf.{device}.forwarding"
            what = (
                f"{switch} is 0, so packets to pods that come by it are dropped, though net.ipv4.ip_forward is 1"
            )
            remedy = (
                f"sysctl -w {switch}=1, and change what sets it: grep -r forwarding /etc/sysctl.d /etc/sysctl.conf"
            )
            done.problems.append(Problem(f"interface {device}", what, remedy))
            done.failures.add(FORWARDING)
            done.unready.update(desired.devices)

    _attempt(done, FORWARDING, look)


def _advertised(nl: Netlink, kernel: Kernel) -> list[str]:
    """Interfaces with a default route that a router has advertised (RFC 4861). Raises OSError."""
    names = {link.index: link.name for link in kernel.links}
    found = ip_routes.routes(nl, 6, ip_routes.RTPROT_RA)
    return [names[route.index] for route in found if not route.dst.prefixlen and route.index in names]


def pods(nl: Netlink, attachments: AttachmentStore, modes: Modes, done: Programmed) -> None:
    """Repair the node's side of pods' links, which hang on what was programmed before."""

    def repair() -> None:
        repaired = pod_port_repair.sync(nl, attachments, modes)
        done.problems.extend(repaired.problems)
        done.changed[PODS] = repaired.pods
        done.busy = repaired.busy
        if repaired.failed:
            done.failures.add(PODS)

    _attempt(done, PODS, repair)


class Drift:
    """Tells what others changed behind our back from what we changed because more or less is desired now."""

    def __init__(self) -> None:
        self.repaired = LabelledCounter(*((kind,) for kind in KINDS))
        self._settled: dict[str, object] = {}

    def note(self, desired: NodeState, done: Programmed) -> None:
        """Count what was not as desired though it had been, and the same had been desired."""
        wanted = (
            desired.bridges,
            desired.overlay,
            desired.ipip,
            desired.forwarding,
            desired.filter,
            desired.routes,
            desired.proxies,
            True,  # what a pod's port should be never changes
            (desired.guards, desired.shut.ports),
        )
        for kind, want in zip(KINDS, wanted, strict=True):
            if self._settled.get(kind) == want:
                self.repaired.add(kind, by=done.changed.get(kind, 0))
            if kind in done.failures:
                self._settled.pop(kind, None)
            else:
                self._settled[kind] = want


def _forward(nl: Netlink, desired: NodeState, kernel: Kernel, done: Programmed, sysctls: Path) -> None:
    there = {link.name: link for link in kernel.links}
    if not desired.made <= there.keys():  # some were made a moment ago
        there = {link.name: link for link in ip_links.links(nl)}
    for device in hardening.sync(there[name] for name in sorted(desired.made & there.keys())):
        log.info("%s takes no router advertisements and redirects from now on", device)
    turned_on = forwarding.sync(desired.forwarding, sysctls, lambda: _advertised(nl, kernel))
    for version in turned_on:
        log.info("forwarding of IPv%d turned on", version)
    each = forwarding.sync_each(desired.forwarding, desired.made, sysctls)
    if each:
        log.info("forwarding turned on for %s", ", ".join(each))
    done.changed[FORWARDING] = len(turned_on) + len(each)
    for device in forwarding.loosen(desired.crossing, sysctls):
        log.info("rp_filter of %s is loose from now on, as modes are being changed", device)
    for bridge in forwarding.answer(desired.answering, sysctls):
        log.info("%s answers ARP for pods of other modes", bridge)


def _guard(desired: NodeState, done: Programmed) -> None:
    """Without the program no pod is connected whose sources are to be checked."""
    if not desired.guards:
        loader.drop(family=loader.GUARD)
        return
    try:
        held = pod_guard.loaded()
    except BpfError as error:
        devices = {device for device, checked in desired.guards if checked}
        what = str(error) if devices else f"{error}: pods may send router advertisements and tunnel packets"
        done.problems.append(Problem("eBPF", what, "see docs/reference/netconf.md, spoofCheck"))
        done.unready |= devices
        return
    ports = desired.shut.ports
    if desired.overlay or OVERLAY not in done.failures:  # else the tunnel is still there
        done.changed[GUARD] = int(pod_guard.set_tunnels(held.maps, ports))
    for port in ports[pod_guard.PORTS :]:
        what = (
            f"pods may send to UDP port {port}, as the program pod_guard knows {pod_guard.PORTS} ports of tunnels"
        )
        done.problems.append(Problem("networks of mode vxlan", what, "give all of them the same port"))


def _nft(nl: Netlink, desired: NodeState, kernel: Kernel, done: Programmed) -> None:
    """The filter stays for as long as there is an ipip device, also one that could not be removed."""
    senders = desired.senders
    if senders is None and ipip_device.is_open(kernel.links) and ipip_device.is_open(ip_links.links(nl)):
        senders = desired.ipip.nodes if desired.ipip else frozenset()
    if nft_table.sync(desired.masquerade, senders, desired.quiet, desired.shut):
        log.info("nft table written: masquerade of %d blocks", len(desired.masquerade.sources))
        done.changed[NFT] = 1


def _bridges(  # noqa: PLR0913 - what is desired, what is there, and how closely to look
    nl: Netlink, desired: NodeState, kernel: Kernel, done: Programmed, sysctls: Path, *, verify: bool
) -> None:
    wanted = bridges.adopt(desired.bridges, kernel.links)
    lacking = wanted - bridges.read(kernel.links, kernel.addresses)
    for problem in bridges.sync(wanted, kernel.links, kernel.addresses):
        done.lacks(BRIDGES, problem.where.removeprefix("bridge "), problem)
    done.problems += bridges.without_netfilter(wanted, sysctls)
    done.changed[BRIDGES] = sum(bridge.name not in done.unready for bridge in lacking)
    if verify and (restored := bridge_paths.repair(nl, (b for b in wanted if b.name not in done.unready))):
        log.warning("bridges: %d routes and entries that somebody removed are back", restored)
        done.changed[BRIDGES] += restored


def _uplinks(desired: NodeState, kernel: Kernel, done: Programmed) -> None:
    """Parents are other people's: they are there and up, or nothing can hang on them."""
    there = {link.name: link.up for link in kernel.links}
    for device in sorted({uplink.device for uplink in desired.uplinks}):
        if not there.get(device):
            what = "is down" if device in there else "is not there"
            remedy = f"ip link set {device} up" if device in there else "name another by `master` in the netconf"
            done.problems.append(Problem(f"interface {device}", what, remedy))
            done.unready.add(device)


def _overlay(nl: Netlink, desired: NodeState, kernel: Kernel, done: Programmed) -> None:
    for problem in vxlan_device.sync(nl, desired.overlay, kernel.links, kernel.addresses):
        done.lacks(OVERLAY, VXLAN_DEVICE, problem)


def _tunnels(nl: Netlink, desired: NodeState, kernel: Kernel, done: Programmed, *, verify: bool) -> None:
    """An ipip device takes packets of anybody: none is made without its filter, and none stays without."""
    guarded = desired.senders is None or NFT not in done.failures
    found = ipip_device.sync(nl, desired.ipip, kernel.links, kernel.addresses, verify=verify) if guarded else []
    for problem in found if guarded else [ipip_device.unguarded(nl, kernel.links)]:
        done.lacks(TUNNELS, IPIP_DEVICE, problem)


def _routes(nl: Netlink, desired: NodeState, ownership: Ownership, done: Programmed, *, verify: bool) -> None:
    there = ip_links.links(nl)
    ours = (link for link in there if link.name in desired.made and link.up)
    restored = bridge_paths.repair_local(nl, ours) if verify else 0
    devices = {link.index: link.name for link in there}
    synced = routes.sync(nl, desired.routes, devices, ownership, {link.name for link in there if is_made(link)})
    done.problems.extend(sorted(synced.problems, key=str))
    if synced.problems:
        done.failures.add(ROUTES)
    done.changed[ROUTES] = synced.added + synced.removed + restored
    done.routes = len(desired.routes) - synced.missing
    if synced.added or synced.removed:
        log.info("routes: %d added, %d removed", synced.added, synced.removed)


def _proxies(nl: Netlink, desired: NodeState, done: Programmed, sysctls: Path) -> None:
    """After the routes: who is told that the node knows the way comes at once."""
    done.changed[PROXIES] = proxy_arp.sync(nl, desired.proxies, ip_links.links(nl), sysctls)


def _attempt(done: Programmed, what: str, step: Callable[[], None]) -> bool:
    try:
        step()
    except OSError as error:
        done.problems.append(Problem(what, str(error), "it is tried again"))
        done.failures.add(what)
        return False
    return True
