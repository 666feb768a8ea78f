"""The vxlan device with its programs and maps: made what the node path wants, as a whole."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

from agent.kernel import fdb, hardening, ip_links, ip_routes, link_setup, neighbours, netlink, tc
from agent.kernel.bpf.loader import Loaded
from agent.kernel.bpf.syscall import BpfError
from agent.kernel.ip_links import Link
from agent.kernel.link_setup import Setup
from agent.kernel.netlink import Netlink, NetlinkError, Request
from agent.model.marks import LINK_PREFIX
from agent.model.problem import Problem
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan import pod_programs
from agent.modes.vxlan.maps import TUNNEL_MAC_PREFIX, Config, Endpoint, tunnel_mac
from agent.modes.vxlan.marks import VXLAN_ALIAS, VXLAN_DEVICE
from agent.modes.vxlan.options import KERNEL
from agent.modes.vxlan.state import VxlanState
from agent.objects import device_addresses
from agent.objects.base import Context, DeviceObject, Guarded, Result
from agent.objects.state import NodeState

IFLA_VXLAN_ID, IFLA_VXLAN_GROUP, IFLA_VXLAN_LOCAL, IFLA_VXLAN_TTL, IFLA_VXLAN_LEARNING = 1, 2, 4, 5, 7
IFLA_VXLAN_PORT = 15
IFLA_VXLAN_UDP_CSUM, IFLA_VXLAN_COLLECT_METADATA = 18, 25

UNSET = netlink.attribute(IFLA_VXLAN_GROUP, bytes(4)) + netlink.u8(IFLA_VXLAN_TTL, 0)
"""No node that all is sent to, and the kernel's own TTL."""

log = logging.getLogger(__name__)


def is_ours(link: Link) -> bool:
    """Return whether testcni made this vxlan device: it has its MAC from the start, its alias a moment later."""
    marked = link.mac.startswith(TUNNEL_MAC_PREFIX) or link.alias.startswith(VXLAN_ALIAS)
    return link.kind == "vxlan" and link.name == VXLAN_DEVICE and marked


