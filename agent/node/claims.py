"""Claims of blocks: creating an IPBlock is the claim, and a conflict means that another node was first."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

import tenacity

from agent.cluster.store import ConflictError, Datastore, StoreError
from agent.ipam import blocks
from agent.model import IPBlock, Network, Problem, Snapshot, Subnet
from agent.shared import Latest

SEEN_WITHIN = 30.0  # seconds after which a claimed block that no list shows counts as taken away
TRIES = 4  # of one StoreError, 0.2 s to 2 s apart, before it is told and tried again later
AGAIN = 5.0  # seconds

log = logging.getLogger(__name__)


class NoBlockError(Exception):
    """No block is left, or none may be claimed; says why."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def claim(store: Datastore, snapshot: Snapshot, network: Network, node: str) -> IPBlock:
    """A block that is this node's from now on. Raises NoBlockError, StoreError."""
    create = tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda e: isinstance(e, StoreError) and not isinstance(e, ConflictError)
        ),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
        stop=tenacity.stop_after_attempt(TRIES),
        reraise=True,
    )
    for candidate in blocks.candidates(snapshot, network, node):
        try:
            create(store.create, candidate)
        except ConflictError:
            continue
        log.info("claimed block %s of pool %s for network %s", candidate.cidr, candidate.pool, network.name)
        return candidate
    pools = blocks.pools(snapshot, network)
    if not pools:
        raise NoBlockError(
            "neither podCIDR nor IPPool gives this node addresses",
            "let the cluster allocate podCIDRs, create an IPPool, or set `subnet` in the netconf",
        )
    names = ", ".join(f"{pool.name} ({pool.cidr})" for pool in pools)
    raise NoBlockError(f"no block is left in {names}", "add an IPPool, or delete IPBlocks of nodes that are gone")


class Claimer:
    """Claims blocks for the networks that need more than this node has; alone in its thread, as stores hang."""

    def __init__(self, store: Datastore, node: str, snapshot: Latest[Snapshot]) -> None:
        self.problems: Latest[Mapping[str, Problem]] = Latest({})
        self._store = store
        self._node = node
        self._snapshot = snapshot
        self._wanted: Mapping[Network, int] = {}
        self._pending: dict[Subnet, tuple[IPBlock, float]] = {}
        self._wake = threading.Event()
        snapshot.listen(self._wake.set)

    def want(self, wanted: Mapping[Network, int]) -> None:
        """How many blocks each network should have."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake.set()

    def pending(self) -> tuple[IPBlock, ...]:
        """Blocks that were claimed but are in no list yet."""
        return tuple(block for block, _since in tuple(self._pending.values()))

    def run(self, stop: threading.Event) -> None:
        """Claim what is wanted until `stop` is set."""
        while not stop.is_set():
            self._wake.wait(AGAIN)
            self._wake.clear()
            snapshot = self._snapshot.get()
            if not snapshot.synced:
                continue
            problems = {}
            for network, count in dict(self._wanted).items():
                try:
                    self._claim_up_to(count, network)
                except NoBlockError as error:
                    problems[network.name] = Problem(f"network {network.name}", str(error), error.remedy)
                except StoreError as error:
                    what = f"a block can't be claimed: {error}"
                    problems[network.name] = Problem(f"network {network.name}", what, "see the datastore")
            self.problems.publish(problems)

    def _claim_up_to(self, count: int, network: Network) -> None:
        while True:
            snapshot = self.complete(self._snapshot.get())
            if self._node not in snapshot.nodes or len(blocks.node_blocks(snapshot, network, self._node)) >= count:
                return
            claimed = claim(self._store, snapshot, network, self._node)
            self._pending[claimed.cidr] = (claimed, time.monotonic())
            self.problems.update(lambda known: {k: v for k, v in known.items() if k != network.name})

    def complete(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the blocks that were claimed since; those that it has are pending no longer."""
        late = time.monotonic() - SEEN_WITHIN
        for cidr, (block, since) in list(self._pending.items()):
            if block.name in snapshot.blocks or since < late:
                self._pending.pop(cidr, None)
        if not self._pending:
            return snapshot
        return replace(snapshot, blocks={**snapshot.blocks, **{b.name: b for b in self.pending()}})
