"""Routes with our protocol number: desired minus actual, and nothing else is ever touched."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from agent.ip import Subnet
from agent.kernel import ip_links, ip_routes
from agent.kernel.ip_routes import KernelRoute
from agent.kernel.netlink import Netlink, NetlinkError, Request
from agent.model.marks import LINK_PREFIX
from agent.model.problem import Problem
from agent.objects import bridge_paths
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.route_ownership import RouteOwnership
from agent.objects.state import NodeState, Route

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Synced:
    """The changes of one comparison, and its problems."""

    added: int = 0
    removed: int = 0
    missing: int = 0
    """The number of the desired routes that the kernel does not have in the end."""
    problems: frozenset[Problem] = frozenset()


def _read(nl: Netlink, protocol: int) -> list[KernelRoute]:
    """Return the routes of a protocol, of both families and all kinds. Raises OSError."""
    return [route for version in (4, 6) for route in ip_routes.routes(nl, version, protocol, ip_routes.RTN_ANY)]


def _known(found: Iterable[KernelRoute], devices: Mapping[int, str]) -> frozenset[Route]:
    """Return the routes that lead somewhere, but those to single pods, which are of their ports.

    `devices` names interfaces by index; one that is not there is a pod's whose ADD is at work.
    """
    return frozenset(
        Route(route.dst, route.gateway, devices[route.index], route.metric, route.mtu, route.onlink)
        for route in found
        if route.leads and route.index in devices and not devices[route.index].startswith(LINK_PREFIX)
    )


def _make(
    nl: Netlink,
    desired: frozenset[Route],
    devices: Mapping[int, str],
    ownership: RouteOwnership,
    own_devices: Collection[str] = (),
) -> Synced:
    """Make the kernel's routes of our protocol those desired; raises OSError when netlink itself fails.

    `own_devices` are links that testcni made.
    """
    there = _read(nl, ownership.protocol)
    stopped = _delete_those_without_way(nl, there, ownership.protocol)
    actual = _known(there, devices)
    surplus = dict.fromkeys(actual - desired, ownership.protocol)
    for protocol in sorted(ownership.earlier):
        found = _known(_read(nl, protocol), devices)
        surplus.update(dict.fromkeys(_inherited(found, desired, ownership, own_devices), protocol))
    lacking = desired - actual
    if not lacking and not surplus:
        return Synced(removed=stopped)
    indexes = {name: index for index, name in devices.items()}
    replaced = _places(surplus) & _places(lacking)
    possible = [route for route in lacking if route.device in indexes]
    gone = [route for route in surplus if (route.dst, route.metric) not in replaced]
    requests = [
        *(_add(_kernel(r, indexes), ownership.protocol, replace=(r.dst, r.metric) in replaced) for r in possible),
        # after what may take its place with another metric
        *(ip_routes.delete_route(_kernel(route, indexes), surplus[route]) for route in gone),
    ]
    errors = nl.batch(requests)
    refused = {route: error for route, error in zip(possible, errors, strict=False) if error}
    stuck = {
        route: error
        for route, error in zip(gone, errors[len(possible) :], strict=True)
        if error and error.errno != errno.ESRCH
    }
    problems = {_problem(r, f"there is no interface {r.device}") for r in lacking if r.device not in indexes}
    problems |= {_refused(route, error) for route, error in (*refused.items(), *stuck.items())}
    missing = len(lacking) - len(possible) + len(refused)
    return Synced(len(lacking) - missing, stopped + len(surplus) - len(stuck), missing, frozenset(problems))


def _delete_those_without_way(nl: Netlink, there: Iterable[KernelRoute], protocol: int) -> int:
    """Delete routes of our number that we never make: those that reject packets, or have several ways.

    One may stand in the place of a route to a peer or a pod. Returns how many there were. Raises OSError.
    """
    steps = [ip_routes.delete_route(route, protocol) for route in there if not route.leads]
    for error in nl.batch(steps):
        if error and error.errno != errno.ESRCH:
            raise error
    return len(steps)


def _inherited(
    found: Iterable[Route], desired: frozenset[Route], ownership: RouteOwnership, own_devices: Collection[str]
) -> Iterator[Route]:
    """Routes of an earlier number that are ours: by a link that we made, or to pods of the cluster."""
    wanted = _places(desired)
    for route in found:
        to_pods = route.gateway is not None and any(_within(route.dst, pods) for pods in ownership.pods)
        if to_pods or route.device in own_devices or (route.dst, route.metric) in wanted:
            yield route


def _within(dst: Subnet, subnet: Subnet) -> bool:
    return dst.version == subnet.version and bool(dst.subnet_of(subnet))  # type: ignore[arg-type]


def _places(routes: Iterable[Route]) -> set[tuple[Subnet, int]]:
    """The key of a route in the kernel: destination and metric."""
    return {(route.dst, route.metric) for route in routes}


def _add(route: ip_routes.KernelRoute, protocol: int, *, replace: bool) -> Request:
    return ip_routes.replace_route(route, protocol) if replace else ip_routes.add_route(route, protocol)


def _kernel(route: Route, indexes: Mapping[str, int]) -> ip_routes.KernelRoute:
    return ip_routes.KernelRoute(
        route.dst, route.gateway, indexes.get(route.device, 0), route.metric, onlink=route.onlink, mtu=route.mtu
    )


def _problem(route: Route, what: str, remedy: str = "see `ip route` on this node") -> Problem:
    return Problem(f"route {route}", what, remedy)


def _refused(route: Route, error: NetlinkError) -> Problem:
    if error.errno == errno.EEXIST:
        return _problem(
            route,
            "another program's route has this destination",
            f"delete it if it is not wanted: ip route del {route.dst}",
        )
    return _problem(route, error.strerror or str(error))


class Routes(NodeObject):
    """Routes to peers and to single pods of other blocks, and those by which the node takes its own packets."""

    kind = "routes"
    stage = Stage.ROUTES

    def wanted(self, desired: NodeState) -> object:
        """Return the routes."""
        return desired.routes

    def sync(self, ctx: Context, desired: NodeState) -> Result:
        """Make the routes of our protocol those desired. Raises OSError."""
        there = ip_links.links(ctx.nl)
        ours = (link for link in there if link.name in desired.made and link.up)
        restored = bridge_paths.repair_local(ctx.nl, ours) if ctx.verify else 0
        devices = {link.index: link.name for link in there}
        made = {link.name for link in there if ctx.is_made(link)}
        synced = _make(ctx.nl, desired.routes, devices, ctx.ownership, made)
        if synced.added or synced.removed:
            log.info("routes: %d added, %d removed", synced.added, synced.removed)
        return Result(
            tuple(sorted(synced.problems, key=str)),
            changed=synced.added + synced.removed + restored,
            programmed=len(desired.routes) - synced.missing,
            failed=bool(synced.problems),
        )
