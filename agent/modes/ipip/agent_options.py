"""The agent's options that belong to the mode `ipip`."""

from __future__ import annotations

from pathlib import Path

from agent.config import AgentConfig
from agent.options import PATH, Option, choice

DEVICE, EBPF, AUTO = ENCAPSULATORS = ("device", "ebpf", "auto")
ENCAPSULATOR = choice(
    "ipip",
    AUTO,
    "Who encapsulates in the mode ipip: an ipip device, or eBPF programs. auto means the device, and eBPF on a"
    " kernel without ipip devices.",
    ENCAPSULATORS,
)
BGP_FILE = Option(
    "bgp",
    "",
    "A YAML file with AS number, passwords and routers outside, for the mode ipip. Without it the AS number is"
    " 64512, and there are no passwords and no routers outside.",
    PATH,
    never_blank=True,
)
AGENT_OPTIONS = (ENCAPSULATOR, BGP_FILE)


def encapsulator(conf: AgentConfig) -> str:
    """Return what encapsulates packets: one of ENCAPSULATORS."""
    return conf.mode_options[ENCAPSULATOR.name]


def bgp_file(conf: AgentConfig) -> Path | None:
    """Return the file with the BGP options; None: the defaults, and no router outside of the cluster."""
    path = conf.mode_options[BGP_FILE.name]
    return Path(path) if path else None
