"""The ADD's way to addresses: one of each IP version, and one deadline for all that it waits for."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cni.netconf import NetConf
from agent.codec.cni_args import PodIdentity
from agent.errors import CniError, Code
from agent.ip import Subnet
from agent.ipam import blocks
from agent.ipam.assign import assigner
from agent.ipam.assign.add_times import AddTimes
from agent.ipam.assign.address_request import AddressRequest
from agent.ipam.assign.assigner import AddressAssigner
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel.link_operations import Reaper
from agent.model.cluster import IPPool, Snapshot
from agent.model.node_status import Demand, NodeStatus
from agent.runtime.deadline import Deadline
from agent.runtime.observable import Observable
from tests.networks import OPTIONS, network_of, parse_conf

NETWORK = network_of("net")
CONF = NetConf("1.1.0", NETWORK)
FOUR, SIX = ipaddress.ip_network("10.244.1.0/29"), ipaddress.ip_network("fd00::/125")
MORE_FOUR, MORE_SIX = ipaddress.ip_network("10.244.2.0/29"), ipaddress.ip_network("fd00::8/125")
BOTH = frozenset({4, 6})
CIDRS = {"four": FOUR, "six": SIX}
DOC = {"cniVersion": "1.1.0", "name": "net"}


class Node:
    """The pod path's addresses, with a node path that is played by the test."""

    def __init__(
        self,
        folder: Path,
        *own: Subnet,
        families: frozenset[int] = BOTH,
        cool_down: float = 0,
        prepared: float = 8,
    ) -> None:
        self.attachments = AttachmentStore(folder, cool_down, OPTIONS)
        self.attachments.load()
        self.status = Observable(NodeStatus(True, {NETWORK: own}, families={NETWORK: families}))
        self.demand: Observable[Demand] = Observable({})
        self.snapshot = Observable(Snapshot(synced=True))
        self.assigner = AddressAssigner(
            self.attachments,
            self.status,
            self.demand,
            reaper=Reaper(),
            snapshot=self.snapshot,
            times=AddTimes(prepared=prepared),
        )

    def add(self, name: str, within: float = 5.0, conf: NetConf = CONF, pod: str = "") -> list[str]:
        identity = PodIdentity(pod) if pod else None
        request = AddressRequest(name, "eth0", "/x", NETWORK, identity, conf.ips)
        made = self.assigner.assign(request, Deadline.after(within))
        return [str(lease.address) for lease in made.leases]

    def pools(self, namespaces: tuple[str, ...] | None = None) -> None:
        """A cluster of which the node has read all; `namespaces`: whose pods may ask for addresses."""
        every = [IPPool(name, cidr, cidr.prefixlen, namespaces=namespaces) for name, cidr in CIDRS.items()]
        self.snapshot.publish(Snapshot(synced=True, pools={pool.name: pool for pool in every}))

    @property
    def asked(self) -> dict[int, int]:
        """How many blocks of each IP version the ADDs have asked for."""
        want = self.demand.get().get(NETWORK)
        return dict(want.blocks) if want else {}

    @contextmanager
    def answering(self, *more: Subnet, limits: dict[int, str] | None = None) -> Iterator[None]:
        """A node path that claims these blocks as they are asked for, then says why there are no others."""
        left, stop = list(more), threading.Event()

        def look() -> None:
            status = self.status.get()
            own = status.blocks[NETWORK]
            why = dict(status.limits)
            for version, count in self.asked.items():
                have = sum(block.version == version for block in own)
                fresh = [block for block in left if block.version == version][: count - have]
                own = (*own, *fresh)
                left[:] = [block for block in left if block not in fresh]
                if count > have + len(fresh) and limits:
                    why[NETWORK, version] = limits[version]
            self.status.publish(NodeStatus(True, {NETWORK: own}, families=status.families, limits=why))

        self.demand.listen(lambda: None if stop.is_set() else threading.Thread(target=look).start())
        yield
        stop.set()


def test_a_pod_gets_an_address_of_each_ip_version(tmp_path: Path) -> None:
    assert Node(tmp_path, FOUR, SIX).add("a") == ["10.244.1.2", "fd00::2"]


def test_the_add_waits_for_the_first_block_of_an_ip_version(tmp_path: Path) -> None:
    node = Node(tmp_path, FOUR)
    with node.answering(SIX):
        assert node.add("a")[1:] == ["fd00::2"]


def test_an_ip_version_that_is_exhausted_asks_for_blocks_of_that_version_only(tmp_path: Path) -> None:
    node = Node(tmp_path, FOUR, SIX)
    for n in range(5):
        node.add(f"c{n}")
    with node.answering(MORE_FOUR, MORE_SIX):
        assert node.add("late") == ["10.244.2.2", "fd00::7"]
    assert node.asked == {4: 2}


