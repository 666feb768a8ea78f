"""The modes by their names. A mode is a folder or a file of this package and an entry of BUILT_IN."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from agent.kernel import ip_links, netlink
from agent.model.network import ModeOptions, Network
from agent.modes.base import Mode, RoutedModes
from agent.modes.hostgw import HostGw
from agent.modes.ipip.mode import Ipip
from agent.modes.packet_monitor import PacketMonitor
from agent.modes.parent.ipvlan import Ipvlan
from agent.modes.parent.macvlan import Macvlan
from agent.modes.vxlan.mode import Vxlan
from agent.objects import host_end
from agent.objects.base import NodeObject
from agent.objects.common import common_objects
from agent.objects.host_kernel import HostKernel


class Modes:
    """The modes that an agent knows; the first is that of netconfs without `mode`. They never change."""

    def __init__(self, *modes: Mode) -> None:
        self._modes: Mapping[str, Mode] = MappingProxyType({mode.name: mode for mode in modes})
        self.names = tuple(self._modes)
        self.default = self.names[0]
        self.options: Mapping[str, type[ModeOptions]] = MappingProxyType({m.name: m.options for m in modes})
        self.agent_options = tuple(option for mode in modes for option in mode.agent_options)
        """The options of the agent that belong to single modes."""
        routed = [mode for mode in modes if mode.options.routed]
        self.routed = RoutedModes(
            tuple(mode.name for mode in routed if mode.tunnels),
            tuple(mode.name for mode in routed if not mode.tunnels),
            tuple(mode.name for mode in routed if 6 in mode.options.ip_versions),
        )

    def __iter__(self) -> Iterator[Mode]:
        return iter(self._modes.values())

    def __contains__(self, name: str) -> bool:
        return name in self._modes

    def __getitem__(self, name: str) -> Mode:
        return self._modes[name]

    def of(self, network: Network) -> Mode:
        """Return the mode of a network."""
        return self._modes[network.mode]

    def node_objects(self, *others: NodeObject) -> tuple[NodeObject, ...]:
        """Return the node objects, except ports of pods: new ones at each call, as they have state.

        `others` come in place of objects of the same kind that modes would bring, or beside them.
        """
        of_modes = {each.kind: each for mode in self for each in mode.node_objects()}
        of_modes.update({each.kind: each for each in others})
        return (*common_objects(), *of_modes.values())

    def packet_monitor(self, run_dir: Path) -> PacketMonitor:
        """Return what happens to packets from now on, in the first mode that shows it. Raises OSError."""
        found = (mode.packet_monitor(run_dir, self.options) for mode in self)
        if monitor := next((one for one in found if one), None):
            return monitor
        raise OSError(errno.ENOTSUP, "no mode of this agent shows its packets")

    def unwire_unknown(self, host: HostKernel, link: str) -> None:
        """Delete a host end that has no known attachment, and all that is known by that link. Raises OSError."""
        nl = netlink.host()
        if found := ip_links.link(nl, link):
            for mode in self:
                mode.forget_link(host, found.index)
        host_end.detach(host.reaper, nl, link)


BUILT_IN = Modes(HostGw(), Vxlan(), Ipip(), Ipvlan(), Macvlan())
