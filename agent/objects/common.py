"""The node objects that all modes have in common, in the order in which those of one stage are programmed."""

from __future__ import annotations

from agent.objects.base import NodeObject
from agent.objects.bridges import Bridges
from agent.objects.forwarding import Forwarding, UnderlayForwarding
from agent.objects.nft_table import NftTable
from agent.objects.pod_guard_program import PodGuard
from agent.objects.proxy_arp import ProxyArp
from agent.objects.routes import Routes


def common_objects() -> tuple[NodeObject, ...]:
    """Return them, new."""
    return PodGuard(), NftTable(), Bridges(), Forwarding(), Routes(), ProxyArp(), UnderlayForwarding()
