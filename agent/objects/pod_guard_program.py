"""The program pod_guard itself: there before any pod, with the UDP ports of tunnels that pods must not send to."""

from __future__ import annotations

from agent.kernel.bpf.syscall import BpfError
from agent.model.problem import Problem
from agent.objects import pod_guard
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.state import NodeState


class PodGuard(NodeObject):
    """The program and what it knows of tunnels; what it knows of pods is of their ports."""

    kind = "guard"
    stage = Stage.GUARDS

    def wanted(self, desired: NodeState) -> object:
        """Return what it guards, and from what."""
        return desired.guards, desired.shut.ports

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Load the program, or unload it. Without it no pod is connected whose sources are to be checked."""
        if not desired.guards:
            ctx.host.bpf.drop(pod_guard.GUARD)
            return Result()
        try:
            held = pod_guard.loaded(ctx.host.bpf)
        except BpfError as error:
            devices = frozenset(device for device, checked in desired.guards if checked)
            what = str(error) if devices else f"{error}: pods may send router advertisements and tunnel packets"
            return Result((Problem("eBPF", what, "see docs/reference/netconf.md, spoofCheck"),), devices)
        ports, changed = desired.shut.ports, False
        if not ctx.still_guarded.tunnel_ports:
            changed = pod_guard.set_tunnels(held.maps, ports)
        return Result(tuple(map(_unguarded, ports[pod_guard.PORTS :])), changed=int(changed))


def _unguarded(port: int) -> Problem:
    known = pod_guard.PORTS
    what = f"pods may send to UDP port {port}, as the program pod_guard knows {known} ports of tunnels"
    return Problem("UDP ports of tunnels", what, "give all networks of one mode the same port")
