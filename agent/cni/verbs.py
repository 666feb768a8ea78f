"""ADD, DEL, CHECK, GC and STATUS as the CNI specification 1.1 says, each a list of steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

from agent import netconf
from agent.cni import calls, probe, result
from agent.cni.locks import KeyedLocks
from agent.cni.protocol import Call
from agent.cni.stays import TRIES, Stay, Stays, TakenError
from agent.cni.wishes import IP, Wish
from agent.datapath import links, rtnl
from agent.datapath.state import ALIAS, LINK_PREFIX
from agent.errors import CniError, Code, invalid_config
from agent.ipam import blocks
from agent.ipam.allocator import ExhaustedError, InUseError, Range, UnavailableError
from agent.ipam.attachments import Attachment, Attachments, link_name
from agent.model import HOST_GW, Address, Network, Subnet
from agent.modes import mode
from agent.modes.base import CheckError, Mode, NodeNotReadyError, Wired
from agent.netconf import NetConf
from agent.shared import NOBODY, Demand, Latest, NodeStatus, Sink, Want

PREPARED_WITHIN = 8.0  # seconds that an ADD waits for the node path; the runtime tries again
COOLED_WITHIN = 20.0  # seconds that an ADD waits for an address to cool
STATUS_WITHIN = 1.0
GOING_WITHIN = 8.0  # seconds that the pod that had an address that stays may take to go, here or on another node
ATTEMPTS = 5  # of one ADD at getting an address that turns out to be this node's to give
DEMANDED_FOR = 10.0  # seconds that the node path keeps a network for which there is neither conf nor pod
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

log = logging.getLogger(__name__)


class Verbs:
    """The pod path: from a call of the plugin to the kernel and back."""

    def __init__(
        self,
        attachments: Attachments,
        status: Latest[NodeStatus],
        demand: Latest[Demand],
        sink: Sink = NOBODY,
        stays: Stays | None = None,
    ) -> None:
        """`stays`: who knows of pods' annotations; None: they are not looked at."""
        self._attachments = attachments
        self._sink = sink
        self._stays = stays
        self._status = status
        self._demand = demand
        self._locks = KeyedLocks()
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
            if call.command == "DEL":  # a netconf that has become invalid must not keep a pod from going
                doc = netconf.parse_json(call.config)
                way = str(doc.get("mode") or HOST_GW)
                return self.delete(call, doc.get("name"))
            conf = self._read(call)
            way = conf.network.mode
            return self._verbs[call.command](call, conf)
        except BaseException as error:
            told = str(int(calls.code(error)))
            raise
        finally:
            self._sink.call(call.command, way, told, time.monotonic() - began)

    def _read(self, call: Call) -> NetConf:
        if call.command not in self._verbs:
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_COMMAND: {call.command!r} is no verb of CNI")
        conf = netconf.read(call.config, call.args)
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
        way, fd = mode(conf.network.mode), calls.pod_netns(call)
        container_id, ifname = calls.identity(call)
        with self._locks.hold((container_id, ifname)):
            known = self._attachments.get(container_id, ifname)
            if known and (wired := self._still_wired(known, call, conf)):
                return result.render(conf, wired)
            wish = self._stays.wish(call.args, conf.network) if self._stays else None
            if wish and wish.pool:
                conf = replace(conf, network=replace(conf.network, pool=wish.pool))
            own = self._prepared(conf.network, PREPARED_WITHIN)
            attachment = Attachment(
                container_id, ifname, conf.network, call.netns, netconf.pod_of(call.args), (), conf.mac or "",
                uplink=self._status.get().uplinks.get(conf.network),
            )  # fmt: skip
            with self._staying(wish, conf, own) as stay:
                attachment = self._addressed(attachment, conf, own, stay)
                return self._connect(way, attachment, fd, conf)

    def _connect(self, way: Mode, attachment: Attachment, fd: int, conf: NetConf) -> dict[str, Any]:
        """Wire a pod that has its addresses; the result of ADD."""
        try:
            wired = self._wire(way, attachment, fd, conf)
            links.settle(links.host(), attachment.link)
            answer = result.render(conf, wired)
            self._attachments.finish(attachment, wired)
        except BaseException as error:
            self._undo(attachment)
            if isinstance(error, OSError):
                calls.raise_os(error, f"connecting {attachment.ifname} of container {attachment.container_id}")
            raise
        addresses = " ".join(str(lease.address) for lease in attachment.leases)
        log.info("added %s %s %s to %s: %s", attachment.pod, *attachment.key, conf.network.name, addresses)
        return answer

    def delete(self, call: Call, network: object) -> dict[str, Any]:
        """Disconnect a pod; what is gone already is fine, and so is a pod of another network."""
        container_id, ifname = calls.identity(call)
        with self._locks.hold((container_id, ifname)):
            attachment = self._attachments.get(container_id, ifname)
            if attachment and network and attachment.network.name != network:
                return {}
            try:
                if attachment:
                    self._remove(attachment)
                    log.info("deleted %s %s %s", attachment.pod, container_id, ifname)
                else:
                    links.detach(links.host(), link_name(container_id, ifname))
            except OSError as error:
                calls.raise_os(error, f"disconnecting {ifname} of container {container_id}")
        return {}

    def check(self, call: Call, conf: NetConf) -> dict[str, Any]:
        """Compare kernel and prevResult with what ADD made."""
        fd = calls.pod_netns(call)
        container_id, ifname = calls.identity(call)
        with self._locks.hold((container_id, ifname)):
            attachment = self._attachments.get(container_id, ifname)
            if attachment is None or attachment.wired is None:
                raise CheckError(f"no {ifname} of container {container_id} is known here")
            wired = cast("Wired", attachment.wired)
            result.check_previous(conf, wired)
            try:
                mode(attachment.network.mode).check(attachment, wired, fd)
            except OSError as error:
                calls.raise_os(error, f"checking {ifname} of container {container_id}")
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
        failures += self._collect_orphans(conf.network.name, valid)
        if failures:
            raise CniError(Code.KERNEL, f"not all could be removed: {'; '.join(failures)}", "GC may be repeated")
        return {}

    def status(self, _call: Call, conf: NetConf) -> dict[str, Any]:
        """Success if and only if an ADD would succeed now."""
        mode(conf.network.mode)
        own = self._prepared(conf.network, STATUS_WITHIN, Code.NOT_AVAILABLE)
        ranges = self._ranges(conf.network, own)
        room = any(used < r.size for r in ranges for used, _, _ in [self._attachments.counts(r)])
        if not room and not self._more_blocks(conf.network, own, STATUS_WITHIN):
            raise self._exhausted(conf.network, ranges, Code.NOT_AVAILABLE)
        return {}

    def heal(self) -> None:
        """At start: undo what a crash left half done, and free what lost its interface while nobody watched."""
        present = {link.name for link in rtnl.links(links.host())}
        for attachment in self._attachments.all():
            if attachment.wired is None or attachment.link not in present:
                log.warning("healing: %s %s is half done or gone, removing it", *attachment.key)
                self._remove(attachment)

    def _prepared(self, network: Network, within: float, code: Code = Code.TRY_AGAIN) -> tuple[Subnet, ...]:
        """The node's blocks for a network, once the node path has them in the kernel."""
        self._ask(network, 1)
        end = time.monotonic() + within
        while not (own := self._status.get().blocks.get(network)):
            if self._status.wait(lambda s: bool(s.blocks.get(network)), end):
                continue
            status = self._status.get()
            why = "; ".join(str(problem) for problem in status.problems[:3])
            if not status.synced:
                why = why or "the datastore has not been read completely yet"
            raise CniError(
                code,
                f"the node is not ready for network {network.name!r}: {why or 'no block of addresses yet'}",
                "see `testcnictl status` on the node",
            )
        return own

    def _ask(self, network: Network, count: int) -> None:
        """Tell the node path that a network is in use, at most once in half the time that it remembers."""
        now = time.monotonic()
        known = self._demand.get().get(network)
        if known is None or known.blocks < count or known.until < now + DEMANDED_FOR / 2:
            want = Want(max(count, known.blocks if known else 0), now + DEMANDED_FOR)
            self._demand.update(lambda demand: {**demand, network: want})

    def _still_wired(self, known: Attachment, call: Call, conf: NetConf) -> Wired | None:
        """What an earlier ADD made if it still stands in this namespace; else it is removed."""
        try:
            if known.wired is not None and known.network.name == conf.network.name:
                wired = cast("Wired", known.wired)
                mode(known.network.mode).check(known, wired, calls.pod_netns(call))
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

    def _staying(
        self, wish: Wish | None, conf: NetConf, own: tuple[Subnet, ...]
    ) -> AbstractContextManager[Stay | None]:
        if self._stays is None or wish is None:
            return nullcontext()
        return self._stays.staying(wish, conf.network, self._ranges(conf.network, own))

    def _addressed(
        self, wanted: Attachment, conf: NetConf, own: tuple[Subnet, ...], stay: Stay | None
    ) -> Attachment:
        """The attachment with its addresses, those that stay claimed; a failure leaves nothing."""
        if self._stays is None or stay is None:
            return self._reserve(wanted, conf, own)
        if stay.asked and any(address.version == 4 for address in conf.ips):
            raise invalid_config("ips", ", ".join(map(str, conf.ips)), f"none: the pod's annotations say {IP}")
        for tries in range(TRIES):
            attachment = self._reserve(replace(wanted, owner=stay.owner), conf, own, stay)
            try:
                self._stays.settle(stay, attachment)
            except BaseException as error:
                self._undo(attachment)
                if isinstance(error, TakenError) and not stay.asked and tries + 1 < TRIES:
                    continue  # somebody reserved what the allocator chose
                raise
            return attachment
        raise AssertionError

    def _reserve(
        self, wanted: Attachment, conf: NetConf, own: tuple[Subnet, ...], stay: Stay | None = None
    ) -> Attachment:
        guests, asked = (stay.guests, (*conf.ips, *stay.asked)) if stay else ((), conf.ips)
        deadline, going = time.monotonic() + COOLED_WITHIN, time.monotonic() + GOING_WITHIN
        refused = 0
        while refused < ATTEMPTS:
            ranges = self._ranges(conf.network, own)
            try:
                reserved = self._attachments.reserve(wanted, [*ranges, *guests], asked, deadline)
            except UnavailableError as error:
                if isinstance(error, InUseError) and wanted.owner and time.monotonic() < going:
                    time.sleep(0.1)  # the pod of the same name that was here before: its DEL is on its way
                    continue
                raise CniError(Code.ADDRESSES, str(error), "ask for another, or for none") from error
            except OSError as error:
                raise CniError(Code.IO_FAILURE, f"state can't be written: {error}") from error
            except ExhaustedError as error:
                more = self._more_blocks(conf.network, own, PREPARED_WITHIN)
                if more is None:
                    for_good = error.wait is None and conf.network in self._status.get().limits
                    code = Code.ADDRESSES if for_good else Code.TRY_AGAIN
                    raise self._exhausted(conf.network, ranges, code) from error
                own = more
            else:
                if self._may_have(reserved, conf, asked):
                    return reserved
                refused += 1
                own = self._prepared(conf.network, PREPARED_WITHIN)
        raise CniError(
            Code.TRY_AGAIN,
            f"{ATTEMPTS} addresses one after the other turned out not to be this node's to give",
            "see `testcnictl status`; where something answers ARP for every address, set `ipam.probe` to false",
        )

    def _may_have(self, reserved: Attachment, conf: NetConf, asked: tuple[Address, ...]) -> bool:
        """Whether the pod may have what is reserved; else that is free again. Raises CniError."""
        try:
            # a block that was given back meanwhile is gone from the status before anybody looks who has addresses
            held = self._status.get().blocks.get(conf.network, ())
            still = all(lease.block in held or blocks.is_single(lease.block) for lease in reserved.leases)
            within = GOING_WITHIN if reserved.owner else 0.0
            owner = probe.owner(reserved, within) if still and conf.probe else None
        except BaseException as error:
            self._undo(reserved)
            if isinstance(error, OSError):
                calls.raise_os(error, f"probing for addresses of {reserved.network.name}")
            raise
        if still and owner is None:
            return True
        self._undo(reserved)
        if owner:
            self._attachments.set_aside(owner.address, owner.device, owner.mac)
            if owner.address in asked:
                what = f"{owner.address} is in use by {owner.mac}, which answers for it on {owner.device}"
                raise CniError(Code.ADDRESSES, what, "ask for another, or for none")
        return False

    def _ranges(self, network: Network, own: tuple[Subnet, ...]) -> list[Range]:
        """Where pods' addresses may be; raises CniError 7 when the netconf's range leaves none."""
        every = list(blocks.prepared(self._status.get(), network, own))
        ranges = [r for r in every if r.size]
        if not ranges and (network.range_start or network.range_end):
            bounds = f"{network.range_start or ''}-{network.range_end or ''}"
            raise invalid_config("ipam.rangeStart-rangeEnd", bounds, f"a part of {', '.join(map(str, own))}")
        return ranges or every  # where the pool excludes all that the node has, it needs another block

    def _more_blocks(self, network: Network, own: tuple[Subnet, ...], within: float) -> tuple[Subnet, ...] | None:
        """The node's blocks once it has claimed one more, None if it can't, or not in time."""
        self._ask(network, len(own) + 1)

        def more(status: NodeStatus) -> tuple[Subnet, ...]:
            now = status.blocks.get(network, ())
            return now if not set(now) <= set(own) else ()

        self._status.wait(lambda s: bool(more(s) or s.limits.get(network)), time.monotonic() + within)
        return more(self._status.get()) or None

    def _exhausted(self, network: Network, ranges: list[Range], code: Code) -> CniError:
        """The error that says how many addresses there are, and why there are no more."""
        where, size = ", ".join(str(r.block) for r in ranges), sum(r.size for r in ranges)
        why = self._status.get().limits.get(network, "the node has not got another block in time")
        return CniError(
            code,
            f"no address is free in {where} ({size} in all), and {why}",
            "delete pods, or give the node more addresses",
        )

    def _wire(self, way: Mode, attachment: Attachment, fd: int, conf: NetConf) -> Wired:
        deadline = time.monotonic() + PREPARED_WITHIN
        while True:
            try:
                return way.wire(attachment, fd, conf.routes)
            except NodeNotReadyError as error:
                if time.monotonic() > deadline:
                    raise CniError(Code.TRY_AGAIN, str(error), "see `testcnictl status` on the node") from error
                way.unwire(attachment)
                time.sleep(0.05)  # the node path hears of it from the kernel and repairs it

    def _undo(self, attachment: Attachment) -> None:
        """Take a failed ADD back; what can't be taken back now keeps its file, and goes at DEL, GC or start."""
        try:
            self._remove(attachment)
        except OSError:
            log.exception("undo of %s %s failed; DEL, GC or the next start repeats it", *attachment.key)

    def _remove(self, attachment: Attachment) -> None:
        mode(attachment.network.mode).unwire(attachment)
        self._attachments.remove(attachment)

    def _collect_orphans(self, network: str, valid: frozenset[tuple[str, str]]) -> list[str]:
        """Links with our mark for this network of which neither we nor the runtime know."""
        known = {attachment.link for attachment in self._attachments.all()}
        known |= {link_name(*key) for key in valid}
        failures = []
        for link in rtnl.links(links.host()):
            marked = link.name.startswith(LINK_PREFIX) and link.alias.startswith(f"{ALIAS} {network} ")
            if marked and link.name not in known:
                try:
                    links.detach(links.host(), link.name)
                    log.warning("collected link %s, which had no attachment: %s", link.name, link.alias)
                except OSError as error:
                    failures.append(f"{link.name}: {error}")
        return failures
