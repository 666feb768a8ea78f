"""Addresses of a bridge's block that are elsewhere: the bridge answers ARP for them, and tells its ports so."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Sequence

from agent.ip import Address
from agent.kernel import arp, ip_links, neighbours, netlink
from agent.kernel.ip_links import Link
from agent.kernel.link_operations import Reaper
from agent.kernel.netlink import Netlink, Request
from agent.model.marks import mac_for
from agent.objects import bridge_link
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.host_kernel import HostKernel
from agent.objects.state import NodeState, Proxy

AGAIN = 1.1  # seconds: neighbours change their mind once a second at most (locktime of arp(7))
DELAY = "ipv4/neigh/{}/proxy_delay"  # else an answer takes up to 0.8 s, as if other hosts answered too

log = logging.getLogger(__name__)


def answer(nl: Netlink, host: HostKernel, desired: frozenset[Proxy], there: Sequence[Link]) -> int:
    """Make what our bridges answer for what is desired; how many answers changed. Raises OSError."""
    ours = {link.index: link for link in there if bridge_link.is_ours(link)}
    indexes = {link.name: index for index, link in ours.items()}
    wanted: set[tuple[int, Address]] = {
        (indexes[proxy.bridge], proxy.address) for proxy in desired if proxy.bridge in indexes
    }
    if not ours:
        return 0
    actual = {(index, address) for index, address in neighbours.proxies(nl) if index in ours}
    for name in {ours[index].name for index, _address in wanted - actual}:
        (host.sysctls / DELAY.format(name)).write_text("0")
    steps: list[Request] = [neighbours.add_proxy(*entry) for entry in wanted - actual]
    steps += [neighbours.delete_proxy(*entry) for entry in actual - wanted]
    for error in nl.batch(steps):
        if error and error.errno != errno.ENOENT:
            raise error
    for index, address in wanted - actual:
        _tell(host.reaper, ours[index], address, ours[index].mac)
    for index, address in actual - wanted:
        _tell(host.reaper, ours[index], address, mac_for(address))
    return len(steps)


def _tell(reaper: Reaper, bridge: Link, address: Address, mac: str) -> None:
    """Pods that know where the address was learn where it is, now and a little later."""
    _announce(reaper, bridge, address, mac)
    again = threading.Timer(AGAIN, _tell_again, (reaper, bridge, address, mac))
    again.daemon = True
    again.start()


def _tell_again(reaper: Reaper, bridge: Link, address: Address, mac: str) -> None:
    """The same again, if it is still so."""
    try:
        still = ((bridge.index, address) in neighbours.proxies(netlink.host())) == (mac == bridge.mac)
    except OSError as error:
        log.warning("%s is not announced again on %s: %s", address, bridge.name, error)
        return
    if still:
        _announce(reaper, bridge, address, mac)


def _announce(reaper: Reaper, bridge: Link, address: Address, mac: str) -> None:
    """One that can't be told keeps no other from being told, and finds out when its neighbours grow stale."""
    try:
        arp.announce(reaper, bridge.name, mac, address)
    except OSError as error:  # the bridge has gone meanwhile, or the agent lacks CAP_NET_RAW
        log.warning("%s is not announced on %s: %s", address, bridge.name, error)


class ProxyArp(NodeObject):
    """The addresses that bridges answer ARP for. Who is told that the node knows the way comes at once."""

    kind = "proxies"
    stage = Stage.ANNOUNCEMENTS

    def wanted(self, desired: NodeState) -> object:
        """Return the addresses with their bridges."""
        return desired.proxies

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Make what bridges answer for what is desired. Raises OSError."""
        return Result(changed=answer(ctx.nl, ctx.host, desired.proxies, ip_links.links(ctx.nl)))
