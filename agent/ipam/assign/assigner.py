"""Assign addresses to a pod: from the request of its ADD to an attachment that is on file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from agent.errors import DISK_REMEDY, CniError, Code, invalid_config, raise_os
from agent.ip import Address, Subnet
from agent.ipam import blocks
from agent.ipam.allocator import ExhaustedError, Range, UnavailableError
from agent.ipam.assign import duplicate_address
from agent.ipam.assign.add_times import AddTimes
from agent.ipam.assign.address_request import AddressRequest
from agent.ipam.assign.duplicate_address import DuplicateAddress
from agent.ipam.assign.node_blocks import NodeBlocks, ShortageError
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore, Waits
from agent.ipam.reservations import policy
from agent.ipam.reservations.claimant import SEE, TakenError
from agent.ipam.reservations.claims import REASON, PodReservations, ReservationClaims
from agent.kernel import ip_links, netlink
from agent.kernel.link_operations import Reaper
from agent.model.cluster import Snapshot
from agent.model.network import Network
from agent.model.node_status import Demand, NodeStatus, PodEvent, ReportEvent, ignore_event
from agent.runtime.deadline import PAST, Deadline
from agent.runtime.observable import Observable

ATTEMPTS = 5  # of one ADD to find usable addresses
MOST_BLOCKS = 32  # that one ADD requests, as other ADDs may take all addresses of each

log = logging.getLogger(__name__)


class UnusableError(Exception):
    """The pod cannot have the addresses that were taken, but it can have others."""

    def __init__(self, why: str, duplicate: DuplicateAddress | None = None) -> None:
        super().__init__(why)
        self.duplicate = duplicate


@dataclass(slots=True)
class _Search:
    """The search of one ADD for addresses."""

    candidate: Attachment
    """The attachment, still without addresses."""
    probe: bool
    asked: tuple[Address, ...]
    """The addresses that the pod must get."""
    own: tuple[Subnet, ...]
    """The node's blocks, as far as this ADD knows."""
    deadline: Deadline
    waits: Waits
    reservations: PodReservations | None = None
    blocks_asked: int = 0

    @property
    def network(self) -> Network:
        """The network that the addresses are for."""
        return self.candidate.network

    @property
    def off_block(self) -> tuple[Range, ...]:
        """The ranges of reserved addresses that are in no block of this node."""
        return self.reservations.off_block if self.reservations else ()


