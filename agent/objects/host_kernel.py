"""The node's kernel as one agent uses it, as a value: `app` makes it from the options, and all parts share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agent.kernel.bpf.loader import Loader
from agent.kernel.link_operations import Reaper
from agent.model.marks import ROUTE_PROTOCOL


@dataclass(frozen=True, slots=True)
class HostKernel:
    """All that an agent must know to use the node's kernel, and what it keeps for that."""

    bpf: Loader
    """The eBPF programs and maps of this node."""
    sysctls: Path = Path("/proc/sys/net")
    """The directory of the network sysctls; elsewhere in a container."""
    pod_routes: int = ROUTE_PROTOCOL
    """The protocol number of the routes to single pods."""
    reaper: Reaper = field(default_factory=Reaper)
    """Deletes links and closes sockets without a wait for the kernel's RCU grace periods."""
