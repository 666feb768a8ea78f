"""Read the agent's options from flags, environment and config file, in this order of precedence."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from agent import __version__
from agent.codec import strict_yaml
from agent.codec.strict_yaml import YamlError
from agent.options import (
    DATASTORES,
    MOST_RESERVATIONS,
    OPTIONS,
    PATH,
    REGISTERED,
    ROUTE_PROTOCOLS,
    SECONDS,
    Option,
)
from agent.runtime import atomic_file


class ConfigError(ValueError):
    """An option is wrong: which one, where it was set, what is allowed."""


@dataclass(frozen=True, slots=True)
class GraceTimes:
    """Seconds for which a node keeps what it no longer needs. No option sets them; tests choose shorter ones."""

    mode: float = 15.0
    """The time from the withdrawal of a mode to its removal, so that peers read the withdrawal first."""
    daemon: float = 5.0
    """The time that a daemon runs on when its mode no longer wants it: a restart may want it again at once."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The agent's options."""

    node: str
    datastore: str
    conf_dir: Path
    run_dir: Path
    state_dir: Path
    sysctl_dir: Path
    bundle: Path
    bin_dir: Path
    ebpf: Path
    conflist: Path | None
    """The conflist to install; None: install nothing on the host."""
    cool_down: float
    pod_annotations: bool
    """Whether the annotations of pods are read, which costs each ADD a request to the datastore."""
    keep_address: float
    """The seconds for which a reservation is kept after its pod is deleted."""
    namespace_reservations: int
    """The number of reservations that a namespace may have."""
    resync: float
    block_idle: float
    """Seconds without use after which a claimed block is released to its pool."""
    node_gone: float
    """Seconds without its Node object after which a node's blocks may be claimed."""
    listen: tuple[str, int] | None
    """Address and port of metrics and health; None: there are none."""
    route_protocol: int
    """The protocol number of the agent's routes."""
    log_level: str
    mode_options: Mapping[str, str]
    """The options that belong to one mode, by their names; empty text for one that is not set."""
    grace: GraceTimes = GraceTimes()

    @property
    def socket(self) -> Path:
        """Return the path of the socket that the plugin connects to."""
        return self.run_dir / "agent.sock"


