"""A node's block controller on a real datastore, with what it has seen of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.cluster.directory_store import DirectoryStore
from agent.cluster.kinds import KINDS, Kind
from agent.ip import Subnet
from agent.ipam import blocks
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.block_claims.block_controller import BlockController, ReclaimRules
from agent.ipam.block_claims.idle_blocks import IdleBlockReleaser
from agent.model.cluster import IPBlock, IPPool, Resource, Snapshot
from agent.runtime.observable import Observable
from tests.networks import OPTIONS, network_of
from tests.support import net

NETWORK = network_of("lan", "macvlan", net("192.0.2.0/24"), link_mode="bridge")
POOL = IPPool("lan", net("192.0.2.0/27"), 29)  # four blocks
RULES = ReclaimRules(node_gone=0.0)


class Stubborn(DirectoryStore):
    """A folder whose deletes a test may disturb."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.deleted: list[str] = []

    def delete(self, kind: Kind, name: str, known: Resource | None = None) -> None:
        self.before()
        super().delete(kind, name, known)
        self.deleted.append(name)
        self.after()


class Member:
    """A node's block controller, with what it has seen of the folder."""

    def __init__(self, folder: Path, name: str, rules: ReclaimRules = RULES) -> None:
        self.name = name
        self.store = Stubborn(folder)
        self.snapshot = Observable(Snapshot())
        self.block_controller = BlockController(self.store, name, self.snapshot, rules)
        self.attachments = AttachmentStore(folder / f".{name}", 0, OPTIONS)
        self.attachments.load()
        self.releaser = IdleBlockReleaser(name, self.block_controller, self.attachments, idle=0.0)
        self.see()

    def see(self) -> Snapshot:
        """Look at the folder, as its watch would."""
        self.snapshot.publish(Snapshot(True, *({o.name: o for o in self.store.list(kind)} for kind in KINDS)))  # type: ignore[arg-type]
        return self.snapshot.get()

    def claim(self, count: int) -> tuple[Subnet, ...]:
        self.block_controller.want({NETWORK: count})
        self.block_controller.once()
        return self.own()

    def own(self) -> tuple[Subnet, ...]:
        """What pods may get addresses of, as the reconciler would publish it."""
        return blocks.node_blocks(self.block_controller.complete(self.snapshot.get()), NETWORK, self.name)

    def round(self, wanted: int = 1) -> bool:
        """What a round of the reconciler does about blocks."""
        demand = {NETWORK: wanted} if wanted else {}
        self.block_controller.want(demand)
        return self.releaser.release_idle(self.block_controller.complete(self.snapshot.get()), demand, noted=True)

    def take(self, block: Subnet) -> Attachment:
        wanted = Attachment(f"c-{block}".replace("/", "-"), "eth0", NETWORK, "/x", "", (), "")
        ranges = blocks.ranges(NETWORK, (block,), frozenset(), frozenset())
        return self.attachments.take(wanted, ranges, ())


def in_store(folder: Path) -> dict[Subnet, str]:
    return {b.cidr: b.node for b in DirectoryStore(folder).list("IPBlock") if isinstance(b, IPBlock)}
