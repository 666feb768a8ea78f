"""The ipip device, or where the kernel has none the eBPF programs in its place: made what the node path wants."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from agent.kernel import hardening, ip_links, link_setup, netlink, tc, tcx
from agent.kernel.bpf.loader import Loaded
from agent.kernel.bpf.syscall import BpfError, Program
from agent.kernel.ip_links import IPV4_DEVCONF_RP_FILTER, Link
from agent.kernel.link_setup import Setup
from agent.kernel.netlink import Netlink, NetlinkError, Request
from agent.model.problem import Problem
from agent.modes.ipip import maps as ipip_maps
from agent.modes.ipip.agent_options import AUTO, DEVICE
from agent.modes.ipip.marks import IPIP_ALIAS, IPIP_DEVICE
from agent.modes.ipip.state import PROTOCOL, IpipState
from agent.objects import device_addresses, nft_table
from agent.objects.base import Context, DeviceObject, Guarded, Result
from agent.objects.host_kernel import HostKernel
from agent.objects.nft_table import NftTable
from agent.objects.state import NodeState

LOOSE = 2  # rp_filter: a node may speak from an address whose way back is another device
PROGRAMS: Mapping[tc.Hook, str] = {"ingress": "ipip_ingress", "egress": "ipip_egress"}
# a bridge without ports holds addresses as well, and every kernel has it
KINDS: Mapping[bool, str] = {True: "ipip", False: "bridge"}

IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE, IFLA_IPTUN_TTL, IFLA_IPTUN_PROTO = 2, 3, 4, 9
NO_PROTOCOL = 255  # of inner packets: no ipip device takes it
PROBE = f"{IPIP_DEVICE}-x"  # never made
TTL = 64  # as the programs have it
UNSET = netlink.attribute(IFLA_IPTUN_REMOTE, bytes(4))  # no node that all is sent to

log = logging.getLogger(__name__)


def _is_in_kernel() -> bool:
    """Return whether the kernel makes ipip devices; it loads the module by itself where needed.

    Asked for one that no such kernel makes (ipip_tunnel_validate in net/ipv4/ipip.c), it tells EINVAL.
    """
    asked = _create_tunnel(IPv4Address("127.0.0.1"), 1480, NO_PROTOCOL, name=PROBE)
    try:
        netlink.host().request(asked)
    except NetlinkError as error:
        if error.errno == errno.EINVAL:
            return True
        if error.errno not in (errno.EOPNOTSUPP, errno.ENODEV):
            raise
    log.warning("this kernel has no ipip devices: eBPF programs encapsulate at the underlay's device instead")
    return False


def is_ours(link: Link) -> bool:
    """Return whether testcni made this device: it has its alias a moment after its name."""
    return (
        link.name == IPIP_DEVICE
        and link.kind in KINDS.values()
        and link.alias.split(" local ")[0] in ("", IPIP_ALIAS)
    )


def is_open(there: Iterable[Link]) -> bool:
    """Return whether our ipip device is there: it takes packets of anybody, so nft has a filter for it."""
    return any(is_ours(link) and link.kind == KINDS[True] for link in there)


class IpipDevice(DeviceObject):
    """The device with its addresses, or the programs at the underlay's device and what they know."""

    kind = "ipip"

    def __init__(self, by: str = AUTO) -> None:
        """`by` says what encapsulates: one of ENCAPSULATORS; AUTO is the device where the kernel has it."""
        self._by = by
        self._in_kernel: bool | None = None
        """Whether the kernel has ipip devices, once it was asked."""
        self._settled: Loaded | None = None
        """The programs that are at the underlay's device."""
        self._underlay: str | None = None
        """The underlay's device that has the programs."""
        self._wanted: IpipState | None = None
        """The tunnels that are in force."""
        self._late = False
        """Whether packets to some nodes still get an outer header that they should not."""
        self._filtered = False
        """Whether nft drops ipip packets from other addresses than nodes', as this process has seen."""

    def wanted(self, desired: NodeState) -> object:
        """Return the tunnels."""
        return desired.section(IpipState)

    def is_ours(self, link: Link) -> bool:
        """Return whether testcni made this device."""
        return is_ours(link)

    def encapsulates(self) -> bool:
        """Return whether an ipip device encapsulates on this node. Raises OSError."""
        if self._by != AUTO:
            return self._by == DEVICE
        if self._in_kernel is None:
            self._in_kernel = _is_in_kernel()
        return self._in_kernel

    def leaves(self, desired: NodeState) -> bool:
        """Return whether there is to be no ipip device, which is what needs the filter."""
        wanted = desired.section(IpipState)
        return wanted is None or not wanted.device

    def still_guarded(self, ctx: Context, desired: NodeState) -> Guarded:
        """Return from whom packets are accepted by a device that could not be removed. Raises OSError."""
        if not (is_open(ctx.kernel.links) and is_open(ip_links.links(ctx.nl))):
            return Guarded()
        wanted = desired.section(IpipState)
        return Guarded({PROTOCOL: wanted.nodes if wanted else frozenset()})

    def closed(self) -> Guarded:
        """Return that no ipip packet is accepted."""
        return Guarded({PROTOCOL: frozenset()})

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Make device, programs and maps those desired. Raises OSError.

        An ipip device accepts packets from any address: none is made without its filter, and none stays without.
        """
        wanted = desired.section(IpipState)
        if wanted and wanted.device and NftTable.kind in ctx.failed:
            return Result.lacking(IPIP_DEVICE, self._without_filter(ctx))
        return Result.lacking(IPIP_DEVICE, *self._make(ctx, wanted))

    def tidy(self, ctx: Context, desired: NodeState) -> None:
        """Send plainly to nodes that need no outer header any more, now that routes are right. Raises OSError."""
        if self._late and self._wanted and (loaded := ctx.host.bpf.current(ipip_maps.FAMILY)):
            ipip_maps.sync(loaded.maps, self._wanted)
        self._late = False

    def counted(self, host: HostKernel) -> dict[str, int]:
        """Return packets by what became of them: all with eBPF, else what nft drops. Raises OSError."""
        if self._wanted is None:
            return {ipip_maps.STRANGER: 0}
        if self._wanted.device:
            return {ipip_maps.STRANGER: nft_table.dropped(PROTOCOL)}
        maps = host.bpf.maps(ipip_maps.FAMILY)
        return {name: count.packets for name, count in ipip_maps.counters(maps).items()} if maps else {}

    def _without_filter(self, ctx: Context) -> Problem:
        """Leave the device as it is while nft fails, but remove it where its filter is gone, or was never seen.

        Raises OSError.
        """
        what = "it is not made or changed before nft drops ipip packets of others than nodes"
        if is_open(ctx.kernel.links) and not nft_table.is_filtering(PROTOCOL, last_known=self._filtered):
            ctx.host.reaper.delete(ctx.nl, IPIP_DEVICE)
            what = "it was removed, as nothing shows that nft drops ipip packets of others than nodes"
        return Problem(f"device {IPIP_DEVICE}", what, "see the problem of nft; it is tried again")

    def _make(self, ctx: Context, wanted: IpipState | None) -> list[Problem]:
        nl, there = ctx.nl, ctx.kernel.links
        earlier, self._wanted = self._wanted, wanted
        self._filtered = bool(wanted and wanted.device)  # nft comes before
        device = next((link for link in there if link.name == IPIP_DEVICE), None)
        if device and not is_ours(device):
            if wanted is None:
                return []
            what = f"a {device.kind or 'device'} of that name exists and is not testcni's"
            return [Problem(f"device {IPIP_DEVICE}", what, f"delete it: ip link del {IPIP_DEVICE}")]
        if wanted is None:
            if device:  # as long as it is there, there may be programs
                self._detach(ctx, there)
                ctx.host.reaper.delete(nl, IPIP_DEVICE)
            ctx.host.bpf.drop(ipip_maps.FAMILY)
            return []
        problems = []
        try:
            if wanted.underlay:
                tunnelled = wanted.tunnelled | (earlier.tunnelled & wanted.nodes if earlier else frozenset())
                self._late = tunnelled != wanted.tunnelled
                problems = self._encapsulate(ctx, replace(wanted, tunnelled=tunnelled))
            elif wanted.underlay is None and (ctx.verify or self._underlay):
                self._detach(ctx, there)
        except BpfError as error:
            return [Problem("eBPF", str(error).replace("\n", "; "), error.remedy)]
        index = _ensure(ctx, wanted, device)
        device_addresses.sync(nl, index, wanted.addresses, ctx.kernel.addresses)
        return problems

    def _encapsulate(self, ctx: Context, wanted: IpipState) -> list[Problem]:
        """Have the programs at the underlay's device, and nowhere else, with maps that know the cluster."""
        nl, there = ctx.nl, ctx.kernel.links
        device = next((link for link in there if link.name == wanted.underlay), None)
        if device is None or not device.mac:
            what = f"{wanted.underlay} is {'no Ethernet device' if device else 'not there'}"
            remedy = "use a kernel with ipip devices, or the mode vxlan"
            return [Problem("ipip by eBPF", what, remedy)]
        loaded = ctx.host.bpf.ensure(ipip_maps.FAMILY)
        put, removed = ipip_maps.sync(loaded.maps, wanted)
        if put or removed:
            log.info("ipip: %d entries set, %d deleted", put, removed)
        fresh = (self._settled, self._underlay) != (loaded, device.name)
        if ctx.verify or fresh:
            if _attach(nl, device.index, {hook: loaded.programs[name] for hook, name in PROGRAMS.items()}):
                log.info("eBPF programs at %s encapsulate to other nodes", device.name)
            if fresh:
                self._detach(ctx, (link for link in there if link.index != device.index))
                if tcx.known():  # those of a version that knew no TCX
                    tc.detach(nl, device.index, PROGRAMS)
        if fresh:
            self._settled, self._underlay = loaded, device.name
            for path in ctx.host.bpf.retire(ipip_maps.FAMILY):
                log.info("eBPF pins removed: %s", path)
        return []

    def _detach(self, ctx: Context, there: Iterable[Link]) -> None:
        """Take the programs away from devices that they may be at: those that testcni did not make."""
        for link in there:
            if link.mac and not ctx.is_made(link):
                if any(
                    [tcx.known() and tcx.detach(link.index, PROGRAMS), tc.detach(ctx.nl, link.index, PROGRAMS)]
                ):
                    log.info("eBPF programs taken from %s", link.name)
                if link.name == self._underlay:
                    self._underlay = None


