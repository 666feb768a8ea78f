"""The host end of a pod's attachment: how its subinterfaces are marked, and how all of it is deleted."""

from __future__ import annotations

import errno

from agent.kernel import ip_links, subinterfaces
from agent.kernel.link_operations import Reaper
from agent.kernel.netlink import Netlink, NetlinkError


def group(name: str) -> int:
    """Return the link group that marks the subinterfaces of a host end.

    A subinterface has its group from the start, but no alias.
    """
    return int(name[-7:], 16) + 1


def detach(reaper: Reaper, nl: Netlink, name: str) -> bool:
    """Delete a host end, and before it the subinterfaces of its attachment, which are in the pod. Raises OSError.

    A subinterface is made after the host end and deleted before it: without a host end there is none. Returns
    whether there was a host end.
    """
    port = ip_links.link(nl, name)
    if port is None:
        return False
    if port.netnsid is not None:
        try:
            for link in ip_links.links(nl, port.netnsid):
                if subinterfaces.is_subinterface(link) and link.group == group(name):
                    reaper.delete(nl, link.name, port.netnsid)
        except NetlinkError as error:
            if error.errno != errno.EINVAL:  # the namespace is gone, and all that was in it
                raise
    return reaper.delete(nl, name)
