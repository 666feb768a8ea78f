"""Define the agent's options, but those that belong to one mode: names, defaults, help and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model.marks import ROUTE_PROTOCOL

DATASTORES = "dir:PATH, kubernetes (in a pod) or kubernetes:KUBECONFIG"
DAY = 86400
SECONDS: Mapping[str, tuple[int, int]] = {
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
REGISTERED: Mapping[int, str] = {
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
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `--name`, TESTCNI_NAME and `name` in the config file."""

    name: str
    default: str | None
    help: str
    allowed: str = "text"
    """Its allowed values, in words."""
    choices: tuple[str, ...] = ()
    """Its allowed values, where only these are."""
    never_blank: bool = False
    """Whether it must not be blank: a template with a missing value must not switch off passwords."""

    @property
    def field(self) -> str:
        """Return its name in AgentConfig."""
        return self.name.replace("-", "_")

    @property
    def env(self) -> str:
        """Return its environment variable."""
        return f"TESTCNI_{self.field.upper()}"


def choice(name: str, default: str, text: str, choices: tuple[str, ...]) -> Option:
    """Return an option with the help `text` whose value is one of `choices`."""
    return Option(name, default, text, ", ".join(choices), choices)


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
    choice("log-level", "info", "How much the agent logs.", LEVELS),
)
