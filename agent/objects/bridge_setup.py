"""Create, change and delete bridges with pyroute2. It costs 11 MiB: import this where there is something to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.kernel import hardening, sysctl
from agent.kernel.ip_addresses import LinkAddress
from agent.kernel.ip_links import IFF_NOARP, Link
from agent.model.marks import BRIDGE_ALIAS
from agent.objects.bridge_link import interfaces, is_plain, record, recorded, switched_on
from agent.objects.state import Bridge


def delete(stale: Iterable[Link]) -> dict[str, str]:
    """Delete bridges; return the errors by the bridges' names."""
    errors = {}
    with IPRoute() as ipr:
        for link in stale:
            try:
                ipr.link("del", index=link.index)
            except NetlinkError as error:
                errors[link.name] = str(error)
    return errors


def ensure(
    desired: Mapping[Bridge, Link | None], addresses: Iterable[LinkAddress], sysctls: Path
) -> dict[str, str]:
    """Create bridges, or repair their interfaces; return the errors by the bridges' names."""
    errors, addresses = {}, tuple(addresses)
    with IPRoute() as ipr:
        for bridge, link in desired.items():
            try:
                _ensure(ipr, bridge, link, addresses, sysctls)
            except (NetlinkError, OSError) as error:
                errors[bridge.name] = str(error)
    return errors


def _make_plain(ipr: IPRoute, link: Link) -> None:
    """Let a bridge carry what its ports send. Raises NetlinkError."""
    if switches := switched_on(link):
        ipr.link("set", index=link.index, kind="bridge", **switches)
    ipr.link("set", index=link.index, master=0, flags=0, change=IFF_NOARP)


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
    if link is None or recorded(link) is None:
        ipr.link("property_add", index=index, altname=[record(bridge.name, bridge.mac)])
    if link is None or link.alias != BRIDGE_ALIAS:
        ipr.link("set", index=index, ifalias=BRIDGE_ALIAS)
    if link is None or link.nf_call is False:
        # a kernel without br_netfilter ignores it
        ipr.link("set", index=index, kind="bridge", br_nf_call_iptables=1, br_nf_call_ip6tables=1)
    if link and not is_plain(link):
        _make_plain(ipr, link)
    if link is None or not link.up or link.mac != bridge.mac or link.mtu != bridge.mtu:
        hardening.before_up(sysctls, bridge.name)
        ipr.link("set", index=index, address=bridge.mac, mtu=bridge.mtu, state="up")
    held = interfaces(index, addresses)
    if any(interface.version == 6 for interface in bridge.addresses - held):
        # the node may have turned it off for all interfaces, or new ones
        sysctl.enable_ipv6(sysctls, (bridge.name,))
    for interface in bridge.addresses - held:
        ipr.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)
    for interface in held - bridge.addresses:
        ipr.addr("del", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)
