"""The part of BIRD's configuration that follows from the cluster; the rest is in the options file."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.model.problem import Problem
from agent.modes.ipip.bird.options import BgpOptions, Labels
from agent.modes.ipip.bird.types import BirdConfig, External
from agent.objects.state import Section


@dataclass(frozen=True, slots=True)
class BirdPlan(Section):
    """The sessions with other nodes, and the blocks of this one."""

    config: BirdConfig
    """The configuration with the default options: without passwords and external routers."""
    labels: Labels = ()
    """The labels of this node: the options file selects by them the nodes with a session to an external router."""

    def join(self, other: BirdPlan) -> tuple[BirdPlan, frozenset[Problem]]:
        """Return one BIRD for both networks."""
        return replace(self, config=self.config.join(other.config)), frozenset()

    def with_options(self, options: BgpOptions) -> tuple[BirdConfig, tuple[Problem, ...]]:
        """Return the whole configuration, and which external routers are left out and why."""
        config = self.config
        nodes = {config.address: config.node, **{peer.address: peer.name for peer in config.peers}}
        routers = [router.external for router in options.routers if router.selects(self.labels)]
        kept = tuple(external for external in routers if external.address not in nodes)
        problems = tuple(_of_a_node(one, nodes[one.address]) for one in routers if one.address in nodes)
        return replace(config, asn=options.asn, password=options.password, externals=kept), problems


def _of_a_node(external: External, node: str) -> Problem:
    return Problem(
        f"external peer {external.address}",
        f"is the address of node {node}",
        "name the router's own address",
    )
