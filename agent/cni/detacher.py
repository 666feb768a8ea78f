"""Disconnect pods: remove an attachment from the kernel, then its file."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from agent.ipam.attachments.attachment import Attachment, is_link_name
from agent.ipam.attachments.attachment_store import AttachmentStore
from agent.kernel import ip_links, netlink
from agent.kernel.ip_links import Link
from agent.model.marks import ALIAS, LINK_PREFIX
from agent.modes.registry import Modes
from agent.objects import addresses_behind_links
from agent.objects.host_kernel import HostKernel

log = logging.getLogger(__name__)


class Detacher:
    """Removes attachments, also those with an unreadable file, and links without an attachment."""

    def __init__(self, host: HostKernel, attachments: AttachmentStore, modes: Modes) -> None:
        self._host = host
        self._attachments = attachments
        self._modes = modes

    def remove(self, attachment: Attachment) -> None:
        """Disconnect a pod, and release its addresses. Raises OSError."""
        self._modes.of(attachment.network).unwire(self._host, attachment)
        self._attachments.remove(attachment)

    def undo(self, attachment: Attachment) -> None:
        """Remove an incomplete attachment. If that fails, DEL, GC or the next start retries it."""
        try:
            self.remove(attachment)
        except OSError:
            log.exception(
                "cannot remove incomplete attachment %s %s; DEL, GC or the next start retries it", *attachment.key
            )

    def remove_unknown(self, link: str, network: str) -> None:
        """Remove a host end without a readable file, unless it is of another network. Raises OSError."""
        found = ip_links.link(netlink.host(), link)
        entries = [entry for entry in self._attachments.unreadable() if entry.link == link]
        names = {entry.network for entry in entries if entry.network}
        if found and found.alias.startswith(f"{ALIAS} "):
            names.add(found.alias.split(" ")[1])
        if network and names and network not in names:
            return
        for entry in entries:
            if entry.guess:
                self._modes.of(entry.guess.network).unwire(self._host, entry.guess)
        self._modes.unwire_unknown(self._host, link)
        self._attachments.forget(link)

    def remove_invalid(self, network: str, valid: frozenset[tuple[str, str]]) -> Iterator[str]:
        """Remove every attachment of a network that the runtime does not list as valid; yield what failed."""
        for attachment in self._attachments.all():
            if attachment.network.name != network or attachment.key in valid:
                continue
            with self._attachments.locks.hold(attachment.key):
                try:
                    self.remove(attachment)
                    log.info("GC removed %s %s %s", attachment.pod, *attachment.key)
                except OSError as error:
                    yield f"{attachment.container_id} {attachment.ifname}: {error}"

    def remove_unreadable(self, network: str, valid: frozenset[str]) -> Iterator[str]:
        """Remove the attachments of a network whose file cannot be used, except valid links; yield what failed."""
        for entry in self._attachments.unreadable():
            if entry.network == network and entry.link not in valid and is_link_name(entry.link):
                try:
                    self.remove_unknown(entry.link, network)
                except OSError as error:
                    yield f"{entry.link}: {error}"

    def remove_orphans(self, network: str, valid: frozenset[str]) -> Iterator[str]:
        """Remove the links with our mark for a network that neither agent nor runtime knows; yield what failed."""
        known = {attachment.link for attachment in self._attachments.all()} | valid
        for link in ip_links.links(netlink.host()):
            marked = is_link_name(link.name) and link.alias.startswith(f"{ALIAS} {network} ")
            if marked and link.name not in known:
                try:
                    self._modes.unwire_unknown(self._host, link.name)
                    log.warning("GC removed link %s, which had no attachment: %s", link.name, link.alias)
                except OSError as error:
                    yield f"{link.name}: {error}"

    def recover(self) -> None:
        """Hold addresses that no file names, and remove incomplete attachments, at start. Raises OSError."""
        present = [link for link in ip_links.links(netlink.host()) if link.name.startswith(LINK_PREFIX)]
        self._hold_unnamed_addresses(present)
        self._remove_incomplete({link.name for link in present})

    def _hold_unnamed_addresses(self, present: list[Link]) -> None:
        """Count addresses of pods as in use that no readable attachment file names. Raises OSError."""
        nl = netlink.host()
        known = {attachment.link for attachment in self._attachments.all()}
        unknown = {link.name: link for link in present if link.name not in known}
        found = addresses_behind_links.addresses(nl, unknown.values()) if unknown else {}
        self._attachments.note_unknown_links(
            {name: (addresses, unknown[name].alias) for name, addresses in found.items()}
        )
        self._attachments.note_unnamed_addresses(
            addresses_behind_links.given(nl, self._host.bpf, present) if present else {}
        )

    def _remove_incomplete(self, present: set[str]) -> None:
        """Remove attachments whose ADD did not finish, or whose link does not exist."""
        for attachment in self._attachments.all():
            if attachment.wired is None or attachment.link not in present:
                log.warning("removing incomplete attachment %s %s after restart", *attachment.key)
                self.undo(attachment)