class VxlanDevice(DeviceObject):
    """The device with its addresses, its programs, and what they know of the cluster."""

    kind = "overlay"

    def __init__(self) -> None:
        self._settled: Loaded | None = None
        """The programs that all pods have."""

    def wanted(self, desired: NodeState) -> object:
        """Return the tunnel."""
        return desired.section(VxlanState)

    def is_ours(self, link: Link) -> bool:
        """Return whether testcni made this vxlan device."""
        return is_ours(link)

    def leaves(self, desired: NodeState) -> bool:
        """Return whether there is to be no device."""
        return desired.section(VxlanState) is None

    def still_guarded(self, ctx: Context, desired: NodeState) -> Guarded:
        """Return the port of a device that could not be removed. Raises OSError."""
        return Guarded(tunnel_ports=_is_there(ctx.kernel.links) and _is_there(ip_links.links(ctx.nl)))

    def closed(self) -> Guarded:
        """Return that the tunnel's port stays guarded."""
        return Guarded(tunnel_ports=True)

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Make device, programs and maps those desired. Raises OSError."""
        wanted, there = desired.section(VxlanState), ctx.kernel.links
        device = next((link for link in there if link.name == VXLAN_DEVICE), None)
        if wanted is None:
            if device and is_ours(device):
                ctx.host.reaper.delete(ctx.nl, VXLAN_DEVICE)
            ctx.host.bpf.drop(vxlan_maps.FAMILY)
            return Result()
        if device and not is_ours(device):
            what = f"a {device.kind} of that name exists and is not testcni's"
            problem = Problem(f"device {VXLAN_DEVICE}", what, f"delete it: ip link del {VXLAN_DEVICE}")
            return Result.lacking(VXLAN_DEVICE, problem)
        try:
            return self._make(ctx, wanted, device)
        except NetlinkError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EEXIST):
                raise
            others = [link.name for link in there if link.kind == "vxlan" and link is not device]
            return Result.lacking(VXLAN_DEVICE, _taken(wanted, others))

    def tidy(self, ctx: Context, desired: NodeState) -> None:
        """Forget blocks and nodes that are not desired, as no route leads there by the tunnel. Raises OSError."""
        wanted = desired.section(VxlanState)
        if wanted and wanted.backend != KERNEL and (loaded := ctx.host.bpf.current(vxlan_maps.FAMILY)):
            removed = vxlan_maps.remove_other_nodes(loaded.maps, dict(wanted.blocks), wanted.nodes)
            if removed:
                log.info("overlay: %d entries deleted", removed)

    def _make(self, ctx: Context, wanted: VxlanState, device: Link | None) -> Result:
        nl, addresses = ctx.nl, ctx.kernel.addresses
        if wanted.backend == KERNEL:
            index = _device(ctx, wanted, device).index
            device_addresses.sync(nl, index, wanted.addresses, addresses)
            peers = {node for _block, node in wanted.blocks} - {wanted.node}
            if changed := fdb.sync(nl, index, ((tunnel_mac(peer), peer) for peer in peers)):
                log.info("overlay: %d neighbours and forwarding entries changed", changed)
            return Result()
        try:
            loaded = ctx.host.bpf.ensure(vxlan_maps.FAMILY)
            index = _device(ctx, wanted, device, loaded).index
            put = vxlan_maps.put_nodes(loaded.maps, dict(wanted.blocks), wanted.nodes, dict(wanted.ends))
        except BpfError as error:
            remedy = f'{error.remedy}; or use the kernel\'s own vxlan: "vxlanBackend": "kernel" in the netconf'
            return Result.lacking(VXLAN_DEVICE, Problem("eBPF", str(error).replace("\n", "; "), remedy))
        if put:
            log.info("overlay: %d entries set", put)
        device_addresses.sync(nl, index, wanted.addresses, addresses)
        self._renew_programs(ctx, loaded)
        return Result()

    def _renew_programs(self, ctx: Context, loaded: Loaded) -> None:
        """Give pods the programs that were loaded, and keep none of an earlier version.

        Later it is the pods' ports (`pod_programs`) that keep them so.
        """
        if self._settled is loaded:
            return
        _recover(ctx.nl, loaded)
        _renew(ctx.nl, loaded)
        self._settled = loaded
        log.info("eBPF programs %s", "adopted" if loaded.adopted else "loaded")
        for path in ctx.host.bpf.retire(vxlan_maps.FAMILY):
            log.info("eBPF pins removed: %s", path)


def _is_there(links: Iterable[Link]) -> bool:
    return any(map(is_ours, links))


def _taken(wanted: VxlanState, others: Sequence[str]) -> Problem:
    """The port is another's: the kernel shares it only among devices of one kind, and a VNI not at all."""
    choice = 'or give all networks of mode vxlan another "port" in the netconf, on all nodes'
    if not others:
        what, remedy = f"another program has UDP port {wanted.port}", f"`ss -ulnp` names it: end it, {choice}"
        return Problem(f"device {VXLAN_DEVICE}", what, remedy)
    what = f"another vxlan device has UDP port {wanted.port} or the VNI {wanted.vni}: {', '.join(others)}"
    remedy = f"delete it if its network is gone: ip link del {others[0]}; {choice}"
    return Problem(f"device {VXLAN_DEVICE}", what, remedy)