class AddressAssigner:
    """Assigns addresses to pods. For several threads at once."""

    def __init__(  # noqa: PLR0913 - what it reads and writes, each from another part
        self,
        attachments: AttachmentStore,
        status: Observable[NodeStatus],
        demand: Observable[Demand],
        claims: ReservationClaims | None = None,
        *,
        reaper: Reaper,
        snapshot: Observable[Snapshot] | None = None,
        report_event: ReportEvent = ignore_event,
        times: AddTimes | None = None,
    ) -> None:
        """`claims` reserves addresses; None: pods' annotations are not read.

        `snapshot`: the cluster, whose pools say which namespaces may ask for their addresses; None: there is none.
        `report_event` takes Events about pods.
        """
        self._times = times or AddTimes()
        self._reaper = reaper
        self._attachments = attachments
        self._blocks = NodeBlocks(status, demand, self._times.demand)
        self._claims = claims
        self._snapshot = snapshot
        self._report_event = report_event

    def assign(self, request: AddressRequest, deadline: Deadline) -> Attachment:
        """Return an attachment with its addresses, written to its file; a failure leaves nothing.

        No wait ends after `deadline`. Raises CniError.
        """
        try:
            network = request.network
            annotations = self._claims.annotations(request.pod, network, deadline) if self._claims else None
            if annotations and annotations.pool:
                network = replace(network, pool=annotations.pool)
            end = deadline.within(self._times.prepared)
            own = self._wait_until_prepared(network, end)
            self._check_policy(request, end)
            if self._claims is None or annotations is None:
                return self._take(self._search(request, network, own, deadline))
            ranges = self._blocks.ranges(network, own)
            with self._claims.reserved(annotations, network, ranges, deadline) as reservations:
                return self._take(self._search(request, network, own, deadline, reservations))
        except ShortageError as error:
            if request.pod:
                self._report_event(PodEvent(request.pod.name, request.pod.uid, REASON, str(error)))
            raise

    def check_available(self, network: Network) -> None:
        """Raise CniError 50 if an ADD would get no address now."""
        end = Deadline.after(self._times.status)
        own = self._wait_until_prepared(network, end, Code.NOT_AVAILABLE)
        ranges = self._blocks.ranges(network, own)
        for version in sorted(self._blocks.versions(network, own)):
            counts = ((self._attachments.counts(r)[0], r.size) for r in ranges if r.block.version == version)
            room = any(used < size for used, size in counts)
            if not room and not self._blocks.request_more(network, own, version, end):
                raise self._blocks.exhausted_error(network, ranges, version, Code.NOT_AVAILABLE)

    def _wait_until_prepared(
        self, network: Network, end: Deadline, code: Code = Code.TRY_AGAIN
    ) -> tuple[Subnet, ...]:
        """Return the node's blocks for a network, once the node path has prepared them. Raises CniError."""
        self._refuse_unknown_addresses(code)
        return self._blocks.wait_until_prepared(network, end, code)

    def _refuse_unknown_addresses(self, code: Code) -> None:
        """Raise CniError while a pod here has an unknown address: it may be any address."""
        if not any(entry.blind for entry in self._attachments.unreadable()):
            return
        self._attachments.forget_removed({link.name for link in ip_links.links(netlink.host())})
        blind = [entry.problem() for entry in self._attachments.unreadable() if entry.blind]
        if blind:
            raise CniError(code, f"{blind[0].where}: {blind[0].what}", blind[0].remedy)

    def _check_policy(self, request: AddressRequest, end: Deadline) -> None:
        """Raise CniError 102 for an address of the netconf or CNI_ARGS that the pod may not ask for.

        Until the pools are known (`end` at most) that is not known either; then it is error 11.
        """
        if self._snapshot is None or not request.addresses:
            return
        if not self._snapshot.wait(lambda snapshot: snapshot.synced, end):
            asked = request.addresses[0]
            what = f"whether the pod may have {asked} is not known: the datastore has not been read completely"
            raise CniError(Code.TRY_AGAIN, what, SEE)
        for address in request.addresses:
            policy.check_address(request.pod_name, address, self._snapshot.get())

    def _search(
        self,
        request: AddressRequest,
        network: Network,
        own: tuple[Subnet, ...],
        deadline: Deadline,
        reservations: PodReservations | None = None,
    ) -> _Search:
        """Return the search with which one ADD begins. Raises CniError 7."""
        reserved = reservations.asked if reservations else ()
        versions = {address.version for address in reserved}
        if any(address.version in versions and address not in reserved for address in request.addresses):
            allowed = f"none: {', '.join(map(str, reserved))} is reserved for the pod"
            raise invalid_config("ips", ", ".join(map(str, request.addresses)), allowed)
        owner = reservations.owner if reservations else ""
        candidate = Attachment(
            request.container_id,
            request.ifname,
            network,
            request.netns,
            request.pod_name,
            (),
            request.mac,
            uplink=self._blocks.uplink(network),
            limited=request.egress_limited,
            owner=owner,
        )
        asked = tuple(dict.fromkeys((*request.addresses, *reserved)))
        waits = Waits(
            # the rest of the time is for a new block
            deadline.earlier(self._times.prepared).within(self._times.cooled),
            deadline.within(self._times.gone) if owner else PAST,
        )
        return _Search(candidate, request.probe, asked, own, deadline, waits, reservations)

    def _take(self, search: _Search) -> Attachment:
        """Take addresses, and others where these turn out to be unusable. Raises CniError."""
        for _ in range(ATTEMPTS):
            taken = self._allocate(search)
            try:
                self._verify(taken, search)
            except UnusableError as error:
                self._release(taken)
                log.info("%s %s gets other addresses: %s", *taken.key, error)
                self._quarantine(error.duplicate, search.asked)
                search.own = self._wait_until_prepared(
                    search.network, search.deadline.within(self._times.prepared)
                )
            except BaseException:
                self._release(taken)
                raise
            else:
                return taken
        raise CniError(
            Code.TRY_AGAIN,
            f"{ATTEMPTS} addresses were tried one after the other, and none is usable",
            "see `testcnictl status`; where something answers ARP for every address, set `ipam.probe` to false",
        )

    def _allocate(self, search: _Search) -> Attachment:
        """Take addresses, and ask for another block for as long as all are in use. Raises CniError."""
        while True:
            try:
                return self._take_addresses(search)
            except ExhaustedError as error:
                search.own = self._another_block(search, error)

    def _take_addresses(self, search: _Search) -> Attachment:
        """Take addresses of the blocks that are there. Raises ExhaustedError, CniError."""
        ranges = [*self._blocks.ranges(search.network, search.own), *search.off_block]
        try:
            return self._attachments.take(
                search.candidate,
                ranges,
                search.asked,
                self._blocks.versions(search.network, search.own),
                search.waits,
            )
        except UnavailableError as error:
            raise CniError(Code.ADDRESSES, str(error), "ask for another, or for none") from error
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"state can't be written: {error}", DISK_REMEDY) from error

    def _another_block(self, search: _Search, error: ExhaustedError) -> tuple[Subnet, ...]:
        """Return the node's blocks with one more of the IP version that is exhausted. Raises CniError."""
        network, own, version = search.network, search.own, error.version
        search.blocks_asked += 1
        end = search.deadline.within(self._times.prepared)
        if search.blocks_asked <= MOST_BLOCKS and not end.passed:
            more = self._blocks.request_more(network, own, version, end)
            if more:
                return more
        for_good = error.wait is None and self._blocks.is_limited(network, version)
        code = Code.ADDRESSES if for_good else Code.TRY_AGAIN
        raise self._blocks.exhausted_error(network, self._blocks.ranges(network, own), version, code) from error

    def _verify(self, taken: Attachment, search: _Search) -> None:
        """Check that the addresses that were taken can be the pod's, and claim those that are to be reserved.

        Raises UnusableError, CniError.
        """
        # a block that is given back leaves the status before the node path looks for attachments in it
        own = self._blocks.current(taken.network)
        if not all(lease.block in own or blocks.is_single(lease.block) for lease in taken.leases):
            raise UnusableError("its block was given back to the pool")
        if search.probe:
            self._probe(taken, search.deadline.within(self._times.gone) if taken.owner else PAST)
        if self._claims and search.reservations:
            try:
                self._claims.confirm(search.reservations, taken)
            except TakenError as error:
                if search.reservations.asked:
                    raise
                raise UnusableError(f"an address was reserved for another pod: {error}") from error

    def _probe(self, taken: Attachment, gone_by: Deadline) -> None:
        """Raise UnusableError if another machine of the segment uses one of the addresses; CniError."""
        try:
            duplicate = duplicate_address.find(self._reaper, taken, gone_by)
        except OSError as error:
            raise_os(error, f"probing for addresses of {taken.network.name}")
        if duplicate:
            raise UnusableError(f"{duplicate.mac} answers for {duplicate.address}", duplicate)

    def _quarantine(self, duplicate: DuplicateAddress | None, asked: tuple[Address, ...]) -> None:
        """Assign a duplicate address to no pod for a while. Raises CniError 102 if the pod must have that one."""
        if duplicate is None:
            return
        self._attachments.quarantine(duplicate.address, duplicate.device, duplicate.mac)
        if duplicate.address in asked:
            where = f"{duplicate.mac}, which answers for it on {duplicate.device}"
            what = f"{duplicate.address} is in use by {where}"
            raise CniError(Code.ADDRESSES, what, "ask for another, or for none")

    def _release(self, taken: Attachment) -> None:
        """Remove an attachment that has nothing in the kernel yet; its addresses are free again."""
        try:
            self._attachments.remove(taken)
        except OSError:
            log.exception("cannot release addresses of %s %s; DEL, GC or the next start does it", *taken.key)
