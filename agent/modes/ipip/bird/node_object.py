"""BIRD as a node object: it gets its configuration once the devices and addresses that it uses are there."""

from __future__ import annotations

from collections.abc import Callable

from agent.modes.ipip.bird.options import OptionsFile
from agent.modes.ipip.bird.plan import BirdPlan
from agent.modes.ipip.bird.types import BirdConfig
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.state import NodeState


class Bird(NodeObject):
    """BIRD's configuration. It comes last, because BIRD's routes need the devices and addresses."""

    kind = "bird"
    stage = Stage.DAEMONS

    def __init__(self, want: Callable[[BirdConfig | None], None], options: OptionsFile) -> None:
        """`want` takes the configuration, None for no BIRD."""
        self._want = want
        self._options = options

    def wanted(self, desired: NodeState) -> object:
        """Return BIRD's part of the desired state."""
        return desired.section(BirdPlan)

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Give BIRD its configuration, and report faults of the options file.

        While the options are unknown, no session begins, as they may ask for passwords. A BIRD that an earlier
        agent started with the same file goes on.
        """
        options, faults = self._options.look()
        plan = desired.section(BirdPlan)
        if options and plan:
            config, more = plan.with_options(options)
            self._want(config)
            return Result((*faults, *more))
        if options or not self._options.stands:
            self._want(None)
        return Result(faults)
