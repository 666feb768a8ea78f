"""The ADD's way to addresses: blocks from the node path, addresses from the allocator, and waiting for either."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from agent.cni.netconf import NetConf
from agent.errors import CniError, Code, invalid_config, raise_os
from agent.ip import Address, Subnet
from agent.ipam import blocks, duplicate_address, exhaustion
from agent.ipam.allocator import ExhaustedError, InUseError, Range, UnavailableError
from agent.ipam.attachment import Attachment
from agent.ipam.attachment_store import AttachmentStore
from agent.ipam.reservations import policy as address_policy
from agent.ipam.reservations.claims import SEE, TRIES, PodReservations, ReservationClaims, TakenError
from agent.ipam.reservations.pod_annotations import AddressAnnotations
from agent.kernel import ip_links, netlink
from agent.model.cluster import Snapshot
from agent.model.network import Network
from agent.model.node_status import BlockDemand, Demand, NodeStatus
from agent.runtime.observable import Observable

ADD_WITHIN = 28.0  # seconds for all waits of an ADD together; each of them has its own limit, too
PREPARED_WITHIN = 8.0  # seconds that an ADD waits for the node path; the runtime tries again
COOLED_WITHIN = 20.0  # seconds that an ADD waits for an address to cool
STATUS_WITHIN = 1.0
GOING_WITHIN = 8.0  # seconds that the pod that had an address that stays may take to go, here or on another node
ATTEMPTS = 5  # of one ADD at getting an address that turns out to be this node's to give
MOST_BLOCKS = 32  # that one ADD asks for, as other ADDs may have taken all addresses of each
DEMANDED_FOR = 10.0  # seconds that the node path keeps a network for which there is neither conf nor pod


class ShortageError(CniError):
    """The node has no address for a pod."""


class AddressAssigner:
    """Gives pods addresses, and takes back what is not this node's to give. For several threads at once."""

    def __init__(  # noqa: PLR0913 - what it needs, each from another part
        self,
        attachments: AttachmentStore,
        status: Observable[NodeStatus],
        demand: Observable[Demand],
        stays: ReservationClaims | None,
        undo: Callable[[Attachment], None],
        *,
        snapshot: Observable[Snapshot] | None = None,
    ) -> None:
        """`stays`: who knows of addresses that stay; `undo` takes an attachment back and never fails.

        `snapshot`: the cluster, whose pools say who may ask for their addresses; None: there is none.
        """
        self._attachments = attachments
        self._status = status
        self._demand = demand
        self._stays = stays
        self._undo = undo
        self._snapshot = snapshot

    @contextmanager
    def given(
        self, wanted: Attachment, conf: NetConf, wish: AddressAnnotations | None, deadline: float
    ) -> Iterator[Attachment]:
        """The attachment with its addresses, on file, for the time of its ADD; a failure leaves nothing.

        No wait ends after `deadline` (time.monotonic). Raises CniError.
        """
        end = min(deadline, time.monotonic() + PREPARED_WITHIN)
        own = self._prepared(conf.network, end)
        self._check_policy(wanted.pod, conf, end)
        wanted = replace(wanted, uplink=self._status.get().uplinks.get(conf.network))
        if self._stays is None or wish is None:
            yield self._reserve(wanted, conf, own, deadline)
            return
        ranges = self._ranges(conf.network, own)
        with self._stays.staying(wish, conf.network, ranges, deadline) as stay:
            yield self._settled(self._stays, stay, wanted, conf, own)

    def _check_policy(self, pod: str, conf: NetConf, end: float) -> None:
        """Raises CniError 102 for an address of the netconf or CNI_ARGS that the pod may not ask for.

        Until the pools are known (`end` at most) that is not known either; then it is error 11.
        """
        if self._snapshot is None or not conf.ips:
            return
        if not self._snapshot.wait(lambda snapshot: snapshot.synced, end):
            what = (
                f"whether the pod may have {conf.ips[0]} is not known: the datastore has not been read completely"
            )
            raise CniError(Code.TRY_AGAIN, what, SEE)
        for address in conf.ips:
            address_policy.check_address(pod, address, self._snapshot.get())

    def look(self, network: Network) -> None:
        """Raises CniError 50 when an ADD would get no address now."""
        end = time.monotonic() + STATUS_WITHIN
        own = self._prepared(network, end, Code.NOT_AVAILABLE)
        ranges = self._ranges(network, own)
        for version in sorted(self._families(network, own)):
            counts = ((self._attachments.counts(r)[0], r.size) for r in ranges if r.block.version == version)
            room = any(used < size for used, size in counts)
            if not room and not self._more_blocks(network, own, version, end):
                raise self._exhausted(network, ranges, version, Code.NOT_AVAILABLE)

    def _families(self, network: Network, own: tuple[Subnet, ...]) -> frozenset[int]:
        """The IP versions of which a pod gets an address."""
        return self._status.get().families.get(network) or frozenset(block.version for block in own)

    def _prepared(self, network: Network, end: float, code: Code = Code.TRY_AGAIN) -> tuple[Subnet, ...]:
        """The node's blocks for a network, once the node path has them in the kernel; until `end` at most."""
        self._refuse_blind(code)
        self._ask(network, {})
        while not (own := self._status.get().blocks.get(network)):
            if self._status.wait(lambda s: bool(s.blocks.get(network)), end):
                continue
            status = self._status.get()
            why = "; ".join(str(problem) for problem in status.problems[:3])
            if not status.synced:
                why = why or "the datastore has not been read completely yet"
            error = ShortageError if status.synced else CniError
            what = f"the node is not ready for network {network.name!r}: {why or 'no block of addresses yet'}"
            raise error(code, what, "see `testcnictl status` on the node")
        return own

    def _refuse_blind(self, code: Code) -> None:
        """Raises CniError while a pod here may have an address that nobody knows: any address may be that one."""
        if not any(entry.blind for entry in self._attachments.unreadable()):
            return
        self._attachments.look_again({link.name for link in ip_links.links(netlink.host())})
        blind = [entry.problem() for entry in self._attachments.unreadable() if entry.blind]
        if blind:
            raise CniError(code, f"{blind[0].where}: {blind[0].what}", blind[0].remedy)

    def _ask(self, network: Network, counts: Mapping[int, int]) -> None:
        """Ask the node path for blocks by IP version, at most once in half the time that it remembers."""
        now = time.monotonic()

        def asked(demand: Demand) -> Demand:
            known = demand.get(network) or BlockDemand({}, 0)
            every = {v: max(counts.get(v, 0), known.blocks.get(v, 0)) for v in {*counts, *known.blocks}}
            if every == known.blocks and known.until >= now + DEMANDED_FOR / 2:
                return demand
            return {**demand, network: BlockDemand(every, now + DEMANDED_FOR)}

        self._demand.update(asked)

    def _settled(
        self,
        stays: ReservationClaims,
        stay: PodReservations,
        wanted: Attachment,
        conf: NetConf,
        own: tuple[Subnet, ...],
    ) -> Attachment:
        """The attachment with its addresses, those that stay claimed."""
        families = {address.version for address in stay.asked}
        if any(address.version in families and address not in stay.asked for address in conf.ips):
            allowed = f"none: {', '.join(map(str, stay.asked))} is reserved for the pod"
            raise invalid_config("ips", ", ".join(map(str, conf.ips)), allowed)
        for tries in range(TRIES):
            attachment = self._reserve(replace(wanted, owner=stay.owner), conf, own, stay.deadline, stay)
            try:
                stays.settle(stay, attachment)
            except BaseException as error:
                self._undo(attachment)
                if isinstance(error, TakenError) and not stay.asked and tries + 1 < TRIES:
                    continue  # somebody reserved what the allocator chose
                raise
            return attachment
        raise AssertionError

    def _reserve(
        self,
        wanted: Attachment,
        conf: NetConf,
        own: tuple[Subnet, ...],
        deadline: float,
        stay: PodReservations | None = None,
    ) -> Attachment:
        guests = stay.guests if stay else ()
        asked = tuple(dict.fromkeys((*conf.ips, *(stay.asked if stay else ()))))
        now = time.monotonic()
        # what is left after an address has not cooled in time is for a block more
        cooled, going = min(deadline - PREPARED_WITHIN, now + COOLED_WITHIN), min(deadline, now + GOING_WITHIN)
        refused = claimed = 0
        while refused < ATTEMPTS:
            ranges = [*self._ranges(conf.network, own), *guests]
            families = self._families(conf.network, own)
            try:
                reserved = self._attachments.reserve(wanted, ranges, asked, cooled, families)
            except UnavailableError as error:
                if isinstance(error, InUseError) and wanted.owner and time.monotonic() < going:
                    time.sleep(0.1)  # the pod of the same name that was here before: its DEL is on its way
                    continue
                raise CniError(Code.ADDRESSES, str(error), "ask for another, or for none") from error
            except OSError as error:
                raise CniError(Code.IO_FAILURE, f"state can't be written: {error}") from error
            except ExhaustedError as error:
                claimed += 1
                own = self._grown(conf.network, own, error, deadline if claimed <= MOST_BLOCKS else 0)
            else:
                if self._may_have(reserved, conf, asked, deadline):
                    return reserved
                refused += 1
                own = self._prepared(conf.network, min(deadline, time.monotonic() + PREPARED_WITHIN))
        raise CniError(
            Code.TRY_AGAIN,
            f"{ATTEMPTS} addresses one after the other turned out not to be this node's to give",
            "see `testcnictl status`; where something answers ARP for every address, set `ipam.probe` to false",
        )

    def _grown(
        self, network: Network, own: tuple[Subnet, ...], error: ExhaustedError, deadline: float
    ) -> tuple[Subnet, ...]:
        """The node's blocks with one more of the IP version that is exhausted. Raises CniError."""
        now = time.monotonic()
        end = min(deadline, now + PREPARED_WITHIN)
        if end > now and (more := self._more_blocks(network, own, error.version, end)):
            return more
        for_good = error.wait is None and (network, error.version) in self._status.get().limits
        code = Code.ADDRESSES if for_good else Code.TRY_AGAIN
        raise self._exhausted(network, self._ranges(network, own), error.version, code) from error

    def _may_have(self, reserved: Attachment, conf: NetConf, asked: tuple[Address, ...], deadline: float) -> bool:
        """Whether the pod may have what is reserved; else that is free again. Raises CniError."""
        try:
            # a block that was given back meanwhile is gone from the status before anybody looks who has addresses
            held = self._status.get().blocks.get(conf.network, ())
            still = all(lease.block in held or blocks.is_single(lease.block) for lease in reserved.leases)
            within = min(GOING_WITHIN, deadline - time.monotonic()) if reserved.owner else 0.0
            owner = duplicate_address.owner(reserved, within) if still and conf.probe else None
        except BaseException as error:
            self._undo(reserved)
            if isinstance(error, OSError):
                raise_os(error, f"probing for addresses of {reserved.network.name}")
            raise
        if still and owner is None:
            return True
        self._undo(reserved)
        if owner:
            self._attachments.quarantine(owner.address, owner.device, owner.mac)
            if owner.address in asked:
                what = f"{owner.address} is in use by {owner.mac}, which answers for it on {owner.device}"
                raise CniError(Code.ADDRESSES, what, "ask for another, or for none")
        return False

    def _ranges(self, network: Network, own: tuple[Subnet, ...]) -> list[Range]:
        """Where pods' addresses may be; raises CniError 7 when the netconf's range leaves none."""
        every = list(blocks.prepared(self._status.get(), network, own))
        ranges = [r for r in every if r.size]
        if not ranges and (network.range_start or network.range_end):
            bounds = f"{network.range_start or ''}-{network.range_end or ''}"
            raise invalid_config("ipam.rangeStart-rangeEnd", bounds, f"a part of {', '.join(map(str, own))}")
        return ranges or every  # where the pool excludes all that the node has, it needs another block

    def _more_blocks(
        self, network: Network, own: tuple[Subnet, ...], version: int, end: float
    ) -> tuple[Subnet, ...] | None:
        """The node's blocks once it has one more of an IP version, None if it can't, or not until `end`."""
        self._ask(network, {version: sum(block.version == version for block in own) + 1})

        def more(status: NodeStatus) -> tuple[Subnet, ...]:
            now = status.blocks.get(network, ())
            return now if any(block.version == version and block not in own for block in now) else ()

        self._status.wait(lambda s: bool(more(s) or s.limits.get((network, version))), end)
        return more(self._status.get()) or None

    def _exhausted(self, network: Network, ranges: list[Range], version: int, code: Code) -> CniError:
        """The error that says how many addresses there are, and why there are no more."""
        why = self._status.get().limits.get((network, version), "the node has not got another block in time")
        return ShortageError(code, exhaustion.text(ranges, version, why), exhaustion.REMEDY)
