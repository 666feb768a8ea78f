"""What all objects that the node path programs have in common: one context, one result, one `sync`."""

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
from agent.objects.route_ownership import OURS, Ownership
from agent.objects.state import AcceptedSources, LocalAddress, NodeState, united


class Stage(IntEnum):
    """When an object is programmed in a round; objects of one stage keep the order in which they are listed."""

    GUARDS = 0
    """Before what they guard."""
    DEVICES = 1
    FORWARDING = 2
    """Once the devices are there whose packets are forwarded."""
    ROUTES = 3
    ANNOUNCEMENTS = 4
    """Once the node knows the routes that it announces."""
    CHECKS = 5
    """What is only looked at."""
    PODS = 6
    """The node's side of pods' links, which hang on all before."""
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
    """What guards must go on to guard, as a device is still there that is to go."""

    sources: AcceptedSources = field(default_factory=dict)
    """What packets of an IP protocol are accepted from, where a device is left that takes those of any source."""
    tunnel_ports: bool = False
    """Whether a device takes packets of a tunnel at a UDP port that pods must not send to."""

    def __or__(self, other: Guarded) -> Guarded:
        return Guarded(united((self.sources, other.sources)), self.tunnel_ports or other.tunnel_ports)


@dataclass(frozen=True, slots=True)
class Context:
    """What the objects of a round are programmed with; the same for all of them."""

    nl: Netlink
    kernel: KernelState
    """As it was before the round."""
    host: HostKernel
    is_made: Callable[[Link], bool]
    """Whether testcni made a link, for a pod or for the node."""
    ownership: Ownership = OURS
    """Which routes are ours."""
    node_addresses: frozenset[Address] = frozenset()
    """The node's InternalIPs."""
    verify: bool = True
    """Whether somebody else may have changed something, so that all is looked at, however long it takes."""
    failed: frozenset[str] = frozenset()
    """The kinds of which something failed in this round so far."""
    still_guarded: Guarded = field(default_factory=Guarded)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one object in a round."""

    problems: tuple[Problem, ...] = ()
    unready: frozenset[str] = frozenset()
    """Devices that pods can't hang on."""
    changed: int = 0
    """How many things were not as desired and now are."""
    programmed: int = 0
    """How many of the desired things are in the kernel, of objects that count them."""
    failed: bool = False
    """Whether something failed that may succeed when it is tried again."""
    busy: bool = False
    """Whether something was left alone that is to be looked at again soon."""

    @classmethod
    def lacking(cls, device: str, *problems: Problem) -> Result:
        """Return that pods can't hang on a device, because of these problems; without any, that all is well."""
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
    """Something that the node path programs on the node: the desired state minus what the kernel has."""

    kind: ClassVar[str]
    """What metrics and problems call it."""
    stage: ClassVar[Stage]
    costly: ClassVar[bool] = False
    """Whether it is looked at only where others may have changed something, or something else is desired."""

    @abstractmethod
    def wanted(self, desired: NodeState) -> object:
        """Return the part of the desired state that it makes: while that is the same, a change was another's."""

    @abstractmethod
    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Make the kernel's state the desired one. Raises OSError, which is reported and tried again."""


class DeviceObject(NodeObject):
    """A device that a mode makes, and what belongs to it; its guards are there before it, and go after it."""

    stage = Stage.DEVICES

    @abstractmethod
    def is_ours(self, link: Link) -> bool:
        """Whether testcni made this link as the mode's device."""

    @abstractmethod
    def leaves(self, desired: NodeState) -> bool:
        """Whether what is guarded is to go."""

    @abstractmethod
    def still_guarded(self, ctx: Context, desired: NodeState) -> Guarded:
        """Return what stays guarded, as it is to go and is still there. Raises OSError."""

    @abstractmethod
    def closed(self) -> Guarded:
        """Return what stays guarded while it is unknown whether the device is left: nothing is accepted."""

    def encapsulates(self) -> bool:
        """Whether the device itself encapsulates on this node; else eBPF programs do. Raises OSError."""
        return True

    def tidy(self, ctx: Context, desired: NodeState) -> None:
        """Remove what packets needed on the former routes. Raises OSError."""