def test_an_ip_version_without_more_blocks_fails_the_add_with_the_reason(tmp_path: Path) -> None:
    node = Node(tmp_path, FOUR, SIX)
    for n in range(5):
        node.add(f"c{n}")
    with (
        node.answering(MORE_SIX, limits={4: "no block is left in four"}),
        pytest.raises(
            CniError, match=r"no address is free in 10\.244\.1\.0/29 \(5 in all\), and no block is left"
        ) as caught,
    ):
        node.add("late")
    assert caught.value.code == Code.ADDRESSES
    assert node.asked == {4: 2}
    assert len(node.attachments.all()) == 5, "the IPv6 address is free again"


def test_all_waits_of_an_add_share_one_deadline(tmp_path: Path) -> None:
    """For an address to cool, then for a block of one IP version, then for one of the other."""
    node = Node(tmp_path, FOUR, families=BOTH, cool_down=600, prepared=1)
    for n in range(5):
        wanted = Attachment(f"c{n}", "eth0", NETWORK, "/x", "", (), "")
        made = node.attachments.take(wanted, blocks.prepared(node.status.get(), NETWORK, (FOUR,)), ())
    node.attachments.remove(made)
    began = time.monotonic()
    with pytest.raises(CniError, match="no other block was ready in time") as caught:
        node.add("late", within=0.5)
    took = time.monotonic() - began
    assert caught.value.code == Code.TRY_AGAIN
    assert 0.45 < took < 4


def test_one_add_does_not_ask_for_blocks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each new block has no address for it, as the others were quicker."""
    monkeypatch.setattr(assigner, "MOST_BLOCKS", 4)
    node = Node(tmp_path, families=frozenset({4}))
    useless = list(ipaddress.IPv4Network("10.9.0.0/24").subnets(new_prefix=31))
    node.status.publish(NodeStatus(True, {NETWORK: (useless[0],)}, families={NETWORK: frozenset({4})}))
    with node.answering(*useless[1:]), pytest.raises(CniError, match="no address is free"):
        node.add("a")
    assert node.asked == {4: 5}


ASKED = {"four": "10.244.1.5", "six": "fd00::5"}
WAYS: dict[str, Callable[[str], NetConf]] = {
    "runtimeConfig": lambda ip: parse_conf({**DOC, "runtimeConfig": {"ips": [f"{ip}/24"]}}),
    "args": lambda ip: parse_conf({**DOC, "args": {"cni": {"ips": [ip]}}}),
    "CNI_ARGS": lambda ip: parse_conf(DOC, f"IgnoreUnknown=1;IP={ip}"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pool", ASKED)
def test_a_pod_of_another_namespace_may_not_ask_for_an_address_in_whichever_way(
    tmp_path: Path, way: str, pool: str
) -> None:
    node, conf = Node(tmp_path, FOUR, SIX), WAYS[way](ASKED[pool])
    node.pools(namespaces=("shop",))
    with pytest.raises(CniError, match=f"namespace default may not ask for addresses of IPPool {pool}") as refused:
        node.add("a", conf=conf, pod="default/a")
    assert (refused.value.code, "shop" in str(refused.value)) == (Code.ADDRESSES, True)
    with pytest.raises(CniError, match="pods whose namespace CNI_ARGS do not name may not ask for addresses"):
        node.add("b", conf=conf)
    assert node.attachments.all() == ()
    assert ASKED[pool] in node.add("c", conf=conf, pod="shop/c")
    assert node.add("d", pod="default/d"), "who asks for nothing gets any address of the node's blocks"


def test_a_pool_for_all_namespaces_gives_what_is_asked_for(tmp_path: Path) -> None:
    node = Node(tmp_path, FOUR, SIX)
    node.pools(namespaces=None)
    assert "10.244.1.5" in node.add("a", conf=WAYS["CNI_ARGS"]("10.244.1.5"))
    node.pools(namespaces=())
    with pytest.raises(CniError, match="allowedNamespaces: none"):
        node.add("b", conf=WAYS["CNI_ARGS"]("10.244.1.6"), pod="default/b")


def test_an_address_is_not_given_before_the_pools_say_who_may_ask(tmp_path: Path) -> None:
    node, conf = Node(tmp_path, FOUR, SIX), WAYS["runtimeConfig"]("10.244.1.5")
    node.snapshot.publish(Snapshot())
    with pytest.raises(CniError, match="the datastore has not been read completely") as refused:
        node.add("a", 0.05, conf, "default/a")
    assert refused.value.code == Code.TRY_AGAIN
    assert node.add("b", pod="default/b")
    threading.Timer(0.05, node.pools).start()
    assert "10.244.1.5" in node.add("a", conf=conf, pod="default/a")
