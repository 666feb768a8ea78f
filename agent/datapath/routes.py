"""Routes with our protocol number: desired minus actual, and nothing else is ever touched."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from agent.datapath import rtnl
from agent.datapath.netlink import Netlink, NetlinkError, Request
from agent.datapath.state import ROUTE_PROTOCOL, Route
from agent.model import Problem


@dataclass(frozen=True, slots=True)
class Synced:
    """What one comparison changed, and what it could not."""

    added: int = 0
    removed: int = 0
    missing: int = 0
    """How many of the desired routes the kernel does not have in the end."""
    problems: frozenset[Problem] = frozenset()


def read(nl: Netlink, devices: Mapping[int, str]) -> frozenset[Route]:
    """Our routes of both families; `devices` names interfaces by index."""
    return frozenset(
        Route(route.dst, route.gateway, devices.get(route.index, ""), route.metric, route.mtu)
        for version in (4, 6)
        for route in rtnl.routes(nl, version, ROUTE_PROTOCOL)
    )


def sync(nl: Netlink, desired: frozenset[Route], devices: Mapping[int, str]) -> Synced:
    """Make the kernel's routes of our protocol those desired; raises OSError when netlink itself fails."""
    actual = read(nl, devices)
    add, remove = desired - actual, actual - desired
    if not add and not remove:
        return Synced()
    indexes = {name: index for index, name in devices.items()}
    replaced = {(route.dst, route.metric) for route in remove} & {(route.dst, route.metric) for route in add}
    steps: list[tuple[Route, Request]] = []
    problems: set[Problem] = set()
    for route in add:
        if route.device not in indexes:
            problems.add(_problem(route, f"there is no interface {route.device}"))
        elif (route.dst, route.metric) in replaced:
            steps.append((route, rtnl.replace_route(_kernel(route, indexes), ROUTE_PROTOCOL)))
        else:
            steps.append((route, rtnl.add_route(_kernel(route, indexes), ROUTE_PROTOCOL)))
    for route in remove:  # after what may take its place with another metric
        if (route.dst, route.metric) not in replaced:
            steps.append((route, rtnl.delete_route(_kernel(route, indexes), ROUTE_PROTOCOL)))
    errors = nl.batch([request for _route, request in steps])
    failed = {
        route: error
        for (route, _request), error in zip(steps, errors, strict=True)
        if error and not (route in remove and error.errno == errno.ESRCH)
    }
    problems |= {_refused(route, error) for route, error in failed.items()}
    missing = sum(route in failed or route.device not in indexes for route in add)
    removed = sum(route not in failed for route in remove)
    return Synced(len(add) - missing, removed, missing, frozenset(problems))


def _kernel(route: Route, indexes: Mapping[str, int]) -> rtnl.KernelRoute:
    return rtnl.KernelRoute(
        route.dst, route.gateway, indexes.get(route.device, 0), route.metric, onlink=route.onlink, mtu=route.mtu
    )


def _problem(route: Route, what: str, remedy: str = "see `ip route` on this node") -> Problem:
    return Problem(f"route {route}", what, remedy)


def _refused(route: Route, error: NetlinkError) -> Problem:
    if error.errno == errno.EEXIST:
        return _problem(
            route,
            "somebody else's route for this destination stands in its place",
            f"delete it if it is not wanted: ip route del {route.dst}",
        )
    return _problem(route, error.strerror or str(error))
