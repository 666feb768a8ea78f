"""The addresses in use on the node, and the pod that has each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.ip import Address
from agent.ipam.attachments.attachment import Attachment
from agent.ipam.attachments.unreadable_attachments import UnreadableAttachment


@dataclass(frozen=True, slots=True)
class Holder:
    """The pod that has an address; one of its names is known."""

    pod: str = ""
    """`namespace/name`."""
    container_id: str = ""
    link: str = ""
    """The host end of the pod, if no file names the pod."""


def holders(
    attachments: Iterable[Attachment], unreadable: Iterable[UnreadableAttachment]
) -> dict[Address, Holder]:
    """Return each address that is in use, and the pod that has it."""
    unknown = {address: Holder(link=entry.link) for entry in unreadable for address in entry.addresses}
    known = {
        lease.address: Holder(one.pod) if one.pod else Holder(container_id=one.container_id)
        for one in attachments
        for lease in one.leases
    }
    return {**unknown, **known}