def _device(ctx: Context, wanted: VxlanState, device: Link | None, loaded: Loaded | None = None) -> Link:
    """The device, up, with its programs if it has some. It is not up before they are there, and hardened."""
    nl, host = ctx.nl, ctx.host
    plain, mac = (wanted.vni, wanted.node) if wanted.backend == KERNEL else None, tunnel_mac(wanted.node)
    alias = f"{VXLAN_ALIAS} {wanted.port}"
    if plain:
        alias = f"{alias} vni {wanted.vni} local {wanted.node}"
    made = _data(wanted.port, plain) + UNSET
    if device and (
        device.alias != alias or not link_setup.is_as_made(device, made)
    ):  # most of it can't be changed
        host.reaper.delete(nl, VXLAN_DEVICE)
        device = None
    if device is None:
        nl.request(create(VXLAN_DEVICE, mac, wanted.port, wanted.mtu, plain))
        device = ip_links.link(nl, VXLAN_DEVICE)
        if device is None:
            raise NetlinkError(errno.ENODEV, f"device {VXLAN_DEVICE} has vanished")
        log.info("device %s made: port %d, MTU %d", VXLAN_DEVICE, wanted.port, wanted.mtu)
    if loaded:
        vxlan_maps.configure(loaded.maps, Config(wanted.node, wanted.vni, wanted.port, device.index))
        tc.ensure(
            nl,
            device.index,
            {"ingress": loaded.programs["vxlan_ingress"], "egress": loaded.programs["vxlan_egress"]},
        )
    if (device.alias, device.mac, device.mtu, device.up) != (alias, mac, wanted.mtu, True):
        hardening.before_up(host.sysctls, VXLAN_DEVICE)
        nl.request(link_setup.configure(VXLAN_DEVICE, Setup(alias, wanted.mtu, mac)))
    return device


def create(name: str, mac: str, port: int, mtu: int, plain: tuple[int, IPv4Address] | None = None) -> Request:
    """A vxlan device without learning and ARP.

    With `plain`, its VNI and the node's address, it looks peers up in its forwarding entries; else it asks its
    programs where each packet goes.
    """
    attributes = (
        netlink.text(ip_links.IFLA_IFNAME, name)
        + netlink.attribute(ip_links.IFLA_ADDRESS, ip_links.mac_bytes(mac))
        + netlink.u32(ip_links.IFLA_MTU, mtu)
    )
    return ip_links.create(
        "vxlan", attributes, _data(port, plain), f"vxlan device {name}, port {port}", ip_links.IFF_NOARP
    )


def _data(port: int, plain: tuple[int, IPv4Address] | None) -> bytes:
    data = netlink.u8(IFLA_VXLAN_LEARNING, 0) + netlink.attribute(IFLA_VXLAN_PORT, port.to_bytes(2, "big"))
    if plain is None:
        return data + netlink.u8(IFLA_VXLAN_COLLECT_METADATA, 1)
    vni, node = plain
    data += netlink.u32(IFLA_VXLAN_ID, vni) + netlink.attribute(IFLA_VXLAN_LOCAL, node.packed)
    return data + netlink.u8(IFLA_VXLAN_UDP_CSUM, 0)  # the inner checksums do


def _recover(nl: Netlink, loaded: Loaded) -> None:
    """Pods that the maps lack, as they are new or lost their pins: the kernel knows them by their routes."""
    ends = {link.index: link for link in ip_links.links(nl) if link.name.startswith(LINK_PREFIX)}
    known, macs = vxlan_maps.pods(loaded.maps), neighbours.permanent(nl)
    for route in ip_routes.routes(nl, 4):
        address = route.dst.network_address
        mac = macs.get((route.index, address))
        if not mac or route.index not in ends or not isinstance(address, IPv4Address) or address in known:
            continue
        if tc.name(nl, route.index, "ingress") != "veth_ingress":  # of the backend kernel, or another mode
            continue
        vxlan_maps.put_pod(loaded.maps, address, Endpoint(route.index, mac, ends[route.index].mac))
        log.warning("pod %s was not known to the eBPF programs", address)
    for address, endpoint in known.items():
        if endpoint.device not in ends:
            vxlan_maps.remove_pod(loaded.maps, address, endpoint.host_mac)


def _renew(nl: Netlink, loaded: Loaded) -> None:
    """The programs of pods become the ones in force, after an upgrade: also those of which no file is left."""
    renewed = 0
    for endpoint in vxlan_maps.pods(loaded.maps).values():
        try:
            renewed += tc.ensure(nl, endpoint.device, pod_programs.programs(loaded))
        except NetlinkError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):  # the pod has gone meanwhile
                raise
    if renewed:
        log.info("programs of %d pods renewed", renewed)
