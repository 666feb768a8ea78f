"""BIRD as a node object: it gets its configuration once the devices and addresses that it uses are there."""

from __future__ import annotations

from collections.abc import Callable

from agent.modes.ipip.bird.options import OptionsFile
from agent.modes.ipip.bird.types import BirdConfig
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.state import NodeState


class Bird(NodeObject):
    """What BIRD is told; its routes are by devices and from addresses that are there by then."""

    kind = "bird"
    stage = Stage.DAEMONS

    def __init__(self, want: Callable[[BirdConfig | None], None], options: OptionsFile) -> None:
        self._want = want
        self._options = options

    def wanted(self, desired: NodeState) -> object:
        """Return BIRD's configuration."""
        return desired.section(BirdConfig)

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Tell the supervisor; while the options are unknown, BIRD goes on as an earlier agent left it."""
        if self._options.known or not self._options.stands:
            self._want(desired.section(BirdConfig))
        return Result()
