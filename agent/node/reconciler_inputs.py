"""The inputs of the node path, and the parts that it reads them from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agent.config import GraceTimes
from agent.host.cni_conf_dir import Confs
from agent.ip import Address
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.block_claims.idle_blocks import BLOCK_IDLE
from agent.model.cluster import Snapshot
from agent.model.marks import ROUTE_PROTOCOL
from agent.model.node_status import Demand
from agent.model.problem_board import ProblemBoard
from agent.modes.registry import Modes
from agent.node.route_protocol import RouteMarks
from agent.objects.base import NodeObject
from agent.objects.host_kernel import HostKernel
from agent.runtime.controller import Source
from agent.runtime.observable import Observable


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of the node path, and the parts that it reads them from."""

    snapshot: Observable[Snapshot]
    confs: Observable[Confs]
    demand: Observable[Demand]
    attachments: AttachmentStore
    board: ProblemBoard
    """The problems of all other parts."""
    host: HostKernel
    modes: Modes
    prepared: Path | None = None
    """The file of what is prepared for pods; None: it is forgotten at a restart."""
    resume: bool = True
    """Whether pods may get addresses by that file before the datastore has been read."""
    objects: tuple[NodeObject, ...] = ()
    """The node objects, except ports of pods; empty: those of the modes."""
    wake_on: tuple[Source, ...] = ()
    """The sources that these objects read beside the desired state: a change begins a round."""
    nodes: Path | None = None
    """The file of what Nodes said last; None: it is forgotten at a restart."""
    block_idle: float = BLOCK_IDLE
    """Seconds without use after which a claimed block goes back to its pool."""
    mode_grace: float = GraceTimes().mode
    """Seconds from the withdrawal of a mode to its removal."""
    servers: frozenset[Address] = frozenset()
    """The addresses by which the agent reaches the API server."""
    marks: RouteMarks = field(default_factory=lambda: RouteMarks(None, ROUTE_PROTOCOL))
    """The protocol numbers by which the node's routes are known."""
