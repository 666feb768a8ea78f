"""Deleting links without waiting for what nobody needs to wait for."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from agent.kernel import ip_links as rtnl
from agent.kernel import parent_links
from agent.kernel.netlink import Netlink, NetlinkError

REAPERS = 16
GONE_WITHIN = 30.0  # seconds; it takes 1 ms, unless something else holds the kernel's rtnl lock
RUNNING_WITHIN = 1.5  # seconds; mostly it is so at once, and the kernel never puts it off for more than one
POLL = 0.0002

_reapers = ThreadPoolExecutor(REAPERS, thread_name_prefix="reaper")
_own = threading.local()


def host() -> Netlink:
    """This thread's socket in the node's namespace."""
    nl: Netlink | None = getattr(_own, "netlink", None)
    if nl is None:
        nl = _own.netlink = Netlink()
    return nl


def delete(nl: Netlink, name: str, netnsid: int | None = None) -> bool:
    """Delete a link and return as soon as it is gone for everybody; False when there was none.

    It is here, or in the namespace that this one knows by a number.

    The kernel unlists a device within 1 ms but keeps the caller for an RCU barrier of about 20 ms more
    (netdev_run_todo), so another thread sends the request while this one watches. Raises OSError.
    """
    link = rtnl.link(nl, name, netnsid)
    if link is None:
        return False
    request = _reapers.submit(_delete, link.index, netnsid)
    end = time.monotonic() + GONE_WITHIN
    while (now := rtnl.link(nl, name, netnsid)) is not None and now.index == link.index:
        if request.done():
            _raise(request)
        if time.monotonic() > end:
            raise TimeoutError(errno.ETIMEDOUT, f"link {name} is still there after {GONE_WITHIN:.0f} s")
        time.sleep(POLL)
    return True


def settle(nl: Netlink, name: str) -> None:
    """Wait until a link sends: what it is given before is lost, as an ARP answer, which is missed for a second.

    That is so for a moment after its carrier came, with the other end of a pair or the first port of a bridge: a
    worker of the kernel sees to it, or whoever asks for the link (net/core/link_watch.c). Raises OSError.
    """
    end = time.monotonic() + RUNNING_WITHIN
    while (link := rtnl.link(nl, name)) and not link.running and time.monotonic() < end:
        time.sleep(POLL)


def later(do: Callable[[], object]) -> None:
    """Do in another thread what waits for an RCU grace period, and whose outcome nobody needs."""
    _reapers.submit(do)


def group(name: str) -> int:
    """What marks the slaves of a host end: their links have no alias from the start, but they have this."""
    return int(name[-7:], 16) + 1


def detach(nl: Netlink, name: str) -> bool:
    """Delete a host end, and before it the slaves of its attachment, which are in the pod only. Raises OSError.

    A slave is made after the host end and goes before it, so where there is no host end, there is no slave.
    """
    port = rtnl.link(nl, name)
    if port is None:
        return False
    if port.netnsid is not None:
        try:
            for link in rtnl.links(nl, port.netnsid):
                if parent_links.is_slave(link) and link.group == group(name):
                    delete(nl, link.name, port.netnsid)
        except NetlinkError as error:
            if error.errno != errno.EINVAL:  # the namespace has gone meanwhile, and all that was in it
                raise
    return delete(nl, name)


def _delete(index: int, netnsid: int | None) -> None:
    host().request(rtnl.delete_link(index, netnsid))


def _raise(request: Future[None]) -> None:
    error = request.exception()
    if isinstance(error, NetlinkError) and error.errno == errno.ENODEV:
        return
    if error:
        raise error
