"""A container runtime's side of CNI, as libcni does it: where there is no Go, and where a test wants every step.

CNI specification 1.1, sections 3 and 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

Execute = Callable[[str, Mapping[str, str], str], tuple[int, str, str]]
"""Runs a plugin: (path, environment, stdin) to (exit code, stdout, stderr). Raises FileNotFoundError."""

INVALID_CONF, FAILED = 7, 999  # 7: of the spec; 999: libcni's, for what the plugin did not say


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
    check: bool = True
    """False by `disableCheck`."""
    collect: bool = True
    """False by `disableGC`."""

    def since(self, version: str) -> bool:
        """Return whether this conf's version is that one or newer."""
        return _numbers(self.version) >= _numbers(version)


def load(folder: Path, name: str | None = None) -> Conf:
    """The first conf of the folder, or the first of that name; raises LookupError."""
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".conf", ".conflist", ".json")):
        doc = json.loads(path.read_text())
        plugins = doc.get("plugins", [doc])
        if plugins and (name is None or doc.get("name") == name):
            return Conf(
                doc["name"],
                doc.get("cniVersion", "0.1.0"),
                tuple(plugins),
                path,
                check=not doc.get("disableCheck"),
                collect=not doc.get("disableGC"),
            )
    raise LookupError(f"{folder} has no conf{f' named {name}' if name else ''}")


@dataclass(frozen=True)
class Attachment:
    """The input of an ADD and its result. CHECK and DEL get the same input."""

    network: str
    container: str
    ifname: str
    args: str
    capabilities: dict[str, Any]
    result: dict[str, Any]


class Cache:
    """The attachments by (network, container, interface); in files too when there is a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[tuple[str, str, str], Attachment] = {}
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.json"):
                self._hold(Attachment(**json.loads(path.read_text())))

    def get(self, network: str, container: str, ifname: str) -> Attachment | None:
        """The attachment, or None."""
        return self._held.get((network, container, ifname))

    def put(self, attachment: Attachment) -> None:
        """Remember an attachment, whole or not at all."""
        self._hold(attachment)
        if path := self._path(attachment):
            new = path.with_suffix(".new")
            new.write_text(json.dumps(asdict(attachment)))
            new.rename(path)

    def drop(self, attachment: Attachment) -> None:
        """Forget an attachment."""
        self._held.pop((attachment.network, attachment.container, attachment.ifname), None)
        if path := self._path(attachment):
            path.unlink(missing_ok=True)

    def all(self, network: str) -> list[Attachment]:
        """All attachments of a network."""
        return [attachment for attachment in self._held.values() if attachment.network == network]

    def _hold(self, attachment: Attachment) -> None:
        self._held[(attachment.network, attachment.container, attachment.ifname)] = attachment

    def _path(self, one: Attachment) -> Path | None:
        # `:` parts what may not hold one, so no two attachments share a file
        name = ":".join(quote(part, safe="") for part in (one.network, one.container, one.ifname))
        return self._folder / f"{name}.json" if self._folder else None


@dataclass
class Runner:
    """Runs the plugins of confs, found on `paths` as CNI_PATH has them; remembers what it attached."""

    execute: Execute
    paths: str = "/opt/cni/bin"
    cache: Cache = field(default_factory=Cache)

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
        self.cache.put(Attachment(conf.name, container, ifname, args, dict(capabilities or {}), result))
        return result

    def check(self, conf: Conf, container: str, netns: str, ifname: str = "eth0") -> None:
        """CHECK every plugin against the remembered result. Raises RunnerError."""
        if not conf.since("0.4.0"):
            raise RunnerError(conf.name, INVALID_CONF, f"cniVersion {conf.version} has no CHECK")
        if not conf.check:
            return
        known = self.cache.get(conf.name, container, ifname)
        for plugin in conf.plugins:
            self._again(conf, plugin, "CHECK", known, _environment(container, netns, ifname, ""))

    def delete(self, conf: Conf, container: str, netns: str, ifname: str = "eth0", *, args: str = "") -> None:
        """Disconnect a container, the last plugin first. Raises RunnerError, and then still knows it."""
        known = self.cache.get(conf.name, container, ifname)
        for plugin in reversed(conf.plugins):
            self._again(conf, plugin, "DEL", known, _environment(container, netns, ifname, args))
        if known:
            self.cache.drop(known)

    def collect(self, conf: Conf, valid: Iterable[tuple[str, str]]) -> None:
        """GC: all attachments but the valid ones go. Raises RunnerError."""
        if not (conf.collect and conf.since("1.1.0")):
            return
        keep = set(valid)
        attachments = [{"containerID": container, "ifname": ifname} for container, ifname in sorted(keep)]
        for plugin in conf.plugins:
            doc = {**_netconf(conf, plugin, {}, None), "cni.dev/valid-attachments": attachments}
            self._run(plugin["type"], "GC", {}, doc)
        for known in self.cache.all(conf.name):
            if (known.container, known.ifname) not in keep:
                self.cache.drop(known)

    def status(self, conf: Conf) -> None:
        """Raises RunnerError when an ADD would fail; before 1.1.0 nothing can be asked."""
        if conf.since("1.1.0"):
            for plugin in conf.plugins:
                self._run(plugin["type"], "STATUS", {}, _netconf(conf, plugin, {}, None))

    def versions(self, plugin: str) -> list[str]:
        """The CNI versions that a plugin supports."""
        answer = self._result(plugin, "VERSION", {}, {"cniVersion": "1.1.0"})
        return [str(version) for version in answer["supportedVersions"]]

    def _again(
        self,
        conf: Conf,
        plugin: Mapping[str, Any],
        command: str,
        known: Attachment | None,
        environment: dict[str, str],
    ) -> None:
        """Run a plugin on what an ADD made, with the ADD's arguments, capabilities and result."""
        if known:
            environment["CNI_ARGS"] = environment["CNI_ARGS"] or known.args
        result = known.result if known and conf.since("0.4.0") else None
        doc = _netconf(conf, plugin, known.capabilities if known else {}, result)
        self._run(plugin["type"], command, environment, doc)

    def _result(self, plugin: str, command: str, environment: Mapping[str, str], doc: object) -> dict[str, Any]:
        answer = self._run(plugin, command, environment, doc)
        if answer is None:
            raise RunnerError(plugin, FAILED, f"{command} printed no result")
        return answer

    def _run(
        self, plugin: str, command: str, environment: Mapping[str, str], doc: object
    ) -> dict[str, Any] | None:
        everything = {"CNI_COMMAND": command, "CNI_PATH": self.paths, **environment}
        code, out, err = self._find_and_execute(plugin, everything, json.dumps(doc))
        try:
            answer = json.loads(out) if out.strip() else None
        except ValueError:
            raise RunnerError(
                plugin, FAILED, f"{command} printed something else than one JSON document: {out!r}", err.strip()
            ) from None
        if answer is not None and not isinstance(answer, dict):
            raise RunnerError(plugin, FAILED, f"{command} printed no object: {out!r}")
        if code:
            told = answer or {}
            msg = told.get("msg", f"{command} failed with exit code {code}")
            raise RunnerError(plugin, told.get("code", FAILED), msg, told.get("details", err.strip()))
        return answer

    def _find_and_execute(self, plugin: str, environment: Mapping[str, str], stdin: str) -> tuple[int, str, str]:
        for folder in filter(None, self.paths.split(":")):
            try:
                return self.execute(f"{folder.rstrip('/')}/{plugin}", environment, stdin)
            except FileNotFoundError:
                continue
        raise RunnerError(plugin, FAILED, f"is not in {self.paths}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


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
