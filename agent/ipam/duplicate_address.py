"""Whether addresses are nobody's on the segment, before a pod has them (RFC 5227, 2.1)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from agent.ip import Address
from agent.ipam.attachment import Attachment
from agent.kernel import arp


@dataclass(frozen=True, slots=True)
class DuplicateAddress:
    """Who has an address, and on which device that was heard."""

    address: Address
    device: str
    mac: str


AGAIN = 0.2  # seconds


def owner(attachment: Attachment, within: float = 0.0) -> DuplicateAddress | None:
    """Who has one of the addresses that the pod is to have on its parent's segment, still after `within` seconds.

    It is asked before anything is wired, not meanwhile: wiring takes a few milliseconds of the 50, and ends with
    telling everybody that the address is the pod's. Raises OSError.
    """
    if attachment.uplink is None or not attachment.network.shared:
        return None
    device, end = attachment.uplink.device, time.monotonic() + within
    for lease in attachment.leases:
        while lease.address.version == 4 and (mac := arp.who_has(device, lease.address, rivals=True)):
            if time.monotonic() >= end:
                return DuplicateAddress(lease.address, device, mac)
            time.sleep(AGAIN)
    return None