def _ensure(ctx: Context, wanted: IpipState, device: Link | None) -> int:
    """The device, up; its index."""
    nl, host = ctx.nl, ctx.host
    alias = f"{IPIP_ALIAS} local {wanted.node}" if wanted.device else IPIP_ALIAS
    made = _data(wanted.node) + UNSET if wanted.device else b""
    same = device and (device.kind, device.alias) == (KINDS[wanted.device], alias)
    if device and not (same and link_setup.is_as_made(device, made)):
        host.reaper.delete(nl, IPIP_DEVICE)
        device = None
    if device is None:
        nl.request(_create_tunnel(wanted.node, wanted.mtu) if wanted.device else _create("bridge", wanted.mtu))
        device = ip_links.link(nl, IPIP_DEVICE)
        if device is None:
            raise NetlinkError(errno.ENODEV, f"device {IPIP_DEVICE} has vanished")
        log.info("device %s made: %s, MTU %d", IPIP_DEVICE, device.kind, wanted.mtu)
    loose = link_setup.ipv4(device, IPV4_DEVCONF_RP_FILTER) == LOOSE
    if (device.alias, device.mtu, device.up, loose) != (alias, wanted.mtu, True, True):
        hardening.before_up(host.sysctls, IPIP_DEVICE)
        nl.request(
            link_setup.configure(device.index, Setup(mtu=wanted.mtu, up=False)),
            link_setup.configure(IPIP_DEVICE, Setup(alias, ipv4={IPV4_DEVCONF_RP_FILTER: LOOSE})),
        )
    return device.index


