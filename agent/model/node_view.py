"""The values that most parts of an agent follow: snapshot and status of the node."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model.cluster import Snapshot
from agent.model.node_status import NodeStatus
from agent.runtime.observable import Observable


@dataclass(frozen=True, slots=True)
class NodeView:
    """The cluster as the agent knows it, and the state of the agent's own node."""

    node: str
    """The name of the agent's own node."""
    snapshot: Observable[Snapshot]
    status: Observable[NodeStatus]
