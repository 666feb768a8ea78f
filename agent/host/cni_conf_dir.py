"""Read the networks in the runtime's conf folder, so that a node is ready before its first pod."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.cni import conflist, netconf
from agent.cni.later_plugins import LaterPlugins
from agent.errors import UNSEEN_MAC_REMEDY, CniError
from agent.host import directory_watch
from agent.model.network import Network
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.registry import Modes
from agent.runtime import atomic_file
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable

PLUGIN, TUNING = "testcni", "tuning"
MAC, BANDWIDTH = "mac", "bandwidth"  # capabilities; bandwidth is also the name of a plugin
MACS = (MAC,), ("args", "cni", MAC), ("runtimeConfig", MAC)  # where the plugin tuning reads a MAC (its README)
SCHEDULE = Schedule(resync=30.0, first=0.0)  # in case a change is missed


@dataclass(frozen=True, slots=True)
class Confs:
    """The networks of type testcni in the conf folder, and faults of files."""

    networks: frozenset[Network] = frozenset()
    problems: tuple[Problem, ...] = ()
    chosen: Mapping[str, Network] = field(default_factory=dict)
    """The network of each name, from the conflist to be installed, if it has it, else from the first conf."""
    installed: frozenset[Network] = frozenset()
    """The networks of the folder if a conflist is to be installed: they were in force when it was written."""
    foreign_macs: Mapping[str, str] = field(default_factory=dict)
    """The MAC, or several, that a plugin after testcni gives to pods, by the name of a network."""
    unseen_macs: Mapping[str, str] = field(default_factory=dict)
    """The plugins after testcni that may give a pod a MAC unknown to testcni, by the name of a network."""
    egress_limits: Mapping[str, bool] = field(default_factory=dict)
    """The networks where a plugin after testcni may limit what a pod sends; True: it does so for each pod."""


def read(folder: Path, template: Path | None = None, known: Confs | None = None, *, modes: Modes) -> Confs:
    """Return the networks of the folder, and of the conflist to be installed; `known`: the result before."""
    try:
        paths = conflist.files(folder)
    except OSError as error:  # an unreadable folder removes no network
        problem = Problem(
            str(folder), str(error), "make it readable for the agent; until then its last state stays in force"
        )
        return replace(known or Confs(), problems=(problem,))
    there = [read_file(path, modes) for path in paths]
    found = [*([read_template(template, folder, modes)] if template else []), *there]
    return Confs(
        frozenset(network for confs in found for network in confs.networks),
        tuple(problem for confs in found for problem in confs.problems),
        {name: network for confs in reversed(found) for name, network in confs.chosen.items()},
        frozenset(network for confs in there for network in confs.networks) if template else frozenset(),
        {name: mac for confs in found for name, mac in confs.foreign_macs.items()},
        {name: plugins for confs in found for name, plugins in confs.unseen_macs.items()},
        {
            name: any(confs.egress_limits.get(name) for confs in found)
            for confs in found
            for name in confs.egress_limits
        },
    )


def read_template(path: Path, folder: Path, modes: Modes) -> Confs:
    """Return the networks of the conflist that is to be installed in the folder."""
    remedy = "fix it (in Kubernetes: the ConfigMap); until then the installed conflist stays in force"
    return _read(path, lambda data: of(conflist.conflist(data, folder), modes), remedy, ours=b"")


def read_file(path: Path, modes: Modes) -> Confs:
    """Return the networks of one file; a file without the word testcni has none, and no faults."""
    return _read(path, lambda data: of(conflist.read(path, data), modes), "fix or remove the file")


def _read(path: Path, parse: Callable[[bytes], Confs], remedy: str, ours: bytes = PLUGIN.encode()) -> Confs:
    """Return the networks of one file; `ours`: only faults of a file that contains this are reported."""
    data = b""
    try:
        data = atomic_file.read(path)
        found = parse(data)
        return replace(found, problems=_refused(path, found.unseen_macs))
    except FileNotFoundError:
        return Confs()  # it was removed meanwhile; the installer reports a missing conflist
    except CniError as error:
        return Confs(problems=(Problem(str(path), str(error), remedy),) if ours in data else ())
    except OSError as error:
        return Confs(problems=(Problem(str(path), str(error), remedy),))


def of(conf: conflist.ConfList, modes: Modes) -> Confs:
    """Return the networks of a conflist. Raises CniError."""
    networks = [netconf.parse(plugin.conf, "", modes).network for plugin in conf.plugins if plugin.type == PLUGIN]
    mac, unseen, limit = foreign_mac(conf), unseen_mac(conf), egress_limit(conf)
    return Confs(
        frozenset(networks),
        chosen={network.name: network for network in reversed(networks)},
        foreign_macs={network.name: mac for network in networks if mac},
        unseen_macs={network.name: unseen for network in networks if unseen},
        egress_limits={network.name: limit for network in networks if limit is not None},
    )


def foreign_mac(conf: conflist.ConfList) -> str:
    """Return the MAC that `tuning` gives to a pod after testcni has connected it; empty: none.

    Such a pod is unreachable: neighbours and programs on the node use the MAC that testcni gave. If the entries
    have several MACs, all are returned, separated by commas: no pod can have them all.
    """
    after = (plugin.conf for plugin in _from_ours(conf) if plugin.type == TUNING)
    found = (str(mac).lower() for entry in after for way in MACS for mac in conflist.found(entry, *way) if mac)
    return ", ".join(sorted(set(found)))


def unseen_mac(conf: conflist.ConfList) -> str:
    """Return the plugins after testcni that get MACs of pods from the runtime, if testcni does not get them."""
    ours, after = _from_ours(conf)[:1], _from_ours(conf)[1:]
    capable = sorted({plugin.type for plugin in after if plugin.type != PLUGIN and _is_capable(plugin, MAC)})
    return "" if any(_is_capable(plugin, MAC) for plugin in ours) else ", ".join(capable)


def _refused(path: Path, unseen: Mapping[str, str]) -> tuple[Problem, ...]:
    """Report a conflist whose pods might get a MAC by which they are unreachable."""
    if not (plugins := next(iter(unseen.values()), "")):
        return ()
    what = f"{plugins} has the capability `mac` and {PLUGIN} has not: no pod is added, as one that asks for a MAC"
    return (Problem(str(path), f"{what} would be cut off", UNSEEN_MAC_REMEDY),)


def egress_limit(conf: conflist.ConfList) -> bool | None:
    """Return whether a plugin after testcni limits what each pod sends; None: none of them does.

    False: it may, and testcni does not know for which pods, as its own entry lacks the capability `bandwidth`.
    """
    ours, after = _from_ours(conf)[:1], _from_ours(conf)[1:]
    limits = [plugin for plugin in after if plugin.type == BANDWIDTH or _is_capable(plugin, BANDWIDTH)]
    if any(value for plugin in limits for value in conflist.found(plugin.conf, "egressRate")):
        return True
    some = any(_is_capable(plugin, BANDWIDTH) for plugin in limits)
    return False if some and not any(_is_capable(plugin, BANDWIDTH) for plugin in ours) else None


def _is_capable(plugin: conflist.Plugin, capability: str) -> bool:
    declared = (each for each in conflist.found(plugin.conf, "capabilities") if each)
    return any(each.get(capability) for each in declared)  # keys of a map are compared exactly


def _from_ours(conf: conflist.ConfList) -> tuple[conflist.Plugin, ...]:
    """Return testcni's entry and those after it; empty if there is none."""
    types = [plugin.type for plugin in conf.plugins]
    return conf.plugins[types.index(PLUGIN) :] if PLUGIN in types else ()


