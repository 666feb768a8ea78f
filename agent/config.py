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
from agent.model.marks import ROUTE_PROTOCOL
from agent.runtime import atomic_file

DATASTORES = "dir:PATH, kubernetes (in a pod) or kubernetes:KUBECONFIG"
IPIP = ("device", "ebpf", "auto")
DAY = 86400
SECONDS = {
    "cool_down": (0, 3600),
    "keep_address": (0, 365 * DAY),
    "resync": (1, 3600),
    "block_idle": (1, 30 * DAY),
    "node_gone": (1, 30 * DAY),
}
"""Options that are seconds, and their limits."""
MOST_RESERVATIONS = 1_000_000
ROUTE_PROTOCOLS = range(5, 255)
"""Protocol numbers of routes without a meaning in the kernel, which uses those below 5 (rtnetlink(7))."""
REGISTERED = {
    **dict(enumerate(("gated", "ra", "mrt", "zebra", "bird", "dnrouted", "xorp", "ntk", "dhcp", "mrouted"), 8)),
    18: "keepalived",
    42: "babel",
    80: "Calico",
    99: "openr",
    **dict(enumerate(("bgp", "isis", "ospf", "rip", "ripng", "nhrp", "eigrp", "ldp", "sharp", "pbr"), 186)),
    196: "FRR's static routes",
    197: "openfabric",
    198: "srte",
}
"""Numbers of other programs: linux/rtnetlink.h, iproute2's rt_protos, FRR's zebra/rt_netlink.h, Calico's Felix.

84 is OVN's, but was also testcni's in earlier versions; it is allowed for a downgrade to them.
"""
NEVER_BLANK = ("bgp",)
"""Options that must not be blank: a template with a missing value must not switch off passwords."""
LEVELS = ("debug", "info", "warning", "error")


