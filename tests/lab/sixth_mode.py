"""An agent with a sixth mode, p2p: it is this file and one entry in the registry, and the agent is not changed.

Pods have a veth pair and a /32 each, and nodes route each other's blocks. docs/development/how-to-add.md uses it
as the example of a new mode, and tests/lab/paths.py tests it like the others.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from agent import cli
from agent.codec import json_fields
from agent.ipam.attachments.attachment import Attachment
from agent.kernel import netlink
from agent.model.network import ExtraRoute, ModeOptions
from agent.modes import masquerade, mode_choice, peer_routes, routable_blocks, underlay, veth
from agent.modes.base import ConfFields, Mode, ModeContext, Wired
from agent.modes.registry import BUILT_IN, Modes
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import PodPort
from agent.objects.state import NodeState

MTU = 1500


@dataclass(frozen=True, slots=True)
class P2pOptions(ModeOptions):
    """The options of the mode `p2p`."""

    mode: ClassVar[str] = "p2p"
    routed: ClassVar[bool] = True
    host_routes: ClassVar[bool] = True

    peer_metric: int = 0
    """The metric of routes to peers."""


class P2p(Mode):
    """The mode `p2p`."""

    options = P2pOptions

    def parse_options(self, given: ConfFields) -> P2pOptions:
        """Return the options that a netconf gives. Raises CniError 7."""
        metric = partial(json_fields.number, low=0, high=(1 << 31) - 1)
        return P2pOptions(peer_metric=given.top.take("peerMetric", metric, 0))

    def desired(self, view: ModeContext) -> NodeState:
        """A route to each peer's block by the peer's address."""
        settled = routable_blocks.settle(view)
        view = settled.view
        metric, home = P2pOptions.of(view.network).peer_metric, underlay.home(view, underlay.chosen(view))
        if not (view.blocks and home):
            return NodeState(problems=settled.problems, refused=settled.refused)
        routes, problems = peer_routes.plain_routes(view)
        return NodeState(
            routes=frozenset(replace(route, metric=metric) for route in routes),
            masquerade=masquerade.desired(view, nodes=True),
            forwarding=frozenset({4}),
            problems=problems | settled.problems,
            refused=settled.refused,
            loose_rp_filter_on=mode_choice.loose_rp_filter_on(view),
            guards=frozenset({(home.device, view.network.spoof_check)}),
        )

    def port(self, attachment: Attachment) -> PodPort:
        """A link with a route to the pod."""
        return veth.routed_port(attachment)

    def wire(
        self, host: HostKernel, attachment: Attachment, netns_fd: int, routes: tuple[ExtraRoute, ...]
    ) -> Wired:
        """A veth pair with a route to the pod, and a default route by 169.254.1.1 in the pod."""
        mtu = attachment.network.mtu or MTU
        netlink.host().request(veth.create_veth(attachment, netns_fd, mtu))
        veth.make_port(host, self.port(attachment))
        return veth.routed(attachment, mtu, veth.wire_routed_end(host, netns_fd, attachment, routes))

    def check(self, host: HostKernel, attachment: Attachment, wired: Wired, netns_fd: int) -> None:
        """Both ends of the veth pair, addresses and routes are as `wire` made them."""
        veth.check_routed(attachment, wired, veth.check_port(host, self.port(attachment)), netns_fd)

    def unwire(self, host: HostKernel, attachment: Attachment) -> None:
        """Delete the host's end; all else goes with it."""
        veth.remove_port(host, attachment)


MODES = Modes(*BUILT_IN, P2p())

if __name__ == "__main__":
    sys.exit(cli.main(modes=MODES))
