"""The networks that the runtime's conf folder names, so that a node is ready before its first pod."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import netconf
from agent.cluster.inotify import FolderWatch
from agent.errors import CniError, invalid_config
from agent.model import Network, Problem
from agent.shared import Latest

PLUGIN = "testcni"
SUFFIXES = (".conf", ".conflist", ".json")  # those that libcni loads
LOOK_AGAIN = 30.0  # seconds, should a change ever be missed


@dataclass(frozen=True, slots=True)
class Confs:
    """The networks of type testcni in the conf folder, and which files are wrong."""

    networks: frozenset[Network] = frozenset()
    problems: tuple[Problem, ...] = ()
    chosen: Mapping[str, Network] = field(default_factory=dict)
    """Of several confs of one name the first: the one that is to be installed, where there is one."""


def read(folder: Path, template: Path | None = None) -> Confs:
    """What is in the folder now, and in the conflist that is to be installed there."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    except FileNotFoundError:
        paths = []
    except OSError as error:
        return Confs(problems=(Problem(str(folder), str(error), "give the agent leave to read it"),))
    found = [read_file(path) for path in ([template, *paths] if template else paths)]
    return Confs(
        frozenset(network for confs in found for network in confs.networks),
        tuple(problem for confs in found for problem in confs.problems),
        {name: network for confs in reversed(found) for name, network in confs.chosen.items()},
    )


def read_file(path: Path) -> Confs:
    """The networks of one file; one that does not mention us has none, whatever else it holds."""
    try:
        data = path.read_bytes()
        if PLUGIN.encode() not in data:  # other plugins' files are not ours to judge
            return Confs()
        return of(data)
    except FileNotFoundError:
        return Confs()  # it went while we looked
    except (CniError, OSError) as error:
        return Confs(problems=(Problem(str(path), str(error), "mend or remove the file"),))


def of(data: bytes) -> Confs:
    """The networks of a file's content. Raises CniError."""
    networks = [netconf.parse(doc).network for doc in plugins(netconf.parse_json(data))]
    return Confs(frozenset(networks), chosen={network.name: network for network in reversed(networks)})


def entries(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """What a .conf or a .conflist says of each plugin; raises CniError 7."""
    found = doc.get("plugins", [doc])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise invalid_config("plugins", found, "a list of JSON objects")
    return found


def plugins(doc: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The netconfs of type testcni of a .conf or a .conflist; raises CniError 7."""
    inherited: dict[str, Any] = {key: doc[key] for key in ("name", "cniVersion") if key in doc}
    for entry in entries(doc):
        if entry.get("type") == PLUGIN:
            yield {**entry, **inherited}


class ConfFolder:
    """Follows the conf folder."""

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.found: Latest[Confs] = Latest(read(folder, template))
        self._folder = folder
        self._template = template

    def run(self, stop: threading.Event) -> None:
        """Publish what the folder names, after every change, until `stop` is set. Raises OSError."""
        with closing(FolderWatch(self._folder)) as watch:
            while not stop.is_set():
                self.found.publish(read(self._folder, self._template))
                watch.wait(stop, LOOK_AGAIN)
