"""The interfaces of the node that pods of macvlan and ipvlan depend on."""

from __future__ import annotations

from agent.model.problem import Problem
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.state import NodeState


class ParentLinks(NodeObject):
    """Parents are not ours: they are there and up, or no pod can depend on them."""

    kind = "parents"
    stage = Stage.GUARDS

    def wanted(self, desired: NodeState) -> object:
        """Return nothing: it changes nothing."""
        return ()

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Report parents that are missing or down."""
        there = {link.name: link.up for link in ctx.kernel.links}
        parents = sorted({uplink.device for uplink in desired.uplinks})
        unready = [device for device in parents if not there.get(device)]
        problems = (_problem(device, is_there=device in there) for device in unready)
        return Result(tuple(problems), frozenset(unready))


def _problem(device: str, *, is_there: bool) -> Problem:
    what = "is down" if is_there else "is not there"
    remedy = f"ip link set {device} up" if is_there else "name another by `master` in the netconf"
    return Problem(f"interface {device}", what, remedy)
