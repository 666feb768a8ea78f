"""The modes by their names: a new one is a file and a line here."""

from __future__ import annotations

from agent.kernel import links, rtnl
from agent.kernel.bpf import loader
from agent.model.network import HOST_GW, IPIP, IPVLAN, MACVLAN, VXLAN
from agent.modes.base import Mode
from agent.modes.hostgw import HostGw
from agent.modes.ipip.mode import Ipip
from agent.modes.parent.ipvlan import Ipvlan
from agent.modes.parent.macvlan import Macvlan
from agent.modes.vxlan import maps as vxlan_maps
from agent.modes.vxlan.mode import Vxlan

REGISTRY: dict[str, Mode] = {
    HOST_GW: HostGw(),
    VXLAN: Vxlan(),
    IPIP: Ipip(),
    IPVLAN: Ipvlan(),
    MACVLAN: Macvlan(),
}


def mode(name: str) -> Mode:
    """The mode of that name, one of model.MODES."""
    return REGISTRY[name]


def unwire_unknown(link: str) -> None:
    """Delete a host end of which no attachment is known, and what is known by that link only. Raises OSError."""
    nl = links.host()
    found, maps = rtnl.link(nl, link), loader.maps()
    if found and maps:
        vxlan_maps.remove_pods_at(maps, found.index)
    links.detach(nl, link)
