"""Metrics and health over HTTP: GET and HEAD, one request per connection.

One thread serves all connections, so slow clients and many clients cost no threads and do not delay others.
Connections from the node itself, such as kubelet's probes, have a limit of their own, which no pod can use up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from agent.model.problem import Problem
from agent.model.problem_board import PartProblems

TEXT = "text/plain; charset=utf-8"
WITHIN = 5.0  # seconds for a whole connection
LONGEST = 8192  # bytes of a request
MOST = 64  # connections from the node itself, and as many from elsewhere; one more closes the oldest of its kind
AT_ONCE = 16  # connections that are accepted before others are served
FRESH = 0.5  # seconds: the age of a page for clients on other nodes: making one costs more than asking
WAITING = 1024  # connections in the kernel that are not accepted yet
LOOPBACK = "127.0.0.1"
LOOK = 0.2  # seconds between two looks whether the agent stops
AGAIN = 5.0  # seconds until a port that is in use is tried again
PATIENCE, LOOK_SOON = (
    4.0,
    0.05,
)  # seconds: how long an answer may be delayed until it is no 503, and between two tries
WAIT = re.compile(r"wait=([0-9]{1,3})")
REQUEST = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.[01]\r?\n")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """The answer for one path."""

    body: bytes
    type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK


Pages = Mapping[str, Callable[[], Page]]
"""The function that makes the page of each path."""


class Http:
    """Serves pages on an address and a port (0: any free port)."""

    def __init__(
        self,
        address: tuple[str, int],
        pages: Pages,
        problems: PartProblems,
        *,
        within: float = WITHIN,
        again: float = AGAIN,
    ) -> None:
        """`within`: seconds for one connection; `again`: seconds until a port in use is tried again."""
        self._within = within
        self._again = again
        self.port = 0
        """The port; 0 until it is open."""
        self._address = address
        self._pages = pages
        self._problems = problems
        self._open: dict[bool, list[asyncio.Task[None]]] = {True: [], False: []}
        """The connections by whether they come from the node itself, the oldest first."""
        self._made: dict[str, tuple[float, Page]] = {}

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; a port that is in use is a problem, and is tried again."""
        asyncio.run(self._serve(stop))

    async def _serve(self, stop: threading.Event) -> None:
        host, port = self._address
        address = ipaddress.ip_address(host)
        places = {"listen": self._address}
        if port and not (address.is_loopback or address.is_unspecified):
            places["listen-loopback"] = (LOOPBACK, port)  # a queue of its own for probes
        await asyncio.gather(*(self._serve_at(name, place, stop) for name, place in places.items()))

    async def _serve_at(self, name: str, place: tuple[str, int], stop: threading.Event) -> None:
        host, port = place
        where = f"--listen [{host}]:{port}" if ":" in host else f"--listen {host}:{port}"
        while not stop.is_set():
            try:
                await self._serve_on(_bound(place), name, stop)
            except OSError as error:
                what = error.strerror or str(error)
                problem = Problem(
                    where, what, "free it or choose another; until then there are no metrics and no health there"
                )
                self._tell(name, problem)
                end = time.monotonic() + self._again
                while not stop.is_set() and time.monotonic() < end:
                    await asyncio.sleep(min(self._again, LOOK))

    def _tell(self, name: str, problem: Problem | None) -> None:
        """Report the problem of a listener; None: it has none."""
        self._problems.update(
            lambda known: {key: one for key, one in {**known, name: problem}.items() if one is not None}
        )

    async def _serve_on(self, sock: socket.socket, name: str, stop: threading.Event) -> None:
        server = await asyncio.start_server(self._talk, sock=sock, limit=LONGEST, backlog=AT_ONCE)
        async with server:
            sock.listen(WAITING)  # a connection that the kernel drops comes again only after 1 s
            if name == "listen":
                self.port = sock.getsockname()[1]
            self._tell(name, None)
            while not stop.is_set():
                await asyncio.sleep(LOOK)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, from its request to its end."""
        own = _is_own(writer)
        kind = self._open[own]
        if len(kind) >= MOST:
            kind.pop(0).cancel()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        kind.append(task)
        try:
            async with asyncio.timeout(self._within):
                writer.write(await self._answer(reader, fresh=own))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client's fault: a port scan must not fill the log
        finally:
            writer.transport.abort()
            with contextlib.suppress(ValueError):
                kind.remove(task)

    async def _answer(self, reader: asyncio.StreamReader, *, fresh: bool) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            return _encode(_error(HTTPStatus.BAD_REQUEST))
        request = REQUEST.match(head)
        if not request:
            return _encode(_error(HTTPStatus.BAD_REQUEST))
        method, (path, _, query) = request[1].decode(), request[2].decode().partition("?")
        if method not in ("GET", "HEAD"):
            return _encode(_error(HTTPStatus.METHOD_NOT_ALLOWED))
        page = await self._waited(path, query) if fresh else self._page(path, fresh=False)
        return _encode(page, body=method == "GET")

    async def _waited(self, path: str, query: str) -> Page:
        """Return the page for a client on this node; with `wait=SECONDS` once it is no 503 or time is up.

        kubelet writes a warning Event for each failed probe, also of an agent that has just started.
        """
        asked = WAIT.fullmatch(query)
        end = time.monotonic() + (min(PATIENCE, float(asked[1])) if asked else 0.0)
        while (page := self._page(path, fresh=True)).status == HTTPStatus.SERVICE_UNAVAILABLE:
            if time.monotonic() >= end:
                break
            await asyncio.sleep(LOOK_SOON)
        return page

    def _page(self, path: str, *, fresh: bool) -> Page:
        if path not in self._pages:
            return _error(HTTPStatus.NOT_FOUND, f"there are {', '.join(self._pages)}")
        when, page = self._made.get(path, (0.0, None))
        if fresh or page is None or time.monotonic() - when > FRESH:
            page = self._make(path)
            self._made[path] = (time.monotonic(), page)
        return page

    def _make(self, path: str) -> Page:
        try:
            return self._pages[path]()
        except Exception as error:
            log.exception("%s failed unexpectedly", path)
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))


def _bound(place: tuple[str, int]) -> socket.socket:
    six = ":" in place[0]
    return socket.create_server(place, family=socket.AF_INET6 if six else socket.AF_INET, dualstack_ipv6=six)


def _is_own(writer: asyncio.StreamWriter) -> bool:
    """Return whether a connection comes from this node: its addresses are on no other machine."""
    peer, here = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
    return bool(peer and here) and (peer[0] == here[0] or ipaddress.ip_address(peer[0]).is_loopback)


def _error(status: HTTPStatus, text: str = "") -> Page:
    return Page(f"{text or status.phrase}\n".encode(), status=status)


def _encode(page: Page, *, body: bool = True) -> bytes:
    lines = [
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        f"Content-Type: {page.type}",
        f"Content-Length: {len(page.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if page.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (page.body if body else b"")
