"""The options that the modes `ipvlan` and `macvlan` have in common in a netconf."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from agent.codec import json_fields
from agent.codec.json_fields import Fields
from agent.errors import invalid_config
from agent.ip import Address, Subnet
from agent.model.network import ModeOptions, Network

IPVLAN, MACVLAN = "ipvlan", "macvlan"
L3, PASSTHRU = "l3", "passthru"
SERVICES = (ipaddress.IPv4Network("10.96.0.0/12"),)  # kubeadm's default


@dataclass(frozen=True, slots=True)
class ParentOptions(ModeOptions):
    """The parent interface of the pods' subinterfaces, and what pods reach past it."""

    needs_parent: ClassVar[bool] = True
    link_modes: ClassVar[tuple[str, ...]]
    """The ways in which subinterfaces of one parent see each other, by the names of the kernel and the reference
    plugins; the default comes first."""

    master: str | None = None
    """The parent; None: the interface that holds the node's address."""
    link_mode: str = ""
    """One of `link_modes`."""
    gateway: Address | None = None
    """The subnet's router; None: the parent's own."""
    via_host: tuple[Subnet, ...] = ()
    """The destinations that pods reach through their node: Services, pods of other networks."""

    @property
    def shares_segment(self) -> bool:
        """Whether pods are on the parent's own subnet, among machines that testcni knows nothing of."""
        return self.link_mode not in ("", L3)

    @property
    def parent(self) -> str | None:
        """The interface that the netconf names as the parent."""
        return self.master

    def given(self) -> Mapping[str, object]:
        """Return what the netconf sets, by its fields."""
        values = {"master": self.master, "linkMode": self.link_mode, "ipam.gateway": self.gateway}
        return {field: value for field, value in {**values, "viaHost": self.via_host}.items() if value}

    @classmethod
    def parse(cls, fields: Fields, ipam: Fields) -> Self:
        """Return the options that a netconf gives. Raises CniError 7."""
        return cls(
            master=fields.take("master", json_fields.link_name, None),
            link_mode=fields.take("linkMode", json_fields.string, ""),
            gateway=ipam.take("gateway", json_fields.address, None),
            via_host=fields.take("viaHost", json_fields.destinations, ()),
        )

    def complete(self, network: Network, fields: Fields) -> Self:
        """Return the options with the defaults of this mode. Raises CniError 7 where they contradict."""
        allowed = self.link_modes
        if self.link_mode and self.link_mode not in allowed:
            raise invalid_config("linkMode", self.link_mode, ", ".join(allowed))
        subnet, mode = network.subnet, self.link_mode or allowed[0]
        if subnet is None or subnet.version != 4:
            raise invalid_config("subnet", str(subnet), f"the IPv4 network of the parent, in mode {network.mode}")
        if self.gateway and self.gateway not in subnet:
            raise invalid_config("ipam.gateway", str(self.gateway), f"an address of subnet {subnet}")
        if mode == PASSTHRU and not self.master:
            raise invalid_config(
                "master", None, "an interface that the node can do without, as linkMode is passthru"
            )
        return replace(self, link_mode=mode, via_host=self.via_host if fields.has("viaHost") else SERVICES)


@dataclass(frozen=True, slots=True)
class IpvlanOptions(ParentOptions):
    """The parent interface of a network of the mode `ipvlan`."""

    mode: ClassVar[str] = IPVLAN
    link_modes: ClassVar[tuple[str, ...]] = ("l2", L3, "l3s")


@dataclass(frozen=True, slots=True)
class MacvlanOptions(ParentOptions):
    """The parent interface of a network of the mode `macvlan`."""

    mode: ClassVar[str] = MACVLAN
    link_modes: ClassVar[tuple[str, ...]] = ("bridge", "private", "vepa", PASSTHRU)
