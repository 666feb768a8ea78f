"""The networks that the runtime's conf folder names, so that a node is ready before its first pod."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.cni import conflist, netconf
from agent.cni.later_plugins import LaterPlugins
from agent.errors import UNSEEN_MAC_REMEDY, CniError
from agent.model.network import Network
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.registry import Modes
from agent.node import directory_watch
from agent.runtime import atomic_file
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable

PLUGIN, TUNING = "testcni", "tuning"
MAC, BANDWIDTH = "mac", "bandwidth"  # capabilities; one plugin is called so, too
MACS = (MAC,), ("args", "cni", MAC), ("runtimeConfig", MAC)  # where tuning reads one (its README)
SCHEDULE = Schedule(resync=30.0, first=0.0)  # should a change ever be missed


@dataclass(frozen=True, slots=True)
class Confs:
    """The networks of type testcni in the conf folder, and which files are wrong."""

    networks: frozenset[Network] = frozenset()
    problems: tuple[Problem, ...] = ()
    chosen: Mapping[str, Network] = field(default_factory=dict)
    """Of several confs of one name the first: the one that is to be installed, where there is one."""
    installed: frozenset[Network] = frozenset()
    """Those of the folder, where a conflist is to be installed there: they were in force when it was written."""
    foreign_macs: Mapping[str, str] = field(default_factory=dict)
    """By the name of a network the MAC that a plugin after testcni gives to pods, or several."""
    unseen_macs: Mapping[str, str] = field(default_factory=dict)
    """By the name of a network the plugins after testcni that may give a pod a MAC unseen by testcni."""
    egress_limits: Mapping[str, bool] = field(default_factory=dict)
    """The networks where a plugin after testcni may limit what a pod sends; True: it does so for each pod."""


def read(folder: Path, template: Path | None = None, known: Confs | None = None, *, modes: Modes) -> Confs:
    """What is in the folder now, and in the conflist that is to be installed there; `known`: at the last look."""
    try:
        paths = conflist.files(folder)
    except OSError as error:  # a folder that can't be read takes no network away
        problem = Problem(
            str(folder), str(error), "let the agent read it; until then its last state stays in force"
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
    """The networks of the conflist that is to be installed in the folder."""
    remedy = "fix it (in Kubernetes: the ConfigMap); until then what is installed stays in force"
    return _read(path, lambda data: of(conflist.conflist(data, folder), modes), remedy, ours=b"")


def read_file(path: Path, modes: Modes) -> Confs:
    """The networks of one file; one that does not mention us has none, whatever else it holds."""
    return _read(path, lambda data: of(conflist.read(path, data), modes), "fix or remove the file")


def _read(path: Path, parse: Callable[[bytes], Confs], remedy: str, ours: bytes = PLUGIN.encode()) -> Confs:
    """`ours`: what a file mentions that is ours to judge."""
    data = b""
    try:
        data = atomic_file.read(path)
        found = parse(data)
        return replace(found, problems=_refused(path, found.unseen_macs))
    except FileNotFoundError:
        return Confs()  # it went while we looked; who installs a conflist reports that there is none
    except CniError as error:
        return Confs(problems=(Problem(str(path), str(error), remedy),) if ours in data else ())
    except OSError as error:
        return Confs(problems=(Problem(str(path), str(error), remedy),))


def of(conf: conflist.ConfList, modes: Modes) -> Confs:
    """The networks of a file. Raises CniError."""
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

    Then nobody reaches the pod: neighbours and programs on the node's side know the MAC that testcni gave.
    If its entries have several, all are returned, separated by commas: no pod can have them all.
    """
    after = (plugin.conf for plugin in _from_ours(conf) if plugin.type == TUNING)
    found = (str(mac).lower() for entry in after for way in MACS for mac in conflist.found(entry, *way) if mac)
    return ", ".join(sorted(set(found)))


def unseen_mac(conf: conflist.ConfList) -> str:
    """Return the plugins after testcni that runtimes give MACs for pods which testcni does not hear of."""
    ours, after = _from_ours(conf)[:1], _from_ours(conf)[1:]
    capable = sorted({plugin.type for plugin in after if plugin.type != PLUGIN and _is_capable(plugin, MAC)})
    return "" if any(_is_capable(plugin, MAC) for plugin in ours) else ", ".join(capable)


def _refused(path: Path, unseen: Mapping[str, str]) -> tuple[Problem, ...]:
    """Report a conflist whose pods might be given a MAC that nobody reaches them by."""
    if not (plugins := next(iter(unseen.values()), "")):
        return ()
    what = f"{plugins} has the capability `mac` and {PLUGIN} has not: no pod is added, as one that asks for a MAC"
    return (Problem(str(path), f"{what} would be cut off", UNSEEN_MAC_REMEDY),)


def egress_limit(conf: conflist.ConfList) -> bool | None:
    """Whether a plugin after testcni limits what each pod sends; None: none of them ever does.

    False: it may, for pods that testcni is not told of, as its own entry lacks the capability `bandwidth`.
    """
    ours, after = _from_ours(conf)[:1], _from_ours(conf)[1:]
    limits = [plugin for plugin in after if plugin.type == BANDWIDTH or _is_capable(plugin, BANDWIDTH)]
    if any(value for plugin in limits for value in conflist.found(plugin.conf, "egressRate")):
        return True
    some = any(_is_capable(plugin, BANDWIDTH) for plugin in limits)
    return False if some and not any(_is_capable(plugin, BANDWIDTH) for plugin in ours) else None


def _is_capable(plugin: conflist.Plugin, capability: str) -> bool:
    declared = (each for each in conflist.found(plugin.conf, "capabilities") if each)
    return any(each.get(capability) for each in declared)  # keys of a map are compared as they are


def _from_ours(conf: conflist.ConfList) -> tuple[conflist.Plugin, ...]:
    """Return testcni's entry and those after it, none without it."""
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
        """Return what the confs say, at the time of a call, of the plugins after testcni."""
        confs = self.found
        return LaterPlugins(
            lambda network: confs.get().foreign_macs.get(network, ""),
            lambda network: confs.get().unseen_macs.get(network, ""),
            lambda network: confs.get().egress_limits.get(network),  # noqa: PLW0108 - the confs as they are then
        )

    def once(self) -> bool:
        """Read all files."""
        self.found.update(lambda known: read(self._folder, self._template, known, modes=self._modes))
        return True
