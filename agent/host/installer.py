"""Install plugins and conflist on the host, if they differ, by atomic rename; the conflist comes last.

For the runtime a node is ready as soon as there is a conflist. So it is written only when a pod could start.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.cni import conflist
from agent.errors import CniError
from agent.host import cni_conf_dir, directory_watch
from agent.model.node_status import NodeStatus
from agent.model.problem import Problem
from agent.model.problem_board import PartProblems
from agent.modes.registry import Modes
from agent.runtime import atomic_file
from agent.runtime.controller import Controller, Schedule
from agent.runtime.observable import Observable

CONFLIST = "05-testcni.conflist"  # sorts before the confs of other plugins (10-...)
DELEGATING = frozenset({"multus", "multus-shim"})  # types of plugins that call the plugins of other confs
SCHEDULE = Schedule(resync=30.0, first=0.0)  # in case a change is missed
REASONS = 3  # problems named with a conflist that is not installed: an Event has 1,024 bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """The paths: `bundle` (plugins) and `template` (the conflist) are in our image, the others on the host."""

    bundle: Path
    template: Path
    bin_dir: Path
    conf_dir: Path

    @property
    def conflist(self) -> Path:
        """The installed conflist."""
        return self.conf_dir / CONFLIST


class Installer(Controller):
    """Keeps plugins and conflist installed on the host."""

    def __init__(
        self, places: Places, status: Observable[NodeStatus], problems: PartProblems, modes: Modes
    ) -> None:
        super().__init__(SCHEDULE, problems.report_error, (status,))
        self._problems = problems
        self._places = places
        self._modes = modes
        self._status = status
        self._refused = ""

    def run(self, stop: threading.Event) -> None:
        """Install everything, and again after changes by others, until `stop` is set."""
        watched = (self._places.bin_dir, self._places.conf_dir, self._places.template.parent)
        directory_watch.watch({f"watch-{folder.name}": folder for folder in watched}, self.wake, stop)
        super().run(stop)

    @property
    def installed(self) -> bool:
        """Whether the conflist is in the runtime's folder."""
        return self._places.conflist.exists()

    @property
    def lacking(self) -> str:
        """The reason why the wanted conflist is not in the runtime's folder; empty: it is."""
        if self._refused:
            return f"the conflist {self._places.template} cannot be used: {self._refused}"
        return "" if self.installed else "the conflist is not installed"

    def once(self) -> bool:
        """Install what differs; a failure is a problem, and is retried after the next change."""
        problems: dict[str, Problem] = {}
        try:
            for source in sorted(self._places.bundle.iterdir()):
                _install(source.read_bytes(), self._places.bin_dir / source.name, 0o755)
            if problem := self._put_conflist():
                problems["conflist"] = problem
        except OSError as error:
            remedy = "check that the host's folders are mounted and writable"
            problems["install"] = Problem("install", str(error), remedy)
        for name in self._absent(problems):
            what = (
                f"names the plugin {name}, which is not in {self._places.bin_dir}: no pod can be added without it"
            )
            remedy = "install it there, or remove it from the conflist"
            problems[f"plugin {name}"] = Problem(str(self._places.template), what, remedy)
        for path in foreign(self._places.conf_dir):
            what = f"sorts before {CONFLIST}, so the runtime uses it instead of testcni"
            problems[str(path)] = Problem(
                str(path), what, "uninstall the program that wrote it, then remove the file"
            )
        self._problems.publish(problems)
        return True

    def _put_conflist(self) -> Problem | None:
        """Install the conflist if its networks are prepared, else return why the old one stays in force.

        Raises OSError.
        """
        template, self._refused = self._places.template, ""
        try:
            data = atomic_file.read(template)
            networks = cni_conf_dir.of(conflist.conflist(data, self._places.conf_dir), self._modes).networks
        except FileNotFoundError:
            remedy = f"in Kubernetes: give the ConfigMap the key {template.name}"
            return self._refuse("there is no such file", remedy)
        except (CniError, OSError) as error:
            self._refused = str(error)
            return None  # ConfDir reports it
        if not networks:
            return self._refuse("has no plugin of type testcni", "add one")
        prepared = self._status.get().blocks
        missing = sorted(f"{n.name} ({n.mode})" for n in networks if not prepared.get(n))
        if not missing:
            _install(data, self._places.conflist, 0o600)
        elif self.installed and not _same(self._places.conflist, data):
            return self._waiting(f"network {', '.join(missing)} is not prepared, so the old conflist stays")
        return None

    def _refuse(self, what: str, remedy: str) -> Problem:
        """Note why the conflist is not installed, and return it as a problem."""
        self._refused = what
        return Problem(
            str(self._places.template), what, f"{remedy}; until then the installed conflist stays in force"
        )

    def _waiting(self, what: str) -> Problem:
        """Return the problem with its reasons, as an Event shows only one problem."""
        own = self._problems.get().values()
        others = [problem for problem in self._status.get().problems if problem not in own]
        if not others:
            return Problem(str(self._places.template), what, "wait; if this lasts, see the agent's log")
        reasons = "; ".join(f"{problem.where}: {problem.what}" for problem in others[:REASONS])
        return Problem(str(self._places.template), f"{what}: {reasons}", others[0].remedy)

    def _absent(self, problems: Mapping[str, Problem]) -> list[str]:
        """Return the programs that the installed conflist names and the plugin folder lacks, as far as known."""
        if "install" in problems:
            return []
        try:
            conf = conflist.read(self._places.conflist, atomic_file.read(self._places.conflist))
            types = {plugin.type for plugin in conf.plugins}
            return sorted(name for name in types if not (self._places.bin_dir / name).is_file())
        except (CniError, OSError):
            return []  # ConfDir reports it, or there is none yet


def foreign(conf_dir: Path) -> list[Path]:
    """Return confs that the runtime would use instead of ours; Multus, which calls ours, may be first."""
    try:
        paths = conflist.files(conf_dir)
    except OSError:
        return []  # ConfDir reports it
    return [path for path in paths if path.name < CONFLIST and not _delegates(path)]


def _delegates(path: Path) -> bool:
    try:
        types = {plugin.type for plugin in conflist.read(path, atomic_file.read(path)).plugins}
    except (CniError, OSError):
        return False  # the runtime would use it in any case
    return not types.isdisjoint(DELEGATING)


def uninstall(places: Places) -> list[Path]:
    """Remove what `Installer` installed, the conflist first, and return the removed paths. Raises OSError.

    A plugin is removed only if all its bytes are ours: portmap may be the distribution's.
    """
    ours = {source.name: source.read_bytes() for source in places.bundle.iterdir()}
    removed = []
    if places.conflist.exists():
        places.conflist.unlink()
        removed.append(places.conflist)
    for name, data in ours.items():
        path = places.bin_dir / name
        if _same(path, data):
            path.unlink()
            removed.append(path)
    return removed


def _install(data: bytes, target: Path, mode: int) -> None:
    """Write `data` to `target` atomically, also in case of a crash. Raises OSError."""
    if _same(target, data) and target.stat().st_mode & 0o777 == mode:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")  # always the same name, because texts of errors contain it
    try:
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        new.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    log.info("installed %s (sha256 %s)", target, hashlib.sha256(data).hexdigest()[:16])


def _same(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False