class ConfigError(ValueError):
    """An option is wrong: which one, where it was set, what is allowed."""


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
    ipip: str
    """What encapsulates packets in the mode ipip: a device, eBPF, or what the kernel has."""
    bgp: Path | None
    """The file with the BGP configuration; None: AS 64512, and no router outside of the cluster."""
    cool_down: float
    pod_annotations: bool
    """Whether the annotations of pods are read, which costs each ADD a request to the datastore."""
    keep_address: float
    """How many seconds a reservation is kept after its pod is deleted."""
    namespace_reservations: int
    """How many reservations a namespace may have."""
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

    @property
    def socket(self) -> Path:
        """Return the path of the socket that the plugin connects to."""
        return self.run_dir / "agent.sock"


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `--name`, TESTCNI_NAME and `name` in the config file."""

    name: str
    default: str | None
    help: str
    allowed: str = "text"
    """Its allowed values, in words."""

    @property
    def field(self) -> str:
        """Return its name in AgentConfig."""
        return self.name.replace("-", "_")

    @property
    def env(self) -> str:
        """Return its environment variable."""
        return f"TESTCNI_{self.field.upper()}"


def _range(limits: tuple[float, float], unit: str = "seconds") -> str:
    return f"{limits[0]} to {limits[1]} {unit}".strip()


PATH = "an absolute path"
OPTIONS = (
    Option("node", None, "The name of this node's Node object. The default is the host name in small letters."),
    Option("datastore", None, "Where Node, IPPool, IPBlock and IPReservation objects are. Required.", DATASTORES),
    Option(
        "conf-dir",
        "/etc/cni/net.d",
        "The runtime's folder of confs. The agent prepares the networks of type testcni in it.",
        PATH,
    ),
    Option(
        "run-dir",
        "/run/testcni",
        "The folder of the socket and of the attachments. It must be a tmpfs, so that it is empty after a reboot.",
        PATH,
    ),
    Option(
        "state-dir",
        "/var/lib/testcni",
        "The folder of the journal of DELs. It must be on a disk, so that it is kept over a reboot.",
        PATH,
    ),
    Option(
        "sysctl-dir",
        "/proc/sys/net",
        "The kernel's network switches. A container has to mount those of the host, as it cannot write its own.",
        PATH,
    ),
    Option(
        "conflist",
        "",
        "A conflist that the agent installs into conf-dir as 05-testcni.conflist when the node is ready."
        " Without it the agent installs nothing on the host.",
        PATH,
    ),
    Option("bundle", "/opt/testcni/bin", "The folder of the plugins that the agent installs with conflist.", PATH),
    Option("bin-dir", "/opt/cni/bin", "The runtime's folder of plugins.", PATH),
    Option("ebpf", "/opt/testcni/ebpf", "The folder of the eBPF objects.", PATH),
    Option(
        "ipip",
        "auto",
        "Who encapsulates in the mode ipip: an ipip device, or eBPF programs. auto means the device, and eBPF on a"
        " kernel without ipip devices.",
        ", ".join(IPIP),
    ),
    Option(
        "bgp",
        "",
        "A YAML file with AS number, passwords and routers outside, for the mode ipip. Without it the AS number is"
        " 64512, and there are no passwords and no routers outside.",
        PATH,
    ),
    Option(
        "cool-down",
        "10",
        "How many seconds after its release an address can be given to another pod.",
        _range(SECONDS["cool_down"]),
    ),
    Option(
        "pod-annotations",
        "off",
        "Whether pods may ask for addresses by the annotations testcni.io/ip, sticky and pool. Each ADD then needs"
        " an answer of the API server.",
        "on, off",
    ),
    Option(
        "keep-address",
        "3600",
        "How many seconds after its pod is gone a reserved address is kept for its owner.",
        _range(SECONDS["keep_address"]),
    ),
    Option(
        "namespace-reservations",
        "100",
        "How many reserved addresses a namespace may have. More are refused.",
        _range((0, MOST_RESERVATIONS), ""),
    ),
    Option(
        "resync",
        "30",
        "How many seconds pass between two comparisons of all node state with the kernel.",
        _range(SECONDS["resync"]),
    ),
    Option(
        "block-idle",
        "300",
        "How many seconds a claimed block is unused before the node gives it back. The last block stays.",
        _range(SECONDS["block_idle"]),
    ),
    Option(
        "node-gone",
        "900",
        "How many seconds a node is without its Node object before other nodes may take its blocks, if no other"
        " block is left.",
        _range(SECONDS["node_gone"]),
    ),
    Option(
        "listen",
        "127.0.0.1:9480",
        "The address and port of metrics and health.",
        "ADDRESS:PORT, [IPV6 ADDRESS]:PORT, off",
    ),
    Option(
        "route-protocol",
        str(ROUTE_PROTOCOL),
        "The protocol number by which the agent knows its routes. Choose another one if another program on the"
        " node uses this one.",
        f"{ROUTE_PROTOCOLS[0]} to {ROUTE_PROTOCOLS[-1]}, without the numbers of known programs",
    ),
    Option("log-level", "info", "How much the agent logs.", ", ".join(LEVELS)),
)


def load(argv: Sequence[str], environ: Mapping[str, str]) -> AgentConfig:
    """Return the options. Raises ConfigError, or SystemExit for --help and unknown flags."""
    parser = argparse.ArgumentParser(
        prog="testcni-agent",
        description="The node agent of testcni: serves the CNI plugin and programs the routes to peers.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"testcni {__version__}")
    parser.add_argument("--config", metavar="FILE", help="YAML file of options [TESTCNI_CONFIG]")
    for option in OPTIONS:
        default = f", default: {option.default}" if option.default else ""
        text = f"{option.help} ({option.allowed}{default}) [{option.env}]"
        parser.add_argument(f"--{option.name}", dest=option.field, metavar="X", help=text.replace("%", "%%"))
    flags = vars(parser.parse_args(argv))
    path = flags.pop("config") or environ.get("TESTCNI_CONFIG")
    from_file = _read_file(Path(path)) if path else {}
    chosen: dict[str, tuple[str, str]] = {}
    for option in OPTIONS:
        candidates = (
            (flags[option.field], f"--{option.name}"),
            (environ.get(option.env), option.env),
            (from_file.get(option.name), f"{path}: {option.name}"),
            (option.default, "default"),
        )
        if option.name in NEVER_BLANK:
            _refuse_blank(candidates)
        chosen[option.field] = next(((v, w) for v, w in candidates if v), ("", f"--{option.name}"))
    return _build(chosen)


def _refuse_blank(candidates: Sequence[tuple[str | None, str]]) -> None:
    """Check an option that must not be blank in any place where it is set. Raises ConfigError."""
    for value, where in candidates:
        if value is not None and not value.strip() and where != "default":
            raise ConfigError(f"{where}: is blank; give it a value, or remove the option for its default")


def _read_file(path: Path) -> dict[str, str]:
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
    known = {option.name for option in OPTIONS}
    for name, value in doc.items():
        if name not in known:
            raise ConfigError(f"config file {path}: unknown option {name!r}; known: {', '.join(sorted(known))}")
        if not isinstance(value, str | int | float | None):
            raise ConfigError(f"config file {path}: {name} is a {type(value).__name__}, not one plain value")
    given = {name: value for name, value in doc.items() if value is not None or name in NEVER_BLANK}
    return {name: "" if value is None else str(value) for name, value in given.items()}


def _build(chosen: Mapping[str, tuple[str, str]]) -> AgentConfig:
    values: dict[str, Any] = {name: value for name, (value, _where) in chosen.items()}
    values["node"] = values["node"] or os.uname().nodename.lower()
    kind, colon, path = values["datastore"].partition(":")
    if kind not in ("dir", "kubernetes") or bool(path) != bool(colon) or (kind == "dir" and not path):
        raise ConfigError(f"{chosen['datastore'][1]}: {values['datastore']!r} is none; give {DATASTORES}")
    for name in ("conf_dir", "run_dir", "state_dir", "sysctl_dir", "bundle", "bin_dir", "ebpf", "conflist", "bgp"):
        values[name] = Path(values[name]) if values[name] else None
        if values[name] and not values[name].is_absolute():
            raise ConfigError(f"{chosen[name][1]}: {values[name]} must be an absolute path")
    for name, (low, high) in SECONDS.items():
        values[name] = _seconds(*chosen[name], low, high)
    values["namespace_reservations"] = _count(*chosen["namespace_reservations"], MOST_RESERVATIONS)
    values["pod_annotations"] = _switch(*chosen["pod_annotations"])
    values["listen"] = _listen(*chosen["listen"])
    values["route_protocol"] = _route_protocol(*chosen["route_protocol"])
    for name, allowed in (("log_level", LEVELS), ("ipip", IPIP)):
        if values[name] not in allowed:
            raise ConfigError(f"{chosen[name][1]}: {values[name]!r} is none of {', '.join(allowed)}")
    return AgentConfig(**{f.name: values[f.name] for f in fields(AgentConfig)})


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
