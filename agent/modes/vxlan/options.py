"""The options of the mode `vxlan` in a netconf."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

from agent.codec import json_fields
from agent.codec.json_fields import Fields
from agent.model.network import ModeOptions

VXLAN = "vxlan"
EBPF, KERNEL = BACKENDS = ("ebpf", "kernel")
VNI, VXLAN_PORT = 1, 8472  # as flannel has them, and Linux before the port had a number of its own (4789)


@dataclass(frozen=True, slots=True)
class VxlanOptions(ModeOptions):
    """The tunnel of a network of the mode `vxlan`."""

    mode: ClassVar[str] = VXLAN
    routed: ClassVar[bool] = True
    host_routes: ClassVar[bool] = True

    vni: int = VNI
    """Network identifier of the tunnel, 1 to 2^24 - 1."""
    port: int = VXLAN_PORT
    """UDP port of the tunnel."""
    vxlan_backend: str = EBPF
    """The part that carries packets: eBPF programs, or the kernel's stack and its own vxlan."""

    @property
    def tunnel_ports(self) -> tuple[int, ...]:
        """The UDP port of the tunnel."""
        return (self.port,)

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return the options that a netconf gives. Raises CniError 7."""
        return cls(
            vni=fields.take("vni", partial(json_fields.number, low=1, high=(1 << 24) - 1), VNI),
            port=fields.take("port", partial(json_fields.number, low=1, high=65535), VXLAN_PORT),
            vxlan_backend=fields.take("vxlanBackend", partial(json_fields.choice, allowed=BACKENDS), EBPF),
        )
