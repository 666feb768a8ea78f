"""Networks as netconfs define them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from agent.ip import Address, Subnet

HOST_GW = "host-gw"


VXLAN = "vxlan"


IPIP = "ipip"


EBPF, KERNEL = BACKENDS = ("ebpf", "kernel")  # of the mode vxlan


VNI, VXLAN_PORT = 1, 8472  # as flannel has them, and Linux before the port had a number of its own (4789)


ALWAYS, CROSS_SUBNET, NEVER = ENCAPSULATIONS = ("always", "crossSubnet", "never")


IPVLAN, MACVLAN = "ipvlan", "macvlan"


MODES = (HOST_GW, VXLAN, IPIP, IPVLAN, MACVLAN)


ROUTED = (VXLAN, IPIP, HOST_GW)
"""Modes whose pods are in the nodes' blocks, so that one can follow the other; the preferred first."""


L3, PASSTHRU = "l3", "passthru"


LINK_MODES = {IPVLAN: ("l2", L3, "l3s"), MACVLAN: ("bridge", "private", "vepa", PASSTHRU)}
"""How slaves of one parent see each other, as the kernel and the reference plugins name it; the default first."""


SERVICES = (ipaddress.IPv4Network("10.96.0.0/12"),)  # kubeadm's default


@dataclass(frozen=True, slots=True)
class Network:
    """What a netconf says of the whole network, and so of node state: equal confs are one network."""

    name: str
    mode: str = HOST_GW
    subnet: Subnet | None = None
    """Where pods' addresses lie; None: wherever the node's blocks are."""
    bridge: str = "testcni0"
    mtu: int | None = None
    """Bytes of a pod's interface; None: that of the interface that holds the node's address."""
    masquerade: bool = True
    hairpin: bool = True
    range_start: Address | None = None
    range_end: Address | None = None
    vni: int = VNI
    """Network identifier of the tunnel (mode vxlan), 1 to 2^24 - 1."""
    port: int = VXLAN_PORT
    """UDP port of the tunnel (mode vxlan)."""
    encapsulate: str = ALWAYS
    """To which nodes packets go in tunnels (mode ipip): all, those of other subnets, none."""
    master: str | None = None
    """Parent of the slaves (modes ipvlan, macvlan); None: the interface that holds the node's address."""
    link_mode: str = ""
    """One of LINK_MODES; empty in other modes."""
    gateway: Address | None = None
    """The subnet's router; None: the parent's own."""
    via_host: tuple[Subnet, ...] = ()
    """What pods of ipvlan and macvlan reach through their node: Services, pods of other networks."""
    vxlan_backend: str = EBPF
    """Who carries packets (mode vxlan): eBPF programs, or the kernel's stack and its own vxlan."""
    spoof_check: bool = True
    """Whether a pod may send only from its own addresses and MAC."""
    pool: str = ""
    """The IPPool that pods of this network asked for by name, which makes it a network of its own; empty: any."""

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that its mode carries; its pods get no addresses of others."""
        return (4, 6) if self.mode == HOST_GW else (4,)

    @property
    def shared(self) -> bool:
        """Whether pods are on the parent's own subnet, among machines that we know nothing of."""
        return self.link_mode not in ("", L3)

    @property
    def hand_made(self) -> bool:
        """Whether the range of the netconf is all that this node has: nodes have ranges divided by hand."""
        return bool(self.link_mode and self.subnet and (self.range_start or self.range_end))


@dataclass(frozen=True, slots=True)
class Uplink:
    """Where slaves hang, and what pods must know of their node: found out by the node path for the pod path."""

    device: str
    """The parent."""
    hosts: tuple[Address, ...]
    """The node's own addresses that its pods reach past the parent; it speaks to them as the first."""
    gateway: Address | None = None
    via_host: tuple[Subnet, ...] = ()
    reserved: frozenset[Address] = frozenset()
    """What no pod may have."""


@dataclass(frozen=True, slots=True)
class ExtraRoute:
    """A route of `ipam.routes` for the pod; `gateway` None: by the pod's default gateway."""

    dst: Subnet
    gateway: Address | None = None
