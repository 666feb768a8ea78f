"""Metrics and health over HTTP: GET and HEAD, one request a connection, whatever the client does.

One thread serves all connections by turns, so clients that are slow or many cost no threads and hold up nobody.
Those from the node itself, as kubelet's probes, have a budget of their own: no pod can take it.
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
WITHIN = 5.0  # seconds for all of a connection
LONGEST = 8192  # bytes of a request
MOST = 64  # connections from the node itself, and as many from elsewhere; one more ends the oldest of its kind
AT_ONCE = 16  # connections that are taken by turns
FRESH = 0.5  # seconds: how old a page for others may be; making one costs more than asking for it
WAITING = 1024  # connections not yet taken, in the kernel
LOOPBACK = "127.0.0.1"
LOOK = 0.2  # seconds until the end is noticed
AGAIN = 5.0  # seconds until a port in use is tried again
PATIENCE, LOOK_SOON = 4.0, 0.05  # seconds: how long an answer may wait to be a good one, and how often it is made
WAIT = re.compile(r"wait=([0-9]{1,3})")
REQUEST = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.[01]\r?\n")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: bytes
    type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK


Pages = Mapping[str, Callable[[], Page]]
"""What makes the page of each path."""


class Http:
    """Serves pages on an address and a port (0: any that is free)."""

    def __init__(self, address: tuple[str, int], pages: Pages, problems: PartProblems) -> None:
        self.port = 0
        """The port while it is served on."""
        self._address = address
        self._pages = pages
        self._problems = problems
        self._open: dict[bool, list[asyncio.Task[None]]] = {True: [], False: []}
        """The connections by whether they come from the node itself, the oldest first."""
        self._made: dict[str, tuple[float, Page]] = {}

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; a port in use is a problem, and tried again."""
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
                    where, what, "free it or choose another; until then no metrics and no health there"
                )
                self._tell(name, problem)
                end = time.monotonic() + AGAIN
                while not stop.is_set() and time.monotonic() < end:
                    await asyncio.sleep(min(AGAIN, LOOK))

    def _tell(self, name: str, problem: Problem | None) -> None:
        """Report what hinders a listener, None: nothing does."""
        self._problems.update(
            lambda known: {key: one for key, one in {**known, name: problem}.items() if one is not None}
        )

    async def _serve_on(self, sock: socket.socket, name: str, stop: threading.Event) -> None:
        server = await asyncio.start_server(self._talk, sock=sock, limit=LONGEST, backlog=AT_ONCE)
        async with server:
            sock.listen(WAITING)  # more than are taken at once: one that is dropped comes again after 1 s
            if name == "listen":
                self.port = sock.getsockname()[1]
            self._tell(name, None)
            while not stop.is_set():
                await asyncio.sleep(LOOK)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its request to its end."""
        own = _is_own(writer)
        kind = self._open[own]
        if len(kind) >= MOST:
            kind.pop(0).cancel()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        kind.append(task)
        try:
            async with asyncio.timeout(WITHIN):
                writer.write(await self._answer(reader, fresh=own))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # its own fault or bad luck: no line in the log for every port scan
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
        """Return the page for a client on this node; with `wait=SECONDS` when it is no 503, or after that time.

        kubelet writes a warning Event for each probe that fails, also for one of an agent that has just begun.
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
    """Whether a connection comes from this node: nobody elsewhere can answer for its addresses."""
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
