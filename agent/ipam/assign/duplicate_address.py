"""Probe whether another machine of the segment uses an address, before a pod gets it (RFC 5227, 2.1)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from agent.ip import Address
from agent.ipam.attachments.attachment import Attachment
from agent.kernel import arp
from agent.kernel.link_operations import Reaper
from agent.runtime.deadline import PAST, Deadline

ASK_AGAIN_AFTER = 0.2  # seconds


@dataclass(frozen=True, slots=True)
class DuplicateAddress:
    """An address that another machine uses, and the device on which it answered."""

    address: Address
    device: str
    mac: str


def find(reaper: Reaper, attachment: Attachment, gone_by: Deadline = PAST) -> DuplicateAddress | None:
    """Return the first address of a pod on its parent's segment that a machine still uses at `gone_by`.

    The probes come before the wiring and not at the same time: wiring takes a few milliseconds of their 50, and
    ends with an announcement that the address is the pod's. Raises OSError.
    """
    if attachment.uplink is None or not attachment.network.shared:
        return None
    device = attachment.uplink.device
    for lease in attachment.leases:
        while lease.address.version == 4 and (mac := arp.who_has(reaper, device, lease.address, rivals=True)):
            if gone_by.passed:
                return DuplicateAddress(lease.address, device, mac)
            time.sleep(ASK_AGAIN_AFTER)
    return None
