"""The verbs ADD, DEL, CHECK, GC and STATUS of the CNI specification 1.1."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from agent.cni import netconf, request, result
from agent.cni.detacher import Detacher
from agent.cni.later_plugins import LaterPlugins
from agent.cni.netconf import NetConf
from agent.cni.protocol import Call
from agent.errors import CniError, Code, raise_os
from agent.ipam.assign.add_times import AddTimes
from agent.ipam.assign.assigner import AddressAssigner
from agent.ipam.attachments.attachment import Attachment, link_name
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.ipam.reservations.claims import ReservationClaims
from agent.kernel import link_operations, netlink
from agent.model.cluster import Snapshot
from agent.model.node_status import NO_TIMINGS, Demand, NodeStatus, ReportEvent, Timings, ignore_event
from agent.modes.base import CheckError, NodeNotReadyError, Wired
from agent.modes.registry import Modes
from agent.objects.host_kernel import HostKernel
from agent.runtime.deadline import Deadline
from agent.runtime.observable import Observable

ADD_WITHIN = 28.0  # seconds for all waits of an ADD together; each wait has its own limit, too
READY_WITHIN = 8.0  # seconds that an ADD waits for the node path to repair what a pod's wiring needs
SINCE: Mapping[str, str] = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

log = logging.getLogger(__name__)


class CniHandler:
    """The pod path: from a call of the plugin to the kernel and back."""

    def __init__(  # noqa: PLR0913 - what the verbs need, each from another part
        self,
        host: HostKernel,
        attachments: AttachmentStore,
        status: Observable[NodeStatus],
        demand: Observable[Demand],
        timings: Timings = NO_TIMINGS,
        *,
        claims: ReservationClaims | None = None,
        later: LaterPlugins | None = None,
        snapshot: Observable[Snapshot] | None = None,
        report_event: ReportEvent = ignore_event,
        times: AddTimes | None = None,
        modes: Modes,
    ) -> None:
        """`claims` reserves addresses; None: pods' annotations are not read.

        `later`: the effects of plugins after testcni; None: there are none.
        `snapshot`: the cluster, whose pools say which namespaces may request their addresses; None: there is none.
        `report_event` takes Events about pods.
        """
        self._host = host
        self._modes = modes
        self._attachments = attachments
        self._locks = attachments.locks
        self._timings = timings
        self._assigner = AddressAssigner(
            attachments,
            status,
            demand,
            claims,
            reaper=host.reaper,
            snapshot=snapshot,
            report_event=report_event,
            times=times,
        )
        self._detacher = Detacher(host, attachments, modes)
        self._later = later or LaterPlugins()
        self._verbs: dict[str, Callable[[Call, NetConf], dict[str, Any]]] = {
            "ADD": self.add,
            "CHECK": self.check,
            "GC": self.gc,
            "STATUS": self.status,
        }

    def recover(self) -> None:
        """After a restart, remove incomplete attachments, before the first call. Raises OSError."""
        self._detacher.recover()

    def answer(self, call: Call) -> dict[str, Any]:
        """Return the result of a call, `{}` if its verb has none. Raises CniError."""
        began, network_mode, outcome = time.monotonic(), "", "ok"
        try:
            if call.command == "DEL":
                network, network_mode = netconf.deleting(call.config, self._modes)
                return self.delete(call, network)
            conf = self._read(call)
            network_mode = conf.network.mode
            return self._verbs[call.command](call, conf)
        except BaseException as error:
            outcome = str(int(request.error_code(error)))
            raise
        finally:
            self._timings.call(call.command, network_mode, outcome, time.monotonic() - began)

    def _read(self, call: Call) -> NetConf:
        """Return the netconf of a call whose verb exists in its CNI version. Raises CniError."""
        if call.command not in self._verbs:
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_COMMAND: {call.command!r} is no verb of CNI")
        conf = netconf.read(call.config, call.args, self._modes)
        since = SINCE.get(call.command, "0")
        if conf.cni_version < since:
            raise CniError(
                Code.INCOMPATIBLE_VERSION,
                f"{call.command} does not exist in CNI {conf.cni_version}",
                f"cniVersion {since} or later has it",
            )
        return conf

    def add(self, call: Call, conf: NetConf) -> dict[str, Any]:
        """Connect a pod, or return the result of an earlier ADD if it is intact. A failure leaves nothing."""
        deadline = Deadline.after(ADD_WITHIN)
        pod_netns, key = request.pod_netns(call), request.attachment_key(call)
        self._later.check_mac(conf)
        with self._locks.hold(key):
            self._refuse_unreadable(link_name(*key))
            earlier = self._attachments.get(*key)
            if earlier and (wired := self._still_wired(earlier, conf, pod_netns)):
                return result.render(conf, wired)
            wanted = request.address_request(call, conf, egress_limited=self._later.limits_egress(conf))
            attachment = self._assigner.assign(wanted, deadline)
            return self._connect(attachment, conf, pod_netns, deadline)

    def _refuse_unreadable(self, link: str) -> None:
        """Raise CniError 11 for an attachment that exists, but whose file cannot be used."""
        for entry in self._attachments.unreadable():
            if entry.link == link:
                raise CniError(Code.TRY_AGAIN, str(entry.problem()), "the runtime deletes this container first")

    def _still_wired(self, earlier: Attachment, conf: NetConf, pod_netns: int) -> Wired | None:
        """Return what an earlier ADD wired here if it is still intact; else remove it. Raises CniError."""
        try:
            if earlier.wired is not None and earlier.network.name == conf.network.name:
                wired = cast("Wired", earlier.wired)
                self._modes.of(earlier.network).check(self._host, earlier, wired, pod_netns)
                return wired
        except (CheckError, OSError) as error:
            log.warning("%s %s is connected again: %s", *earlier.key, error)
        container = earlier.container_id
        if earlier.network.name != conf.network.name and earlier.wired is not None:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"container {container} has {earlier.ifname} on network {earlier.network.name!r} already",
                "give each network of a container an interface name of its own",
            )
        self._detacher.remove(earlier)
        return None

    def _connect(
        self, attachment: Attachment, conf: NetConf, pod_netns: int, deadline: Deadline
    ) -> dict[str, Any]:
        """Wire a pod that has its addresses, and return the result of ADD. Raises CniError."""
        try:
            wired = self._wire(attachment, conf, pod_netns, deadline)
            link_operations.wait_running(netlink.host(), attachment.link)
            answer = result.render(conf, wired)
            self._attachments.finish(attachment, wired)
        except BaseException as error:
            self._detacher.undo(attachment)
            if isinstance(error, OSError):
                raise_os(error, f"connecting {attachment.ifname} of container {attachment.container_id}")
            raise
        addresses = " ".join(str(lease.address) for lease in attachment.leases)
        log.info("added %s %s %s to %s: %s", attachment.pod, *attachment.key, conf.network.name, addresses)
        return answer

    def _wire(self, attachment: Attachment, conf: NetConf, pod_netns: int, deadline: Deadline) -> Wired:
        """Wire a pod; wait while the node path repairs what the wiring needs. Raises CniError, OSError."""
        pod_mode, end = self._modes.of(conf.network), deadline.within(READY_WITHIN)
        while True:
            try:
                return pod_mode.wire(self._host, attachment, pod_netns, conf.routes)
            except NodeNotReadyError as error:
                if end.passed:
                    raise CniError(Code.TRY_AGAIN, str(error), "see `testcnictl status` on the node") from error
                pod_mode.unwire(self._host, attachment)
                time.sleep(0.05)  # the kernel notifies the node path, which repairs it

    def delete(self, call: Call, network: str) -> dict[str, Any]:
        """Disconnect a pod. It is no error if it is not connected, or connected to another network."""
        container_id, ifname = key = request.attachment_key(call)
        with self._locks.hold(key):
            attachment = self._attachments.get(*key)
            if attachment and network and attachment.network.name != network:
                return {}
            try:
                if call.journaled is not None and self._attachments.written(*key) >= call.journaled:
                    log.warning("a journaled DEL of %s %s is older than the attachment, and is ignored", *key)
                elif attachment:
                    self._detacher.remove(attachment)
                    self._attachments.forget(attachment.link)
                    log.info("deleted %s %s %s", attachment.pod, *key)
                else:
                    self._detacher.remove_unknown(link_name(*key), network)
            except OSError as error:
                raise_os(error, f"disconnecting {ifname} of container {container_id}")
        return {}

    def check(self, call: Call, conf: NetConf) -> dict[str, Any]:
        """Compare the kernel and prevResult with the result of ADD. Raises CniError."""
        pod_netns = request.pod_netns(call)
        container_id, ifname = key = request.attachment_key(call)
        with self._locks.hold(key):
            attachment = self._attachments.get(*key)
            if attachment is None or attachment.wired is None:
                raise CheckError(f"no {ifname} of container {container_id} is known here")
            wired = cast("Wired", attachment.wired)
            result.check_previous(conf, wired)
            try:
                self._modes.of(attachment.network).check(self._host, attachment, wired, pod_netns)
            except OSError as error:
                raise_os(error, f"checking {ifname} of container {container_id}")
        return {}

    def gc(self, _call: Call, conf: NetConf) -> dict[str, Any]:
        """Remove every attachment of this network that the runtime does not list as valid. Raises CniError."""
        network, valid = conf.network.name, conf.valid_attachments
        if valid is None:
            log.warning("GC of %s without cni.dev/valid-attachments: nothing is removed", network)
            return {}
        valid_links = frozenset(itertools.starmap(link_name, valid))
        failures = [
            *self._detacher.remove_invalid(network, valid),
            *self._detacher.remove_unreadable(network, valid_links),
            *self._detacher.remove_orphans(network, valid_links),
        ]
        if failures:
            raise CniError(
                Code.KERNEL,
                f"some attachments could not be removed: {'; '.join(failures)}",
                "the runtime can repeat GC",
            )
        return {}

    def status(self, _call: Call, conf: NetConf) -> dict[str, Any]:
        """Succeed if and only if an ADD would succeed now. Raises CniError."""
        self._later.check_unseen_mac(conf)
        self._assigner.check_available(conf.network)
        return {}
