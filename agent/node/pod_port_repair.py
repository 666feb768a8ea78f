"""Compares the ports of all pods with the kernel and repairs them, except those that a call is at work on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel import ip_links
from agent.kernel.netlink import Netlink
from agent.model.problem import Problem
from agent.modes import veth
from agent.modes.base import NodeNotReadyError
from agent.modes.registry import Modes
from agent.objects import pod_guard, pod_port_setup
from agent.objects.base import Context, NodeObject, Result, Stage
from agent.objects.host_kernel import HostKernel
from agent.objects.pod_port import Place, PodPort, PortsInKernel
from agent.objects.state import NodeState

log = logging.getLogger(__name__)


class PodPorts(NodeObject):
    """The node's side of all pods' links, which depend on what was programmed before."""

    kind = "pods"
    stage = Stage.PODS
    costly = True

    def __init__(self, attachments: AttachmentStore, modes: Modes) -> None:
        self._attachments = attachments
        self._modes = modes

    def wanted(self, desired: NodeState) -> object:  # noqa: ARG002 - attachments say it, and they never change
        """Return nothing: what a pod's port should be never changes."""
        return ()

    def sync(self, ctx: Context, desired: NodeState) -> Result:  # noqa: ARG002
        """Repair the ports that differ. Raises OSError."""
        done = repair(ctx.nl, ctx.host, self._attachments, self._modes)
        return Result(tuple(done.problems), changed=done.pods, failed=done.failed, busy=done.busy)


@dataclass
class Repaired:
    """The changes of a comparison, and what it could not change."""

    pods: int = 0
    problems: list[Problem] = field(default_factory=list)
    failed: bool = False
    """Whether something failed that may succeed when it is tried again."""
    busy: bool = False
    """Whether a call was at work on a pod whose port differs; it may be a CHECK, which repairs nothing."""


def repair(nl: Netlink, host: HostKernel, attachments: AttachmentStore, modes: Modes) -> Repaired:
    """Repair the port of each pod that ADD has connected. Raises OSError."""
    done = Repaired()
    _tidy(nl, host, attachments)
    known = [a for a in attachments.all() if a.wired is not None]  # before the kernel is read: it has all of these
    if not known:
        return done
    seen = pod_port_setup.read(nl, host)
    for attachment in known:
        try:
            port = modes.of(attachment.network).port(attachment)
        except NodeNotReadyError as error:  # its file lacks something: the other pods are repaired all the same
            what = f"its link {attachment.link} can't be checked: {error}"
            done.problems.append(Problem(_name(attachment), what, "delete the pod, so that it is created again"))
            continue
        link = seen.links.get(port.link)
        lacking = pod_port_setup.lacking(port, link, seen) if link else []
        if link and not lacking:
            continue
        with attachments.locks.attempt(attachment.key) as held:
            done.busy |= not held
            # a call that was at work meanwhile has made the link what it should be, or removed it
            if held and attachments.get(*attachment.key) is attachment:
                _repair(seen, attachment, port, lacking, done)
    return done


def _tidy(nl: Netlink, host: HostKernel, attachments: AttachmentStore) -> None:
    """Forget what pod_guard knows of pods that are gone. Raises OSError."""
    if (held := host.bpf.current(pod_guard.GUARD)) is None:
        return
    earlier = pod_guard.known(held.maps)  # read first: pods that were added since then stay
    guarded = [veth.guarded(attachment) for attachment in attachments.all()]
    if removed := pod_guard.tidy(held.maps, earlier, (link.index for link in ip_links.links(nl)), guarded):
        log.info("guard: %d entries of pods that are gone removed", removed)


def _repair(
    seen: PortsInKernel, attachment: Attachment, port: PodPort, lacking: list[str], done: Repaired
) -> None:
    """Repair one port while no call can be at work on it."""
    name = _name(attachment)
    try:
        link = ip_links.link(seen.nl, port.link)
        if link is None or link.kind != "veth":
            what = f"its link {port.link} is gone, and {attachment.ifname} with it"
            done.problems.append(Problem(name, what, "delete the pod, so that it is created again"))
            return
        indexes = {known.name: known.index for known in seen.links.values()}
        place = Place(seen.nl, seen.host, link, indexes, seen.earlier, seen.by_pods, seen.permanent)
        pod_port_setup.make(port, place)
    except OSError as error:
        what = f"{'; '.join(lacking)}: {error}"
        done.problems.append(
            Problem(name, what, "it is tried again; see `ip route` and `ip -d link` on this node")
        )
        done.failed = True
        return
    done.pods += 1
    log.warning("%s: repaired: %s", name, "; ".join(lacking))


def _name(attachment: Attachment) -> str:
    return f"pod {attachment.pod or attachment.container_id}"
