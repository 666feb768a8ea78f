"""The modes by their names: a new one is a file and a line here."""

from __future__ import annotations

from agent.datapath import bpf, links, overlay, rtnl
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
    """The mode of that name, one of model.MODES."""
    return REGISTRY[name]


def unwire_unknown(link: str) -> None:
    """Delete a host end of which no attachment is known, and what is known by that link only. Raises OSError."""
    nl = links.host()
    found, maps = rtnl.link(nl, link), bpf.maps()
    if found and maps:
        overlay.remove_pods_at(maps, found.index)
    links.detach(nl, link)
