"""The networks of the confs that come into force: no change between modes whose pods don't reach each other.

Pods of all routed modes reach each other, as all have addresses of the nodes' blocks. Pods of modes with a parent
interface are on the parent's own subnet: pods of routed modes do not reach them, and a parent has one mode only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.host.cni_conf_dir import Confs
from agent.model.cluster import Node
from agent.model.network import Network
from agent.model.problem import Problem
from agent.modes.registry import Modes

UNREACHED = "and pods of the two modes don't reach each other"
NAMED = 3  # nodes or pods that a problem names
REMEDY = (
    "put the old mode back into the conf (in Kubernetes: the ConfigMap), or delete all pods of the network, or"
    " uninstall testcni before the new mode is installed (docs/operations/change-mode.md)"
)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The networks in force: those of the confs, and those that pods ask for, unless their mode is refused."""

    networks: frozenset[Network] = frozenset()
    chosen: Mapping[str, Network] = field(default_factory=dict)
    """The network of the conf by its name; where that is refused, the old one, where there is one."""
    refused: frozenset[str] = frozenset()
    """The names of networks whose new mode is refused."""
    problems: tuple[Problem, ...] = ()

    def silent(self, used: Iterable[Network]) -> frozenset[str]:
        """Return the networks that this node announces nothing of, so that others may change their mode.

        That is what all do that wait for the others only, as none of their own pods are on the network.
        """
        return self.refused - {network.name for network in used}


def conflict(one: str, other: str, modes: Modes) -> bool:
    """Return whether pods of two modes of a network can't reach each other: one is routed, one on the subnet."""
    return modes.options[one].routed != modes.options[other].routed


def admit(  # noqa: PLR0913, PLR0917 - what is wanted, and all that speaks against it
    confs: Confs,
    asked: Iterable[Network],
    used: Collection[Network],
    in_force: Iterable[Network],
    peers: Iterable[Node],
    modes: Modes,
) -> Admitted:
    """Return what comes into force; `asked` is what pods ask for now, `in_force` what was at the last look.

    A mode that is in force already is never refused, as nodes that disagree would both end with none.
    """
    established = {(n.name, n.mode) for n in (*used, *in_force, *confs.installed)}
    found = tuple(peers)
    refused, problems = set(), []
    for network in sorted({*confs.chosen.values(), *asked}, key=str):
        why = _against(network, used, found, modes)
        if not why:
            continue
        known = (network.name, network.mode) in established
        if not known:
            refused.add(network)
        problems.append(_problem(network, why, refused=not known))
    return Admitted(
        (confs.networks | frozenset(asked)) - refused,
        _chosen(confs, refused, used),
        frozenset(network.name for network in refused),
        tuple(problems),
    )


def _against(network: Network, used: Iterable[Network], peers: Iterable[Node], modes: Modes) -> str:
    """Return who has the network in a mode whose pods its own would not reach; empty: nobody."""
    here = sorted({n.mode for n in used if n.name == network.name} - {network.mode})
    for mode in here:
        if conflict(network.mode, mode, modes):
            return f"pods on this node are in the mode {mode}, {UNREACHED}"
        if not modes.options[mode].routed:
            return f"pods on this node are in the mode {mode}, and one parent can't have both"
    there: dict[str, list[str]] = {}
    for peer in peers:
        for mode in peer.announced_modes(network.name):
            if mode in modes and conflict(network.mode, mode, modes):
                there.setdefault(mode, []).append(peer.name)
    told = [
        f"node {', '.join(sorted(names)[:NAMED])}{' and others' * (len(names) > NAMED)} announces the mode {mode}"
        for mode, names in sorted(there.items())
    ]
    return f"{'; '.join(told)}, {UNREACHED}" if told else ""


def _problem(network: Network, why: str, *, refused: bool) -> Problem:
    where = f"network {network.name}"
    if refused:
        what = f"the mode {network.mode} is refused, and the old conflist stays in force: {why}"
        return Problem(where, what, REMEDY)
    remedy = "delete the pods that are left of the other mode, so that they are created again"
    return Problem(where, f"the mode is {network.mode}, but {why}", remedy)


def _chosen(confs: Confs, refused: Collection[Network], used: Iterable[Network]) -> dict[str, Network]:
    """Return for each name the conf's network; instead of one that is refused what is installed, or pods have."""
    chosen = {name: network for name, network in confs.chosen.items() if network not in refused}
    names = {network.name for network in refused}
    for old in (*sorted(confs.installed, key=str), *(replace(n, pool="") for n in sorted(used, key=str))):
        if old.name in names and old not in refused:
            chosen.setdefault(old.name, old)
    return chosen
