"""The options of the mode `ipip` in a netconf."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

from agent.codec import json_fields
from agent.codec.json_fields import Fields
from agent.model.network import ModeOptions

IPIP = "ipip"
ALWAYS, CROSS_SUBNET, NEVER = ENCAPSULATIONS = ("always", "crossSubnet", "never")


@dataclass(frozen=True, slots=True)
class IpipOptions(ModeOptions):
    """The tunnels of a network of the mode `ipip`."""

    mode: ClassVar[str] = IPIP
    routed: ClassVar[bool] = True
    host_routes: ClassVar[bool] = True

    encapsulate: str = ALWAYS
    """The nodes to which packets go in tunnels: all, those of other subnets, or none."""

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return the options that a netconf gives. Raises CniError 7."""
        choice = partial(json_fields.choice, allowed=ENCAPSULATIONS)
        return cls(encapsulate=fields.take("encapsulate", choice, ALWAYS))
