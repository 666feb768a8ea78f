"""Operations on links that take time: delete one, wait until one sends, close what takes an RCU grace period."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from agent.kernel import ip_links, netlink
from agent.kernel.netlink import Netlink, NetlinkError

REAPERS = 16
GONE_WITHIN = 30.0  # seconds; it takes 1 ms, unless something else holds the kernel's rtnl lock
RUNNING_WITHIN = 1.5  # seconds; the kernel delays it for one second at most, and mostly not at all
POLL = 0.0002


class Reaper:
    """Threads that wait for RCU grace periods of the kernel, so that no caller does. For several threads at once.

    They are started when there is work for them, and live as long as the process.
    """

    def __init__(self, threads: int = REAPERS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="reaper")

    def delete(self, nl: Netlink, name: str, netnsid: int | None = None) -> bool:
        """Delete a link and return as soon as it is no longer listed; False when there was none.

        With `netnsid` the link is in the namespace that this one knows by that number. Raises OSError.

        The kernel unlists a device within 1 ms but keeps the caller for an RCU barrier of about 20 ms more
        (netdev_run_todo), so another thread sends the request while this one watches.
        """
        link = ip_links.link(nl, name, netnsid)
        if link is None:
            return False
        request = self._threads.submit(_delete, link.index, netnsid)
        end = time.monotonic() + GONE_WITHIN
        while (now := ip_links.link(nl, name, netnsid)) is not None and now.index == link.index:
            if request.done():
                _raise(request)
            if time.monotonic() > end:
                raise TimeoutError(errno.ETIMEDOUT, f"link {name} is still there after {GONE_WITHIN:.0f} s")
            time.sleep(POLL)
        return True

    def run_later(self, do: Callable[[], object]) -> None:
        """Run in another thread what waits for an RCU grace period and whose result is not needed."""
        self._threads.submit(do)


def wait_running(nl: Netlink, name: str) -> None:
    """Wait until a link sends; before that, packets for it are lost, and a lost ARP answer costs a second.

    A link does not send for a moment after its carrier came (the other end of a veth pair, the first port of a
    bridge). The kernel ends this in a worker, or when a process reads the link (net/core/link_watch.c). Returns
    after RUNNING_WITHIN at the latest. Raises OSError.
    """
    end = time.monotonic() + RUNNING_WITHIN
    while (link := ip_links.link(nl, name)) and not link.running and time.monotonic() < end:
        time.sleep(POLL)


def _delete(index: int, netnsid: int | None) -> None:
    netlink.host().request(ip_links.delete_link(index, netnsid))


def _raise(request: Future[None]) -> None:
    error = request.exception()
    if isinstance(error, NetlinkError) and error.errno == errno.ENODEV:
        return
    if error:
        raise error
