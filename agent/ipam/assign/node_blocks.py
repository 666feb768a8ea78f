"""The node's blocks as the pod path sees them: those that the node path has prepared, and requests for more."""

from __future__ import annotations

import time
from collections.abc import Mapping

from agent.errors import CniError, Code, invalid_config
from agent.ip import Subnet
from agent.ipam import blocks, exhaustion
from agent.ipam.allocator import Range
from agent.model.network import Network, ParentLink
from agent.model.node_status import BlockDemand, Demand, NodeStatus
from agent.runtime.deadline import Deadline
from agent.runtime.observable import Observable


class ShortageError(CniError):
    """The node has no address for a pod."""


class NodeBlocks:
    """Reads what the node path has prepared, and waits for it. For several threads at once."""

    def __init__(self, status: Observable[NodeStatus], demand: Observable[Demand], demanded_for: float) -> None:
        """`demanded_for`: seconds for which the node path keeps a network after it was asked for."""
        self._demanded_for = demanded_for
        self._status = status
        self._demand = demand

    def wait_until_prepared(
        self, network: Network, end: Deadline, code: Code = Code.TRY_AGAIN
    ) -> tuple[Subnet, ...]:
        """Request a network, wait, and return its prepared blocks. Raises CniError at `end`."""
        self._ask(network, {})
        while not (own := self._status.get().blocks.get(network)):
            if self._status.wait(lambda status: bool(status.blocks.get(network)), end):
                continue
            status = self._status.get()
            why = "; ".join(str(problem) for problem in status.problems[:3])
            if not status.synced:
                why = why or "the datastore has not been read completely yet"
            error = ShortageError if status.synced else CniError
            what = f"the node is not ready for network {network.name!r}: {why or 'no block of addresses yet'}"
            raise error(code, what, "see `testcnictl status` on the node")
        return own

    def current(self, network: Network) -> tuple[Subnet, ...]:
        """Return the node's blocks for a network as they are now; empty if the network has none."""
        return self._status.get().blocks.get(network, ())

    def uplink(self, network: Network) -> ParentLink | None:
        """Return the parent of the network's pods, None if they have none."""
        return self._status.get().uplinks.get(network)

    def versions(self, network: Network, own: tuple[Subnet, ...]) -> frozenset[int]:
        """Return the IP versions of which a pod gets an address."""
        return self._status.get().families.get(network) or frozenset(block.version for block in own)

    def ranges(self, network: Network, own: tuple[Subnet, ...]) -> list[Range]:
        """Return where in these blocks pods' addresses may be. Raises CniError 7 if the netconf leaves none."""
        every = list(blocks.prepared(self._status.get(), network, own))
        ranges = [r for r in every if r.size]
        if not ranges and (network.range_start or network.range_end):
            bounds = f"{network.range_start or ''}-{network.range_end or ''}"
            raise invalid_config("ipam.rangeStart-rangeEnd", bounds, f"a part of {', '.join(map(str, own))}")
        return ranges or every  # a node whose blocks are excluded as a whole needs another block

    def request_more(
        self, network: Network, own: tuple[Subnet, ...], version: int, end: Deadline
    ) -> tuple[Subnet, ...] | None:
        """Request one more block of an IP version, and return all blocks; None if none was added by `end`."""
        self._ask(network, {version: sum(block.version == version for block in own) + 1})

        def grown(status: NodeStatus) -> tuple[Subnet, ...]:
            now = status.blocks.get(network, ())
            return now if any(block.version == version and block not in own for block in now) else ()

        self._status.wait(lambda status: bool(grown(status) or status.limits.get((network, version))), end)
        return grown(self._status.get()) or None

    def is_limited(self, network: Network, version: int) -> bool:
        """Return whether the node can have no more blocks of an IP version for a network."""
        return (network, version) in self._status.get().limits

    def exhausted_error(self, network: Network, ranges: list[Range], version: int, code: Code) -> ShortageError:
        """Return the error that says how many addresses there are, and why there are no more."""
        why = self._status.get().limits.get((network, version), "no other block was ready in time")
        return ShortageError(code, exhaustion.text(ranges, version, why), exhaustion.REMEDY)

    def _ask(self, network: Network, counts: Mapping[int, int]) -> None:
        """Ask the node path for blocks by IP version, at most once in half the time for which it remembers."""
        now = time.monotonic()

        def asked(demand: Demand) -> Demand:
            known = demand.get(network) or BlockDemand({}, 0)
            every = {v: max(counts.get(v, 0), known.blocks.get(v, 0)) for v in {*counts, *known.blocks}}
            if every == known.blocks and known.until >= now + self._demanded_for / 2:
                return demand
            return {**demand, network: BlockDemand(every, now + self._demanded_for)}

        self._demand.update(asked)
