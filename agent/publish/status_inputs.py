"""The inputs of the writers of status objects."""

from __future__ import annotations

from dataclasses import dataclass

from agent.cluster.snapshot_cache import SnapshotCache
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.model.node_status import NodeStatus
from agent.runtime.observable import Observable


@dataclass(frozen=True, slots=True)
class StatusInputs:
    """The inputs of the writers of status objects: the cluster and the agent's own node."""

    node: str
    snapshot_cache: SnapshotCache
    status: Observable[NodeStatus]
    attachments: AttachmentStore
