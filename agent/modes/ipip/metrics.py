"""Metrics and status report of the mode `ipip`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, Metric

from agent.modes.ipip.bird.types import BirdStatus
from agent.runtime.metric_families import counter, gauge


def families(bird: BirdStatus, counted: Callable[[], Mapping[str, int]]) -> Iterator[Metric]:
    """Yield what BIRD does, and the packets by their fate as `counted` returns them, or raises OSError."""
    yield from _bird(bird)
    try:
        fates: dict[tuple[str, ...], float] = {(fate,): number for fate, number in counted().items()}
    except OSError:
        fates = {}
    yield counter("ipip_packets", "Packets of the mode ipip by their fate", ["fate"], fates)


def _bird(bird: BirdStatus) -> Iterator[Metric]:
    """Sums over all sessions: a series for each would be as many as nodes, on each node."""
    yield gauge("bird_running", "Whether BIRD runs and answers", [], {(): bird.running})
    starts = CounterMetricFamily("testcni_bird_starts", "How often this agent has started BIRD")
    starts.add_metric([], bird.starts)
    yield starts
    states: dict[tuple[str, ...], float] = {(state.value,): number for state, number in bird.by_state().items()}
    yield gauge("bgp_sessions", "BGP sessions", ["state"], states)
    routes: dict[tuple[str, ...], float] = {
        ("imported",): sum(session.imported for session in bird.sessions),
        ("exported",): sum(session.exported for session in bird.sessions),
    }
    yield gauge("bgp_routes", "Routes of all BGP sessions", ["direction"], routes)
    yield gauge("bird_kernel_routes", "Routes that BIRD has in the kernel", [], {(): bird.kernel_routes})


def bgp(bird: BirdStatus) -> dict[str, Any] | None:
    """Return the state of BIRD and of its sessions, as JSON; None where there is no BIRD."""
    if not bird.running:
        return None
    return {
        "version": bird.version,
        "pid": bird.pid,
        "starts": bird.starts,
        "kernelRoutes": bird.kernel_routes,
        "sessionsByState": {state.value: number for state, number in bird.by_state().items() if number},
        "sessions": [
            {
                "peer": session.peer,
                "state": session.state.value,
                "imported": session.imported,
                "exported": session.exported,
                "error": session.error,
            }
            for session in bird.sessions
        ],
    }


def summary(bird: BirdStatus) -> Iterator[str]:
    """Yield a line about BIRD where it runs."""
    if bird.running:
        states = ", ".join(f"{number} {state.value}" for state, number in bird.by_state().items() if number)
        yield f"BIRD {bird.version}: {bird.kernel_routes} routes in the kernel, sessions: {states or 'none'}"
