"""ADD, DEL, CHECK, GC and STATUS as the CNI specification 1.1 says, each a list of steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from agent.cni import netconf, request, result
from agent.cni.netconf import NetConf
from agent.cni.protocol import Call
from agent.errors import MAC_REMEDY, UNSEEN_MAC_REMEDY, CniError, Code, invalid_config, raise_os
from agent.ipam import assigner
from agent.ipam.assigner import AddressAssigner, ShortageError
from agent.ipam.attachment import Attachment, is_link_name, link_name
from agent.ipam.attachment_store import AttachmentStore
from agent.ipam.reservations.claims import REASON, ReservationClaims
from agent.ipam.reservations.pod_annotations import identity
from agent.kernel import ip_links, link_operations, netlink, tcx
from agent.model.cluster import Snapshot
from agent.model.marks import ALIAS, LINK_PREFIX
from agent.model.node_status import NO_TIMINGS, Demand, NodeStatus, PodEvent, Timings
from agent.modes.base import CheckError, Mode, NodeNotReadyError, Wired
from agent.modes.registry import BUILT_IN, Modes
from agent.objects import addresses_behind_links
from agent.runtime.observable import Observable

READY_WITHIN = 8.0  # seconds that an ADD waits for the node path to repair what a pod hangs on
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

log = logging.getLogger(__name__)


class CniHandler:
    """The pod path: from a call of the plugin to the kernel and back."""

    def __init__(  # noqa: PLR0913 - what the verbs need, each from another part
        self,
        attachments: AttachmentStore,
        status: Observable[NodeStatus],
        demand: Observable[Demand],
        timings: Timings = NO_TIMINGS,
        stays: ReservationClaims | None = None,
        *,
        foreign_mac: Callable[[str], str] = lambda _network: "",
        unseen_mac: Callable[[str], str] = lambda _network: "",
        egress_limit: Callable[[str], bool | None] = lambda _network: None,
        snapshot: Observable[Snapshot] | None = None,
        tell: Callable[[PodEvent], None] = lambda _event: None,
        modes: Modes = BUILT_IN,
    ) -> None:
        """`stays`: who knows of pods' annotations; None: they are not looked at.

        `foreign_mac` says by the name of a network which MAC a later plugin of the chain gives to pods,
        `unseen_mac` which later plugins may give one that testcni does not hear of,
        `egress_limit` whether such a plugin limits what each of them sends; False: that of some, None: of none.
        `snapshot`: the cluster, whose pools say who may ask for their addresses; None: there is none.
        `tell` takes what those who look at a pod should hear.
        """
        self._modes = modes
        self._attachments = attachments
        self._timings = timings
        self._stays = stays
        self._addresses = AddressAssigner(attachments, status, demand, stays, self._undo, snapshot=snapshot)
        self._locks = attachments.locks
        self._foreign_mac = foreign_mac
        self._unseen_mac = unseen_mac
        self._egress_limit = egress_limit
        self._tell = tell
        self._verbs: dict[str, Callable[[Call, NetConf], dict[str, Any]]] = {
            "ADD": self.add,
            "CHECK": self.check,
            "GC": self.collect,
            "STATUS": self.status,
        }

    def answer(self, call: Call) -> dict[str, Any]:
        """The result of a call, `{}` where there is none; raises CniError."""
        began, way, told = time.monotonic(), "", "ok"
        try:
            if call.command == "DEL":
                network, way = netconf.deleting(call.config, self._modes)
                return self.delete(call, network)
            conf = self._read(call)
            way = conf.network.mode
            return self._verbs[call.command](call, conf)
        except BaseException as error:
            told = str(int(request.code(error)))
            raise
        finally:
            self._timings.call(call.command, way, told, time.monotonic() - began)

    def _read(self, call: Call) -> NetConf:
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
        """Connect a pod, or find it connected already; a failure leaves nothing."""
        way, fd, deadline = (
            self._modes.of(conf.network),
            request.pod_netns(call),
            time.monotonic() + assigner.ADD_WITHIN,
        )
        container_id, ifname = request.identity(call)
        if (mac := self._foreign_mac(conf.network.name)) and mac.lower() != conf.mac:
            what = f"none in the plugin tuning after testcni, as nobody would reach the pod; {MAC_REMEDY}"
            raise invalid_config("mac", mac, what)
        self._refuse_unseen_mac(conf.network.name)
        with self._locks.hold((container_id, ifname)):
            self._refuse_unreadable(link_name(container_id, ifname))
            known = self._attachments.get(container_id, ifname)
            if known and (wired := self._still_wired(known, call, conf)):
                return result.render(conf, wired)
            wish = self._stays.wish(call.args, conf.network) if self._stays else None
            if wish and wish.pool:
                conf = replace(conf, network=replace(conf.network, pool=wish.pool))
            pod = netconf.pod_of(call.args)
            limited = conf.limited or self._may_be_limited(conf.network.name)
            wanted = Attachment(
                container_id, ifname, conf.network, call.netns, pod, (), conf.mac or "", limited=limited
            )
            try:
                with self._addresses.given(wanted, conf, wish, deadline) as attachment:
                    return self._connect(way, attachment, fd, conf, deadline)
            except ShortageError as error:
                if who := identity(call.args):
                    self._tell(PodEvent(*who, REASON, str(error)))
                raise

    def _may_be_limited(self, network: str) -> bool:
        """Whether a later plugin needs an ingress qdisc; where it may only, the kernel has to allow for it."""
        each = self._egress_limit(network)
        return tcx.known() if each is False else bool(each)

    def _connect(
        self, way: Mode, attachment: Attachment, fd: int, conf: NetConf, deadline: float
    ) -> dict[str, Any]:
        """Wire a pod that has its addresses; the result of ADD."""
        try:
            wired = self._wire(way, attachment, fd, conf, deadline)
            link_operations.wait_running(netlink.host(), attachment.link)
            answer = result.render(conf, wired)
            self._attachments.finish(attachment, wired)
        except BaseException as error:
            self._undo(attachment)
            if isinstance(error, OSError):
                raise_os(error, f"connecting {attachment.ifname} of container {attachment.container_id}")
            raise
        addresses = " ".join(str(lease.address) for lease in attachment.leases)
        log.info("added %s %s %s to %s: %s", attachment.pod, *attachment.key, conf.network.name, addresses)
        return answer

    def delete(self, call: Call, network: str) -> dict[str, Any]:
        """Disconnect a pod; what is gone already is fine, and so is a pod of another network."""
        container_id, ifname = request.identity(call)
        with self._locks.hold((container_id, ifname)):
            attachment = self._attachments.get(container_id, ifname)
            if attachment and network and attachment.network.name != network:
                return {}
            try:
                if (
                    call.journaled is not None
                    and self._attachments.written(container_id, ifname) >= call.journaled
                ):
                    log.warning("a journaled DEL of %s %s is older than what is there now", container_id, ifname)
                    return {}
                if attachment:
                    self._remove(attachment)
                    self._attachments.forget(attachment.link)
                    log.info("deleted %s %s %s", attachment.pod, container_id, ifname)
                else:
                    self._remove_unknown(link_name(container_id, ifname), network)
            except OSError as error:
                raise_os(error, f"disconnecting {ifname} of container {container_id}")
        return {}

    def _refuse_unseen_mac(self, network: str) -> None:
        """Raises CniError 7 where a pod of the network may be given a MAC by which nobody reaches it."""
        if plugins := self._unseen_mac(network):
            what = f"{plugins} after testcni has the capability `mac` and testcni has not"
            raise CniError(Code.INVALID_CONFIG, f"capabilities: {what}", UNSEEN_MAC_REMEDY)

    def _refuse_unreadable(self, link: str) -> None:
        """Raises CniError 11 for an attachment that is there, but whose file cannot be used."""
        for entry in self._attachments.unreadable():
            if entry.link == link:
                raise CniError(Code.TRY_AGAIN, str(entry.problem()), "the runtime deletes this container first")

    def _remove_unknown(self, link: str, network: object) -> None:
        """Remove a host end of which no file says what it is; one of another network stays. Raises OSError."""
        found = ip_links.link(netlink.host(), link)
        entries = [entry for entry in self._attachments.unreadable() if entry.link == link]
        names = {entry.network for entry in entries if entry.network}
        if found and found.alias.startswith(f"{ALIAS} "):
            names.add(found.alias.split(" ")[1])
        if network and names and network not in names:
            return
        for entry in entries:
            if entry.guess:
                self._modes.of(entry.guess.network).unwire(entry.guess)
        self._modes.unwire_unknown(link)
        self._attachments.forget(link)

    def check(self, call: Call, conf: NetConf) -> dict[str, Any]:
        """Compare kernel and prevResult with what ADD made."""
        fd = request.pod_netns(call)
        container_id, ifname = request.identity(call)
        with self._locks.hold((container_id, ifname)):
            attachment = self._attachments.get(container_id, ifname)
            if attachment is None or attachment.wired is None:
                raise CheckError(f"no {ifname} of container {container_id} is known here")
            wired = cast("Wired", attachment.wired)
            result.check_previous(conf, wired)
            try:
                self._modes.of(attachment.network).check(attachment, wired, fd)
            except OSError as error:
                raise_os(error, f"checking {ifname} of container {container_id}")
        return {}

    def collect(self, _call: Call, conf: NetConf) -> dict[str, Any]:
        """Remove every attachment of this network that the runtime does not list as valid."""
        if (valid := conf.valid_attachments) is None:
            log.warning("GC of %s without cni.dev/valid-attachments: nothing is removed", conf.network.name)
            return {}
        failures = []
        for attachment in self._attachments.all():
            if attachment.network.name != conf.network.name or attachment.key in valid:
                continue
            with self._locks.hold(attachment.key):
                try:
                    self._remove(attachment)
                    log.info("collected %s %s %s", attachment.pod, *attachment.key)
                except OSError as error:
                    failures.append(f"{attachment.container_id} {attachment.ifname}: {error}")
        valid_links = frozenset(link_name(*key) for key in valid)
        failures += self._collect_unreadable(conf.network.name, valid_links)
        failures += self._collect_orphans(conf.network.name, valid_links)
        if failures:
            raise CniError(Code.KERNEL, f"not all could be removed: {'; '.join(failures)}", "GC may be repeated")
        return {}

    def status(self, _call: Call, conf: NetConf) -> dict[str, Any]:
        """Success if and only if an ADD would succeed now."""
        self._refuse_unseen_mac(conf.network.name)
        self._addresses.look(conf.network)
        return {}

    def recover(self) -> None:
        """At start: undo what a crash left half done, and free what lost its interface while nobody watched."""
        there = [link for link in ip_links.links(netlink.host()) if link.name.startswith(LINK_PREFIX)]
        present = {link.name for link in there}
        unknown = present - {attachment.link for attachment in self._attachments.all()}
        aliases = {link.name: link.alias for link in there if link.name in unknown}
        found = (
            addresses_behind_links.addresses(netlink.host(), [link for link in there if link.name in unknown])
            if unknown
            else {}
        )
        self._attachments.see_links({name: (addresses, aliases[name]) for name, addresses in found.items()})
        self._attachments.see_more(addresses_behind_links.given(netlink.host(), there) if there else {})
        for attachment in self._attachments.all():
            if attachment.wired is None or attachment.link not in present:
                log.warning("healing: %s %s is half done or gone, removing it", *attachment.key)
                self._undo(attachment)

    def _still_wired(self, known: Attachment, call: Call, conf: NetConf) -> Wired | None:
        """What an earlier ADD made if it still stands in this namespace; else it is removed."""
        try:
            if known.wired is not None and known.network.name == conf.network.name:
                wired = cast("Wired", known.wired)
                self._modes.of(known.network).check(known, wired, request.pod_netns(call))
                return wired
        except (CheckError, OSError) as error:
            log.warning("%s %s is added anew: %s", *known.key, error)
        if known.network.name != conf.network.name and known.wired is not None:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"container {known.container_id} has {known.ifname} on network {known.network.name!r} already",
                "give each network of a container an interface name of its own",
            )
        self._remove(known)
        return None

    def _wire(self, way: Mode, attachment: Attachment, fd: int, conf: NetConf, deadline: float) -> Wired:
        end = min(deadline, time.monotonic() + READY_WITHIN)
        while True:
            try:
                return way.wire(attachment, fd, conf.routes)
            except NodeNotReadyError as error:
                if time.monotonic() > end:
                    raise CniError(Code.TRY_AGAIN, str(error), "see `testcnictl status` on the node") from error
                way.unwire(attachment)
                time.sleep(0.05)  # the node path hears of it from the kernel and repairs it

    def _undo(self, attachment: Attachment) -> None:
        """Take an ADD back; what can't be taken back now keeps its file, and goes at DEL, GC or start."""
        try:
            self._remove(attachment)
        except OSError:
            log.exception("undo of %s %s failed; DEL, GC or the next start repeats it", *attachment.key)

    def _remove(self, attachment: Attachment) -> None:
        self._modes.of(attachment.network).unwire(attachment)
        self._attachments.remove(attachment)

    def _collect_unreadable(self, network: str, valid: frozenset[str]) -> list[str]:
        """Attachments of this network whose file cannot be used, and that the runtime does not know."""
        failures = []
        for entry in self._attachments.unreadable():
            if entry.network == network and entry.link not in valid and is_link_name(entry.link):
                try:
                    self._remove_unknown(entry.link, network)
                except OSError as error:
                    failures.append(f"{entry.link}: {error}")
        return failures

    def _collect_orphans(self, network: str, valid: frozenset[str]) -> list[str]:
        """Links with our mark for this network of which neither we nor the runtime know."""
        known = {attachment.link for attachment in self._attachments.all()} | valid
        failures = []
        for link in ip_links.links(netlink.host()):
            marked = is_link_name(link.name) and link.alias.startswith(f"{ALIAS} {network} ")
            if marked and link.name not in known:
                try:
                    self._modes.unwire_unknown(link.name)
                    log.warning("collected link %s, which had no attachment: %s", link.name, link.alias)
                except OSError as error:
                    failures.append(f"{link.name}: {error}")
        return failures
