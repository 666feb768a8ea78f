"""host-gw: a bridge on each node, a veth pair for each pod, and a route to each peer's block via that peer."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import ClassVar

from agent.codec import json_fields
from agent.errors import invalid_config
from agent.ip import Address
from agent.ipam import allocator
from agent.ipam.attachments.attachment import Attachment, Lease
from agent.ipam.blocks import is_single
from agent.kernel import fdb, ip_addresses, link_operations, link_setup, netlink, netns
from agent.kernel.netlink import Netlink
from agent.model.marks import BRIDGE_MAC_PREFIX, MAC_PREFIX, bridge_mac, mac_for
from agent.model.network import ExtraRoute, ModeOptions, Network
from agent.modes import ip_versions, masquerade, mode_choice, peer_routes, routable_blocks, underlay, veth
from agent.modes.base import CheckError, ConfFields, Mode, ModeContext, Wired
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import PodPort
from agent.objects.state import Bridge, NodeState, Proxy, Route

HOST_GW = "host-gw"


@dataclass(frozen=True, slots=True)
class HostGwOptions(ModeOptions):
    """The bridge of a network of the mode `host-gw`."""

    mode: ClassVar[str] = HOST_GW
    ip_versions: ClassVar[tuple[int, ...]] = (4, 6)
    routed: ClassVar[bool] = True

    bridge: str = "testcni0"
    hairpin: bool = True
    """Whether a pod reaches itself by a Service."""


class HostGw(Mode):
    """The mode `host-gw`."""

    options = HostGwOptions

    def device(self, network: Network) -> str:
        """Return the bridge."""
        return _bridge_name(network)

    def report(self, network: Network) -> Mapping[str, object]:
        """Return the bridge under a key of its own, too."""
        return {"bridge": _bridge_name(network)}

    def parse_options(self, given: ConfFields) -> HostGwOptions:
        """Return the options that a netconf gives. Raises CniError 7."""
        return HostGwOptions(
            bridge=given.top.take("bridge", json_fields.link_name, "testcni0"),
            hairpin=given.top.take("hairpinMode", json_fields.boolean, True),
        )

    def desired(self, view: ModeContext) -> NodeState:
        """A bridge with the gateway of each own block, and `block via InternalIP` for each on-link peer."""
        settled = routable_blocks.settle(view)
        carried = ip_versions.settle(settled.view, _mtu(view))
        view = carried.view
        routes, problems = peer_routes.plain_routes(view)
        off_block = frozenset(Route(pod, None, _bridge_name(view.network)) for pod in view.off_block_pods)
        return NodeState(
            bridges=_bridge(view),
            routes=routes | off_block,
            proxies=_proxies(view),
            masquerade=masquerade.desired(view, nodes=True),
            forwarding=frozenset(block.version for block in view.blocks),
            problems=problems | settled.problems | carried.problems,
            refused=settled.refused | carried.refused,
            lacking=carried.lacking,
            loose_rp_filter_on=mode_choice.loose_rp_filter_on(view),
            guards=frozenset({(_bridge_name(view.network), view.network.spoof_check)} if view.blocks else ()),
            # pods on it look for all of their block there, and some may have another mode
            proxy_arp_on=frozenset(
                {_bridge_name(view.network)} if view.blocks and mode_choice.is_migrating(view) else ()
            ),
        )

    def port(self, attachment: Attachment) -> PodPort:
        """A port of the bridge."""
        network, learns = attachment.network, int(not attachment.network.spoof_check)
        flags = (
            (link_setup.IFLA_BRPORT_MODE, int(HostGwOptions.of(network).hairpin)),
            (link_setup.IFLA_BRPORT_LEARNING, learns),
            (link_setup.IFLA_BRPORT_UNICAST_FLOOD, learns),
            *link_setup.PLAIN_PORT,
        )
        return replace(veth.port(attachment), bridge=_bridge_name(network), flags=flags, station=attachment.mac)

    def wire(
        self, host: HostKernel, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]
    ) -> Wired:
        """A veth pair from the bridge into the pod; the pod's end with address and default route."""
        network, nl = attachment.network, netlink.host()
        bridge = veth.needed("bridge", _bridge_name(network))
        _refuse_taken(nl, attachment, bridge.mac)
        mtu = network.mtu or bridge.mtu
        nl.request(veth.create_veth(attachment, netns_fd, mtu, master=bridge.index))
        veth.make_port(host, self.port(attachment), bridge)
        with veth.pod_netlink(host, netns_fd, attachment, attachment.ifname) as inside:
            made = _configure(inside, attachment, bridge.mac, routes)
        link_operations.wait_running(nl, bridge.name)
        return Wired(
            interfaces=[
                {"name": bridge.name, "mac": bridge.mac, "mtu": bridge.mtu},
                {"name": attachment.link, "mac": veth.host_mac(attachment), "mtu": mtu},
                {"name": attachment.ifname, "mac": attachment.mac, "mtu": mtu, "sandbox": attachment.netns},
            ],
            ips=[
                {
                    "address": f"{lease.address}/{lease.block.prefixlen}",
                    "gateway": str(_gateway(lease)),
                    "interface": 2,
                }
                for lease in attachment.leases
            ],
            routes=[{"dst": str(r.dst), "gw": str(r.gateway)} for r in made],
        )

    def check(self, host: HostKernel, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Bridge, both ends of the veth pair, addresses and routes are as `wire` made them."""
        bridge = veth.check_up("bridge", _bridge_name(attachment.network))
        port = veth.check_port(host, self.port(attachment))
        held = {a.address for a in ip_addresses.addresses(netlink.host(), bridge.index)}
        for lease in attachment.leases:
            if not is_single(lease.block) and allocator.gateway(lease.block) not in held:
                raise CheckError(f"bridge {bridge.name} lacks the gateway {allocator.gateway(lease.block)}")
        with netns.netlink_in(netns_fd) as inside:
            addresses = tuple(
                ipaddress.ip_interface((lease.address, lease.block.prefixlen)) for lease in attachment.leases
            )
            veth.check_pod(inside, attachment, wired, port.index, addresses)

    def unwire(self, host: HostKernel, attachment: Attachment) -> None:
        """Delete the host's end; the pod's end goes with it."""
        veth.remove_port(host, attachment)


def _bridge_name(network: Network) -> str:
    return HostGwOptions.of(network).bridge


def _bridge(view: ModeContext) -> frozenset[Bridge]:
    if not view.blocks:
        return frozenset()
    name = _bridge_name(view.network)
    addresses = (ipaddress.ip_interface((allocator.gateway(b), b.prefixlen)) for b in view.blocks)
    return frozenset({Bridge(name, bridge_mac(view.node, name), _mtu(view), frozenset(addresses))})


def _mtu(view: ModeContext) -> int:
    """Return the MTU of the bridge and of pods, in bytes."""
    return view.network.mtu or underlay.mtu(view)


def _refuse_taken(nl: Netlink, attachment: Attachment, bridge_mac: str) -> None:
    """Reject a requested MAC that another link of this node has, or that later pods may get. Raises CniError 7."""
    mac = attachment.mac
    if mac == mac_for(attachment.leases[0].address):
        return
    given = mac == bridge_mac or mac.startswith((MAC_PREFIX, BRIDGE_MAC_PREFIX))
    if given or any(mac == other for _index, other in fdb.stations(nl)):
        prefixes = f"{MAC_PREFIX} and {BRIDGE_MAC_PREFIX}"
        raise invalid_config(
            "mac", mac, f"one that no pod or bridge of this node has, beginning not with {prefixes}"
        )


def _proxies(view: ModeContext) -> frozenset[Proxy]:
    """Return the proxy ARP entries: pods on the bridge ask it for every address of the block, absent ones too."""
    roaming = (alone.network_address for _node, alone in peer_routes.roaming(view))
    return frozenset(
        Proxy(_bridge_name(view.network), address)
        for address in (*roaming, *view.other_mode_pods)
        if isinstance(address, IPv4Address) and any(address in block for block in view.blocks)
    )


def _gateway(lease: Lease) -> Address:
    """Return the bridge's address in the block; off-block pods have the one that is on no interface."""
    return veth.GATEWAY if is_single(lease.block) else allocator.gateway(lease.block)


def _configure(
    inside: Netlink, attachment: Attachment, bridge_mac: str, routes: tuple[ExtraRoute, ...]
) -> list[ExtraRoute]:
    end = veth.pod_end(inside, attachment)
    gateways: dict[int, Address] = {lease.address.version: _gateway(lease) for lease in attachment.leases}
    steps = [
        ip_addresses.add_address(end.index, lease.address, lease.block.prefixlen) for lease in attachment.leases
    ]
    if veth.GATEWAY in gateways.values():
        steps += veth.lone_gateway(inside, end.index, bridge_mac)
    by_bridge = veth.pod_routes(gateways, routes)
    return veth.configure(inside, end.index, steps, attachment.network.subnet, by_bridge)
