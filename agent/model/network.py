"""Networks as netconfs define them: what all networks have, and the options of a mode as a value of that mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from agent.ip import Address, Subnet


@dataclass(frozen=True, slots=True)
class ModeOptions:
    """The options that a mode adds to a netconf, and what addresses its pods need. Each mode has a subclass.

    A subclass has a field for each option, with its default. The fields' names are keys of files on disk, where
    all options of a network are written side by side.
    """

    mode: ClassVar[str]
    """The name of the mode in netconfs."""
    ip_versions: ClassVar[tuple[int, ...]] = (4,)
    """The IP versions that the mode carries; its pods get no addresses of others."""
    routed: ClassVar[bool] = False
    """Whether nodes route their blocks of pods' addresses, so that pods of all such modes reach each other."""
    host_routes: ClassVar[bool] = False
    """Whether each pod has a route of its own, so that its node needs no address of the pod's block."""
    needs_parent: ClassVar[bool] = False
    """Whether pods have a subinterface of an interface of the node, and are not reached by the node's address."""

    @property
    def shares_segment(self) -> bool:
        """Whether pods are on the parent's own subnet, among machines that testcni knows nothing of."""
        return False

    @property
    def parent(self) -> str | None:
        """The interface that the netconf names as the parent of the pods' interfaces."""
        return None

    @property
    def tunnel_ports(self) -> tuple[int, ...]:
        """UDP ports where nodes take packets of tunnels, which no pod may send to."""
        return ()

    @property
    def is_default(self) -> bool:
        """Whether the netconf says nothing that differs from the mode's defaults."""
        return self == type(self)()

    @classmethod
    def of(cls, network: Network) -> Self:
        """Return the options of a network of this mode. Raises TypeError for a network of another mode."""
        if not isinstance(network.options, cls):
            raise TypeError(f"network {network.name} is of the mode {network.mode}")
        return network.options


@dataclass(frozen=True, slots=True)
class Network:
    """A network and how its pods are connected: two netconfs with equal values define one network."""

    name: str
    options: ModeOptions
    subnet: Subnet | None = None
    """The subnet of the pods' addresses; None: wherever the node's blocks are."""
    mtu: int | None = None
    """Bytes of a pod's interface; None: that of the interface that holds the node's address."""
    masquerade: bool = True
    range_start: Address | None = None
    range_end: Address | None = None
    spoof_check: bool = True
    """Whether a pod may send only from its own addresses and MAC."""
    pool: str = ""
    """The IPPool that pods of this network asked for by name, which makes it a network of its own; empty: any."""
    transition: tuple[ModeOptions, ...] = ()
    """Options of other routed modes in the same netconf that are not the defaults, by the names of the modes.

    They are in force while the cluster changes from such a mode or to it.
    """

    @property
    def mode(self) -> str:
        """The name of the mode."""
        return self.options.mode

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that its mode carries; its pods get no addresses of others."""
        return self.options.ip_versions

    @property
    def needs_parent(self) -> bool:
        """Whether pods have a subinterface of an interface of the node."""
        return self.options.needs_parent

    @property
    def shared(self) -> bool:
        """Whether pods are on the parent's own subnet, among machines that testcni knows nothing of."""
        return self.options.shares_segment

    @property
    def has_manual_range(self) -> bool:
        """Whether the range of the netconf is all that this node has: nodes have ranges divided by hand."""
        return bool(self.needs_parent and self.subnet and (self.range_start or self.range_end))

    def options_for(self, kind: type[ModeOptions]) -> ModeOptions:
        """Return the options that the netconf has for a mode, whichever mode it names."""
        return next((known for known in (self.options, *self.transition) if type(known) is kind), kind())

    def with_options(self, *options: ModeOptions) -> Network:
        """Return the network in the mode of the first options; those of other modes are for the transition."""
        own, *others = options
        kept = {one.mode: one for one in others if one.routed and one.mode != own.mode and not one.is_default}
        return replace(self, options=own, transition=tuple(kept[mode] for mode in sorted(kept)))

    def in_mode(self, kind: type[ModeOptions]) -> Network:
        """Return the same network in another mode, with the options that its netconf has for that mode."""
        return self.with_options(self.options_for(kind), self.options, *self.transition)


@dataclass(frozen=True, slots=True)
class ParentLink:
    """The parent of pods' interfaces, and what pods must know of their node: the node path finds it out."""

    device: str
    """The parent."""
    hosts: tuple[Address, ...]
    """The node's own addresses that its pods reach past the parent; it speaks to them as the first."""
    gateway: Address | None = None
    via_host: tuple[Subnet, ...] = ()
    reserved: frozenset[Address] = frozenset()
    """Addresses that no pod may have."""


@dataclass(frozen=True, slots=True)
class ExtraRoute:
    """A route of `ipam.routes` for the pod; `gateway` None: by the pod's default gateway."""

    dst: Subnet
    gateway: Address | None = None
