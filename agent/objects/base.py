"""The base of all node objects: one context, one result, one `sync`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from agent.ip import Address
from agent.kernel.ip_addresses import LinkAddress
from agent.kernel.ip_links import Link
from agent.kernel.netlink import Netlink
from agent.model.problem import Problem
from agent.objects.host_kernel import HostKernel
from agent.objects.route_ownership import OURS, RouteOwnership
from agent.objects.state import AcceptedSources, LocalAddress, NodeState, united


class Stage(IntEnum):
    """The step of a round in which an object is programmed; in one stage, objects run in the order of the list."""

    GUARDS = 0
    """Objects that are there before the devices that they guard."""
    DEVICES = 1
    FORWARDING = 2
    """Objects for which the devices must be there whose packets are forwarded."""
    ROUTES = 3
    ANNOUNCEMENTS = 4
    """Objects for which the node must know the routes that it announces."""
    CHECKS = 5
    """Objects that are only read."""
    PODS = 6
    """The node's side of pods' links, which depend on all before."""
    DAEMONS = 7
    """Programs that use the devices and addresses that are there by then."""


@dataclass(frozen=True, slots=True)
class KernelState:
    """Links and addresses as they are, and which of the addresses are the node's own."""

    links: Sequence[Link]
    addresses: Sequence[LinkAddress]
    local: tuple[LocalAddress, ...] = ()
    routers: frozenset[Address] = frozenset()
    """The gateways of the default routes."""
    default_devices: frozenset[str] = frozenset()
    """Interfaces of the IPv4 default route."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """All that guards must still guard, because a device that is not wanted any more still exists."""

    sources: AcceptedSources = field(default_factory=dict)
    """The accepted sources of packets by IP protocol, where a device is left that takes packets of any source."""
    tunnel_ports: bool = False
    """Whether a device takes packets of a tunnel at a UDP port that pods must not send to."""

    def __or__(self, other: Guarded) -> Guarded:
        return Guarded(united((self.sources, other.sources)), self.tunnel_ports or other.tunnel_ports)


@dataclass(frozen=True, slots=True)
class Context:
    """The input of all objects of a round, beside the desired state."""

    nl: Netlink
    kernel: KernelState
    """The kernel's state before the round."""
    host: HostKernel
    is_made: Callable[[Link], bool]
    """Whether testcni made a link, for a pod or for the node."""
    ownership: RouteOwnership = OURS
    """The marks by which routes are ours."""
    node_addresses: frozenset[Address] = frozenset()
    """The node's InternalIPs."""
    verify: bool = True
    """Whether another program may have changed something, so that costly objects are read, too."""
    failed: frozenset[str] = frozenset()
    """The kinds of which something failed in this round so far."""
    still_guarded: Guarded = field(default_factory=Guarded)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one object in a round."""

    problems: tuple[Problem, ...] = ()
    unready: frozenset[str] = frozenset()
    """Devices that pods can't depend on."""
    changed: int = 0
    """The number of things that were changed to the desired state."""
    programmed: int = 0
    """The number of the desired things that are in the kernel, of objects that count them."""
    failed: bool = False
    """Whether something failed that is to be retried."""
    busy: bool = False
    """Whether something was skipped that is to be checked again soon."""

    @classmethod
    def lacking(cls, device: str, *problems: Problem) -> Result:
        """Return that pods can't depend on a device, because of these problems; without any, that all is well."""
        return cls(problems, frozenset({device}), failed=True) if problems else cls()

    def __add__(self, other: Result) -> Result:
        return Result(
            self.problems + other.problems,
            self.unready | other.unready,
            self.changed + other.changed,
            self.programmed + other.programmed,
            self.failed or other.failed,
            self.busy or other.busy,
        )


class NodeObject(ABC):
    """One kind of thing that the node path programs: it makes the kernel match the desired state."""

    kind: ClassVar[str]
    """Its name in metrics and problems."""
    stage: ClassVar[Stage]
    costly: ClassVar[bool] = False
    """Whether it is read only if others may have changed something, or the desired state has changed."""

    @abstractmethod
    def wanted(self, desired: NodeState) -> object:
        """Return its part of the desired state: while this stays the same, changes are drift."""

    @abstractmethod
    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Change the kernel to the desired state. Raises OSError, which becomes a problem and is retried."""


class DeviceObject(NodeObject):
    """A device of a mode, and what belongs to it; its guards exist before it, and are removed after it."""

    stage = Stage.DEVICES

    @abstractmethod
    def is_ours(self, link: Link) -> bool:
        """Return whether testcni made this link as the mode's device."""

    @abstractmethod
    def leaves(self, desired: NodeState) -> bool:
        """Return whether the guarded device is to be removed."""

    @abstractmethod
    def still_guarded(self, ctx: Context, desired: NodeState) -> Guarded:
        """Return what stays guarded, as it is to go and is still there. Raises OSError."""

    @abstractmethod
    def closed(self) -> Guarded:
        """Return what stays guarded while it is unknown whether the device is left: nothing is accepted."""

    def encapsulates(self) -> bool:
        """Return whether the device itself encapsulates on this node; else eBPF programs do. Raises OSError."""
        return True

    def tidy(self, ctx: Context, desired: NodeState) -> None:
        """Remove what only the old routes needed. Raises OSError."""
