"""Whether an agent lives, and whether its node takes pods: answers with their reasons, one a line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from threading import Thread

from agent.node.confs import Confs
from agent.node.install import Installer
from agent.observe.http import Page
from agent.shared import NodeStatus


def alive(parts: Iterable[Thread]) -> Page:
    """Whether every part's thread lives."""
    return _page([f"{part.name} has ended" for part in parts if not part.is_alive()])


def ready(status: NodeStatus, confs: Confs, installer: Installer | None) -> Page:
    """Whether the node path is synced, the confs' networks are prepared and the conflist is where it should be."""
    reasons = []
    if not status.synced:
        reasons.append("the datastore has not been read completely yet")
    for name in sorted(network.name for network in confs.networks if not status.blocks.get(network)):
        reasons.append(f"network {name} is not prepared")
    if installer and installer.lacking:
        reasons.append(installer.lacking)
    if reasons:  # what stands behind them; a problem alone does not make a node unready
        reasons += map(str, status.problems)
    return _page(reasons)


def _page(reasons: Sequence[str]) -> Page:
    if reasons:
        return Page("".join(f"{reason}\n" for reason in reasons).encode(), status=HTTPStatus.SERVICE_UNAVAILABLE)
    return Page(b"ok\n")
