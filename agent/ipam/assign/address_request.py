"""The request of an ADD to IPAM."""

from __future__ import annotations

from dataclasses import dataclass

from agent.codec.cni_args import PodIdentity
from agent.ip import Address
from agent.model.network import Network


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """A request for the addresses of one interface of a container."""

    container_id: str
    ifname: str
    netns: str
    network: Network
    pod: PodIdentity | None = None
    """None if the runtime does not name a pod of Kubernetes."""
    addresses: tuple[Address, ...] = ()
    """The addresses that netconf or CNI_ARGS request; empty: any."""
    mac: str = ""
    """Empty for a MAC that follows from the first address."""
    probe: bool = False
    """Whether to probe on the parent's segment if another machine uses an address already."""
    egress_limited: bool = False
    """Whether a later plugin of the chain limits what the pod sends."""

    @property
    def pod_name(self) -> str:
        """`namespace/name` of the pod, empty if it is not known."""
        return self.pod.name if self.pod else ""
