"""The modes by their names: a new one is a file and a line here."""

from __future__ import annotations

from agent.errors import CniError, Code
from agent.model import HOST_GW, IPIP, IPVLAN, MACVLAN, VXLAN
from agent.modes.base import Mode
from agent.modes.hostgw import HostGw
from agent.modes.ipip import Ipip
from agent.modes.ipvlan import Ipvlan
from agent.modes.macvlan import Macvlan
from agent.modes.vxlan import Vxlan

REGISTRY: dict[str, Mode] = {
    HOST_GW: HostGw(),
    VXLAN: Vxlan(),
    IPIP: Ipip(),
    IPVLAN: Ipvlan(),
    MACVLAN: Macvlan(),
}


def mode(name: str) -> Mode:
    """The mode of that name; raises CniError 7 for one that is not built yet."""
    if name not in REGISTRY:
        raise CniError(
            Code.INVALID_CONFIG, f"mode: {name!r} is not built yet", f"built: {', '.join(sorted(REGISTRY))}"
        )
    return REGISTRY[name]