class ConfDir(Controller):
    """Publishes the networks of the conf directory, and of the conflist that is to be installed there."""

    def __init__(
        self,
        folder: Path,
        template: Path | None,
        modes: Modes,
        problems: PartProblems,
    ) -> None:
        """`template`: the conflist that is to be installed; None: there is none."""
        super().__init__(SCHEDULE, problems.report_error)
        self.found: Observable[Confs] = Observable(read(folder, template, modes=modes))
        self._folder = folder
        self._modes = modes
        self._template = template

    def run(self, stop: threading.Event) -> None:
        """Publish the networks after each change until `stop` is set."""
        watched = {"watch-cni-conf": self._folder}
        if self._template:
            watched["watch-template"] = self._template.parent
        directory_watch.watch(watched, self.wake, stop)
        super().run(stop)

    def later_plugins(self) -> LaterPlugins:
        """Return what the confs say about the plugins after testcni, read at each call."""
        confs = self.found
        return LaterPlugins(
            lambda network: confs.get().foreign_macs.get(network, ""),
            lambda network: confs.get().unseen_macs.get(network, ""),
            lambda network: confs.get().egress_limits.get(network),  # noqa: PLW0108 - read at each call
        )

    def once(self) -> bool:
        """Read all files."""
        self.found.update(lambda known: read(self._folder, self._template, known, modes=self._modes))
        return True
