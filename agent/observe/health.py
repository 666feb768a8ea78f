"""The pages that say if the agent is alive, and if its node is ready for pods, with one reason per line."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from threading import Thread

from agent.host.cni_conf_dir import Confs
from agent.host.installer import Installer
from agent.kernel import ip_addresses, netlink
from agent.model.node_status import NodeStatus
from agent.observe.http import Page


def alive(parts: Iterable[Thread], listen: tuple[str, int] | None) -> Page:
    """Return 200 if all threads are alive, and the node still has the address of metrics and health.

    If the node's address has changed, the agent must be restarted, as kubelet gives the current address only to
    a new container. Probes of the loopback address would not show this.
    """
    reasons = [f"{part.name} has ended" for part in parts if not part.is_alive()]
    if listen and not _is_here(listen[0]):
        reasons.append(f"the listen address {listen[0]} is on no interface of this node")
    return _page(reasons)


def _is_here(host: str) -> bool:
    """Return whether an address is on an interface of this node, or means all; True if this cannot be read."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified or address.is_loopback:
        return True
    try:
        return any(held.address == address for held in ip_addresses.addresses(netlink.host()))
    except OSError:
        return True


def ready(status: NodeStatus, confs: Confs, installer: Installer | None) -> Page:
    """Return 200 if the datastore was read, all networks are prepared, and the conflist is installed."""
    reasons = []
    if not status.synced:
        reasons.append("the datastore has not been read completely yet")
    missing = {network for network in confs.networks if not status.blocks.get(network)}
    for network in sorted(missing - status.unserved, key=str):
        reasons.append(f"network {network.name} ({network.mode}) is not prepared")
    for network in sorted(status.unserved, key=str):
        what = f"network {network.name} ({network.mode}), which pods on this node are on, is not prepared"
        reasons.append(f"{what}: they may be cut off")
    if installer and installer.lacking:
        reasons.append(installer.lacking)
    if reasons:  # a problem alone does not make a node unready
        reasons += map(str, status.problems)
    return _page(reasons)


def _page(reasons: Sequence[str]) -> Page:
    if reasons:
        return Page("".join(f"{reason}\n" for reason in reasons).encode(), status=HTTPStatus.SERVICE_UNAVAILABLE)
    return Page(b"ok\n")