def _create_tunnel(local: IPv4Address, mtu: int, protocol: int = PROTOCOL, name: str = IPIP_DEVICE) -> Request:
    """An ipip device that takes packets of any node to `local`, and sends to the next hop of their route."""
    return _create("ipip", mtu, _data(local, protocol), name)


def _data(local: IPv4Address, protocol: int = PROTOCOL) -> bytes:
    parts = netlink.u8(IFLA_IPTUN_TTL, TTL), netlink.u8(IFLA_IPTUN_PROTO, protocol)
    return netlink.attribute(IFLA_IPTUN_LOCAL, local.packed) + b"".join(parts)


def _create(kind: str, mtu: int, data: bytes = b"", name: str = IPIP_DEVICE) -> Request:
    attributes = netlink.text(ip_links.IFLA_IFNAME, name) + netlink.u32(ip_links.IFLA_MTU, mtu)
    return ip_links.create(kind, attributes, data, f"{kind} device {name}")


def _attach(nl: Netlink, device: int, programs: Mapping[tc.Hook, Program]) -> bool:
    """Have the programs at a device; whether some were not. Raises OSError."""
    if tcx.known():
        return tcx.ensure(device, programs)
    tc.refuse_strangers(nl, device, programs)
    return tc.ensure(nl, device, programs)
