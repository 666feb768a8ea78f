"""Check whether a pod of a network may have an address: a requested one, or the one that its owner had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.errors import CniError, Code, invalid_config
from agent.ip import Address
from agent.ipam import blocks
from agent.ipam.reservations import rules as reservation_rules
from agent.ipam.reservations.pod_annotations import AddressAnnotations
from agent.model.cluster import ALWAYS_KEPT, IPReservation, Snapshot
from agent.model.network import Network
from agent.model.node_status import NodeStatus
from agent.runtime.observable import Observable


class OutsideError(CniError):
    """The address is outside of the blocks, pools and subnet of the network."""


@dataclass(frozen=True, slots=True)
class AddressPlacement:
    """Decides which addresses pods of a network may have, by this node's snapshot."""

    node: str
    snapshot: Observable[Snapshot]
    status: Observable[NodeStatus]

    def fitting(
        self, known: Iterable[IPReservation], annotations: AddressAnnotations, network: Network
    ) -> tuple[IPReservation | None, CniError | None]:
        """Return the first of the owner's reservations that its pod may use; if there is none, the first error."""
        wrong: CniError | None = None
        for held in reservation_rules.of_owner(known, annotations.owner, network.name, annotations.pod):
            error = self.wrong(held.address, network, held)
            if error is None:
                return held, None
            if held.network or not isinstance(
                error, OutsideError
            ):  # else it may be for another network of the pod
                what = f"{held.address} is reserved for {held.owner} and can't be assigned any more: {error.msg}"
                remedy = f"kubectl delete ipreservation {held.name}, and the pod gets another address"
                wrong = wrong or CniError(Code.ADDRESSES, what, remedy)
        return None, wrong

    def wrong(self, address: Address, network: Network, held: IPReservation | None) -> CniError | None:
        """Return why no pod of the network may have an address; None if one may. `held`: its reservation.

        A reserved address may be outside of all blocks.
        """
        error = self._misplaced(address, network)
        mine = held is not None and held.network == network.name
        return None if mine and isinstance(error, OutsideError) and network.subnet is None else error

    def seen(self) -> Snapshot:
        """Return the snapshot with this node's own networks."""
        return replace(self.snapshot.get(), host_networks=self.status.get().host_networks)

    def _misplaced(self, address: Address, network: Network) -> CniError | None:
        """Return why an address is not for pods of the network; None if it is."""
        snapshot = self.seen()
        if not snapshot.synced:  # only reserved addresses are assigned then, and these were checked before
            return None
        if owner := next((n.name for n in snapshot.nodes.values() if address in n.addresses), ""):
            what = f"{address} is no address for pods: it is the InternalIP of node {owner}"
            return CniError(Code.ADDRESSES, what, "ask for another")
        every = replace(network, pool="")
        places = [network.subnet] if network.subnet else [pool.cidr for pool in blocks.pools(snapshot, every)]
        found = reservation_rules.home(snapshot, address)
        if found and blocks.within(found[0], network.subnet):
            places = [found[0]]
        elif any(address in blocks.not_for_pods(b, network) for b in blocks.possible(snapshot, network, address)):
            what = f"{address} is no address for pods: a network, gateway or broadcast address of a possible block"
            return CniError(Code.ADDRESSES, what, "ask for another")
        inside = tuple(place for place in places if address in place)
        if not inside:
            own = blocks.node_blocks(snapshot, every, self.node)
            known = ", ".join(map(str, dict.fromkeys((*own, *places)))) or "none"
            none = "" if places else "; no IPPool has others"
            allowed = f"those of network {network.name}: {known}{none}"
            error = invalid_config("address", str(address), allowed)
            return OutsideError(error.code, error.msg, error.details)
        uplink = self.status.get().uplinks.get(network)
        barred = blocks.excluded(snapshot, network, self.node, inside)
        reserved = uplink.reserved if uplink else frozenset()
        if any(address in r for r in blocks.ranges(network, inside, barred, reserved)) or network.has_manual_range:
            return None
        what = f"{address} is no address for pods: a network's, a gateway's or a node's own, or out of range"
        return CniError(Code.ADDRESSES, what, "ask for another")


class ManualReservations:
    """Knows the owners for which persons reserved addresses; it is computed again only after a change."""

    def __init__(self) -> None:
        self._seen: tuple[Mapping[str, IPReservation], frozenset[tuple[str, str]]] = ({}, frozenset())

    def has(self, owner: str, network: str, snapshot: Snapshot) -> bool:
        """Return whether the owner's pods on a network get such an address without a request."""
        known, found = self._seen
        if snapshot.reservations is not known:
            every = snapshot.reservations.values()
            found = frozenset((r.owner, r.network) for r in every if r.ahead or r.keep == ALWAYS_KEPT)
            self._seen = (snapshot.reservations, found)
        return (owner, network) in found or (owner, "") in found
