"""A container runtime's side of CNI, as libcni does it: where there is no Go, and where a test wants every step.

CNI specification 1.1, sections 3 and 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Execute = Callable[[str, Mapping[str, str], str], tuple[int, str, str]]
"""Runs a plugin: (path, environment, stdin) to (exit code, stdout, stderr)."""


class RunnerError(Exception):
    """A plugin's error, or an answer that is none."""

    def __init__(self, plugin: str, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{plugin}: {msg} (code {code}){': ' + details if details else ''}")
        self.plugin = plugin
        self.code = code
        self.msg = msg
        self.details = details


@dataclass(frozen=True)
class Conf:
    """A network configuration: its name, version and the netconfs of its plugins."""

    name: str
    version: str
    plugins: tuple[dict[str, Any], ...]
    path: Path


def load(folder: Path, name: str | None = None) -> Conf:
    """The first conf of the folder, or the first of that name; raises LookupError."""
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".conf", ".conflist", ".json")):
        doc = json.loads(path.read_text())
        plugins = doc.get("plugins", [doc])
        if plugins and (name is None or doc.get("name") == name):
            return Conf(doc["name"], doc.get("cniVersion", "0.1.0"), tuple(plugins), path)
    raise LookupError(f"{folder} has no conf{f' named {name}' if name else ''}")


@dataclass
class Runner:
    """Runs the plugins of confs; remembers each attachment's result for CHECK and DEL as libcni's cache does."""

    execute: Execute
    paths: str = "/opt/cni/bin"
    cache: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)

    def add(
        self,
        conf: Conf,
        container: str,
        netns: str,
        ifname: str = "eth0",
        *,
        args: str = "",
        capabilities: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Connect a container; the last plugin's result. Raises RunnerError."""
        environment = _environment(container, netns, ifname, args)
        result: dict[str, Any] | None = None
        for plugin in conf.plugins:
            doc = _netconf(conf, plugin, capabilities or {}, result)
            result = self._result(plugin["type"], "ADD", environment, doc)
        assert result is not None
        self.cache[(conf.name, container, ifname)] = result
        return result

    def check(self, conf: Conf, container: str, netns: str, ifname: str = "eth0") -> None:
        """CHECK every plugin against the remembered result. Raises RunnerError."""
        result = self.cache.get((conf.name, container, ifname))
        for plugin in conf.plugins:
            self._run(
                plugin["type"],
                "CHECK",
                _environment(container, netns, ifname, ""),
                _netconf(conf, plugin, {}, result),
            )

    def delete(self, conf: Conf, container: str, netns: str, ifname: str = "eth0", *, args: str = "") -> None:
        """Disconnect a container, the last plugin first. Raises RunnerError."""
        result = self.cache.get((conf.name, container, ifname)) if conf.version >= "0.4.0" else None
        for plugin in reversed(conf.plugins):
            doc = _netconf(conf, plugin, {}, result)
            self._run(plugin["type"], "DEL", _environment(container, netns, ifname, args), doc)
        self.cache.pop((conf.name, container, ifname), None)

    def collect(self, conf: Conf, valid: Iterable[tuple[str, str]]) -> None:
        """GC: all attachments but the valid ones go. Raises RunnerError."""
        attachments = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        for plugin in conf.plugins:
            doc = {**_netconf(conf, plugin, {}, None), "cni.dev/valid-attachments": attachments}
            self._run(plugin["type"], "GC", {}, doc)

    def status(self, conf: Conf) -> None:
        """Raises RunnerError when an ADD would fail."""
        for plugin in conf.plugins:
            self._run(plugin["type"], "STATUS", {}, _netconf(conf, plugin, {}, None))

    def versions(self, plugin: str) -> list[str]:
        """The CNI versions that a plugin supports."""
        answer = self._result(plugin, "VERSION", {}, {"cniVersion": "1.1.0"})
        return [str(version) for version in answer["supportedVersions"]]

    def _result(self, plugin: str, command: str, environment: Mapping[str, str], doc: object) -> dict[str, Any]:
        answer = self._run(plugin, command, environment, doc)
        if answer is None:
            raise RunnerError(plugin, 999, f"{command} printed no result")
        return answer

    def _run(
        self, plugin: str, command: str, environment: Mapping[str, str], doc: object
    ) -> dict[str, Any] | None:
        path = f"{self.paths.rstrip('/')}/{plugin}"
        everything = {"CNI_COMMAND": command, "CNI_PATH": self.paths, **environment}
        code, out, err = self.execute(path, everything, json.dumps(doc))
        try:
            answer = json.loads(out) if out.strip() else None
        except ValueError:
            raise RunnerError(plugin, 999, f"{command} printed no JSON: {out!r}", err.strip()) from None
        if code:
            told = answer or {}
            msg = told.get("msg", f"{command} failed with exit code {code}")
            raise RunnerError(plugin, told.get("code", 999), msg, told.get("details", err.strip()))
        if answer is not None and not isinstance(answer, dict):
            raise RunnerError(plugin, 999, f"{command} printed no object: {out!r}")
        return answer


def _environment(container: str, netns: str, ifname: str, args: str) -> dict[str, str]:
    return {"CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname, "CNI_ARGS": args}


def _netconf(
    conf: Conf, plugin: Mapping[str, Any], capabilities: Mapping[str, Any], result: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The netconf of one plugin as it gets it on stdin."""
    doc = {**plugin, "name": conf.name, "cniVersion": conf.version}
    asked = {
        name: capabilities[name]
        for name, on in plugin.get("capabilities", {}).items()
        if on and name in capabilities
    }
    doc.pop("capabilities", None)
    if asked:
        doc["runtimeConfig"] = asked
    if result is not None:
        doc["prevResult"] = result
    return doc
