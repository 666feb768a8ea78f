"""The node's side of a pod's link as frozen values: what it should be, and what the kernel has."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from agent.ip import Address
from agent.kernel.ip_links import Link
from agent.kernel.ip_routes import KernelRoute
from agent.kernel.netlink import Netlink, Request
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_guard import GuardedPort


@dataclass(frozen=True, slots=True)
class PodAddress:
    """An address that the node reaches by a pod's link: by a route to it alone and a permanent neighbour."""

    address: IPv4Address
    mac: str
    """The pod's."""
    source: Address | None = None
    """The node's own address on packets to it; None: the kernel chooses."""


@dataclass(frozen=True, slots=True)
class PodPort:
    """All that the node's side of a pod's link consists of; a mode computes it from the attachment alone."""

    link: str
    """Name of the host end."""
    alias: str
    mac: str
    mtu: int | None = None
    """Bytes; None: as it was made."""
    bridge: str = ""
    """The bridge that it is a port of; empty: none."""
    flags: tuple[tuple[int, int], ...] = ()
    """Flags of the bridge's port by their IFLA_BRPORT_ numbers."""
    ipv4: tuple[tuple[int, int], ...] = ()
    """Switches of ipv4/conf by their IPV4_DEVCONF_ numbers."""
    pod: PodAddress | None = None
    guard: GuardedPort | None = None
    """The addresses and the MAC with which the pod may speak; None: the mode's own aspects check that."""
    limited: bool = False
    """Whether the plugin `bandwidth` is about to limit what the pod sends."""
    station: str = ""
    """The MAC that is behind this port of a bridge permanently; empty: the bridge learns them."""
    proxy: tuple[str, Address] | None = None
    """An interface of the node that answers ARP for an address of the pod."""
    aspects: tuple[PortAspect, ...] = ()
    """The aspects that the mode adds to those that ports of all modes have."""


@dataclass(frozen=True, slots=True)
class PortsInKernel:
    """The kernel's state of all pods, read by a few dumps. Maps and programs are read on demand."""

    nl: Netlink
    host: HostKernel
    links: Mapping[str, Link]
    routes: frozenset[KernelRoute]
    """The routes with our protocol number."""
    earlier: Callable[[], frozenset[KernelRoute]]
    """Read routes by pods' links that have any protocol number, once, when something is not as it should be."""
    by_pods: Mapping[Address, tuple[KernelRoute, ...]]
    """The routes of our number that lead to single addresses by any pod's link, by these addresses."""
    permanent: Mapping[tuple[int, Address], str]
    proxies: frozenset[tuple[int, Address]]
    stations: set[tuple[int, str]]
    """Ports of bridges and the MACs that are behind them permanently."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place where a port is made: its link as it is now, and what else there is."""

    nl: Netlink
    host: HostKernel
    link: Link
    indexes: Mapping[str, int]
    """Other interfaces of the node by name."""
    earlier: Callable[[], frozenset[KernelRoute]] = frozenset
    """Read routes by pods' links that an earlier version made, with another protocol number."""
    by_pods: Mapping[Address, tuple[KernelRoute, ...]] = field(default_factory=dict)
    """Routes of our number by any pod's link, by the single address that each leads to."""
    permanent: Mapping[tuple[int, Address], str] = field(default_factory=dict)
    """The MACs that neighbours have permanently, by interface and address."""

    def index(self, name: str) -> int:
        """Return the index of another interface. Raises OSError ENODEV where it is not there."""
        if name not in self.indexes:
            raise OSError(errno.ENODEV, f"{name}: {os.strerror(errno.ENODEV)}")
        return self.indexes[name]


@dataclass(frozen=True, slots=True)
class PortAspect:
    """A part of a port. Both functions do nothing for a port without that part. They raise OSError."""

    differs: Callable[[PodPort, Link, PortsInKernel], str]
    """Say how the kernel differs, empty where it does not."""
    make: Callable[[PodPort, Place], list[Request]]
    """Return the requests that make it as it should be; what is no request is done at once."""
