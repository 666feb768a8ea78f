"""The protocol number of the node's routes, and what is still there by an earlier one.

The number changes by an upgrade, by the option, by a rollback. Routes of the earlier number are taken over in the
first round, each by one replacement. A file in the run-dir notes the numbers in use; both go at a reboot.
"""

from __future__ import annotations

import logging
from pathlib import Path

from agent.codec import strict_json
from agent.ip import Subnet
from agent.kernel.ip_routes import RTPROT_BOOT
from agent.model.marks import ROUTE_PROTOCOL
from agent.objects.route_ownership import RouteOwnership
from agent.options import ROUTE_PROTOCOLS
from agent.runtime import atomic_file, json_state_file

FIRST_PROTOCOL = 84  # of versions that noted no number; in iproute2 6.15 it became OVN's
FILE = "route-protocol.json"

log = logging.getLogger(__name__)


class RouteMarks:
    """The marks of our routes, before and after the first round in which all of them became desired ones."""

    def __init__(self, run_dir: Path | None, protocol: int) -> None:
        self._file = run_dir / FILE if run_dir else None
        self._protocol = protocol
        self._noted = _noted(run_dir) if run_dir else ()
        self._left = frozenset(_used(run_dir) if run_dir else ()) - {protocol}
        """Numbers that the agents before this one used, as far as that is known."""
        # the others are looked at as well: of an old version that ran here for a while nothing is known
        self._earlier = (self._left | {FIRST_PROTOCOL, ROUTE_PROTOCOL}) - {protocol}

    def ownership(self, pods: frozenset[Subnet]) -> RouteOwnership:
        """Return how our routes are known now; `pods` is where pods' addresses are in this cluster."""
        self._note(self._protocol, *sorted(self._left))  # before there is a route of a new number
        return RouteOwnership(self._protocol, self._earlier, pods if self._left else frozenset())

    def settled(self) -> None:
        """Every route of ours has our number now: no other number is looked at from here on."""
        self._left = self._earlier = frozenset()
        self._note(self._protocol)

    def _note(self, *numbers: int) -> None:
        if self._file and self._noted != numbers and json_state_file.write(self._file, {"protocols": numbers}):
            self._noted = numbers


def of_pods(protocol: int) -> int:
    """The number of the routes to single pods: an earlier version removes those that have its own."""
    return RTPROT_BOOT if protocol == FIRST_PROTOCOL else protocol


def in_use(run_dir: Path, protocol: int) -> tuple[int, ...]:
    """The numbers by which our routes may be known on this node; `protocol` where nothing says another."""
    return _noted(run_dir) or tuple(dict.fromkeys((protocol, *_used(run_dir))))


def _used(run_dir: Path) -> tuple[int, ...]:
    """The numbers of agents that ran since the node started."""
    if noted := _noted(run_dir):
        return noted
    return (FIRST_PROTOCOL,) if (run_dir / "attachments").exists() else ()


def _noted(run_dir: Path) -> tuple[int, ...]:
    path = run_dir / FILE
    try:
        numbers = strict_json.mapping(atomic_file.read(path))["protocols"]
        if not all(isinstance(number, int) and number in ROUTE_PROTOCOLS for number in numbers):
            raise ValueError(f"no protocol numbers: {numbers!r}")
        return tuple(numbers)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s can't be used, so routes of an earlier number may stay: %r", path, error)
        return ()