def load(argv: Sequence[str], environ: Mapping[str, str], mode_options: Sequence[Option]) -> AgentConfig:
    """Return the options; `mode_options` are those that the modes add.

    Raises ConfigError, or SystemExit for --help and unknown flags.
    """
    options = (*OPTIONS, *mode_options)
    parser = argparse.ArgumentParser(
        prog="testcni-agent",
        description="The node agent of testcni: serves the CNI plugin and programs the routes to peers.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"testcni {__version__}")
    parser.add_argument("--config", metavar="FILE", help="YAML file of options [TESTCNI_CONFIG]")
    for option in options:
        default = f", default: {option.default}" if option.default else ""
        text = f"{option.help} ({option.allowed}{default}) [{option.env}]"
        parser.add_argument(f"--{option.name}", dest=option.field, metavar="X", help=text.replace("%", "%%"))
    flags = vars(parser.parse_args(argv))
    path = flags.pop("config") or environ.get("TESTCNI_CONFIG")
    from_file = _read_file(Path(path), options) if path else {}
    chosen: dict[str, tuple[str, str]] = {}
    for option in options:
        candidates = (
            (flags[option.field], f"--{option.name}"),
            (environ.get(option.env), option.env),
            (from_file.get(option.name), f"{path}: {option.name}"),
            (option.default, "default"),
        )
        if option.never_blank:
            _refuse_blank(candidates)
        chosen[option.field] = next(((v, w) for v, w in candidates if v), ("", f"--{option.name}"))
    return _build(chosen, options)


def _refuse_blank(candidates: Sequence[tuple[str | None, str]]) -> None:
    """Check an option that must not be blank in any place where it is set. Raises ConfigError."""
    for value, where in candidates:
        if value is not None and not value.strip() and where != "default":
            raise ConfigError(f"{where}: is blank; give it a value, or remove the option for its default")


def _read_file(path: Path, options: Sequence[Option]) -> dict[str, str]:
    """Return the options of the file; one without a value is ignored, or empty if it must not be blank."""
    try:
        doc = strict_yaml.value(atomic_file.read(path))
    except (OSError, YamlError) as error:
        raise ConfigError(f"config file {path}: {error}") from error
    if doc is None:
        raise ConfigError(
            f"config file {path}: is empty; for no options write {{}} into it, or do without --config"
        )
    if not isinstance(doc, dict):
        raise ConfigError(f"config file {path}: a mapping of options is wanted, not a {type(doc).__name__}")
    known = {option.name: option for option in options}
    for name, value in doc.items():
        if name not in known:
            raise ConfigError(f"config file {path}: unknown option {name!r}; known: {', '.join(sorted(known))}")
        if not isinstance(value, str | int | float | None):
            raise ConfigError(f"config file {path}: {name} is a {type(value).__name__}, not one plain value")
    given = {name: value for name, value in doc.items() if value is not None or known[name].never_blank}
    return {name: "" if value is None else str(value) for name, value in given.items()}


def _build(chosen: Mapping[str, tuple[str, str]], options: Sequence[Option]) -> AgentConfig:
    values: dict[str, Any] = {name: value for name, (value, _where) in chosen.items()}
    values["node"] = values["node"] or os.uname().nodename.lower()
    kind, colon, path = values["datastore"].partition(":")
    if kind not in ("dir", "kubernetes") or bool(path) != bool(colon) or (kind == "dir" and not path):
        raise ConfigError(f"{chosen['datastore'][1]}: {values['datastore']!r} is no datastore; give {DATASTORES}")
    for option in options:
        value, where = chosen[option.field]
        if option.allowed == PATH:
            values[option.field] = _path(value, where)
        if option.choices and value not in option.choices:
            raise ConfigError(f"{where}: {value!r} is none of {', '.join(option.choices)}")
    for name, (low, high) in SECONDS.items():
        values[name] = _seconds(*chosen[name], low, high)
    values["namespace_reservations"] = _count(*chosen["namespace_reservations"], MOST_RESERVATIONS)
    values["pod_annotations"] = _switch(*chosen["pod_annotations"])
    values["listen"] = _listen(*chosen["listen"])
    values["route_protocol"] = _route_protocol(*chosen["route_protocol"])
    own = {option.field for option in OPTIONS}
    values["mode_options"] = {o.name: chosen[o.field][0] for o in options if o.field not in own}
    return AgentConfig(**{f.name: values[f.name] for f in fields(AgentConfig) if f.name in values})


def _path(text: str, where: str) -> Path | None:
    if text and not Path(text).is_absolute():
        raise ConfigError(f"{where}: {text} must be an absolute path")
    return Path(text) if text else None


def _switch(text: str, where: str) -> bool:
    if text.lower() in ("on", "off", "true", "false"):  # YAML says true for on
        return text.lower() in ("on", "true")
    raise ConfigError(f"{where}: {text!r} is none of on, off")


def _listen(text: str, where: str) -> tuple[str, int] | None:
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host[1:-1] if host[:1] + host[-1:] == "[]" else host)
        if 1 <= int(port) <= 65535:
            return str(address), int(port)
    except ValueError:
        pass
    raise ConfigError(f"{where}: {text!r} must be an address and a port, as 0.0.0.0:9480 or [::]:9480, or off")


def _route_protocol(text: str, where: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else -1
    if number not in ROUTE_PROTOCOLS:
        allowed = f"a number from {ROUTE_PROTOCOLS[0]} to {ROUTE_PROTOCOLS[-1]}"
        raise ConfigError(f"{where}: {text!r} must be {allowed} that no other program uses for its routes")
    if number in REGISTERED:
        raise ConfigError(f"{where}: {number} is the protocol number of {REGISTERED[number]}; choose another")
    return number


def _count(text: str, where: str, most: int) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(most)) else -1
    if not 0 <= number <= most:
        raise ConfigError(f"{where}: {text!r} must be a whole number from 0 to {most}")
    return number


def _seconds(text: str, where: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not low <= value <= high:
        raise ConfigError(f"{where}: {text!r} must be a number of seconds from {low} to {high}")
    return value
