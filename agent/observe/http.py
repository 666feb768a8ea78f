"""Metrics and health over HTTP: GET and HEAD, one request a connection, whatever the client does.

One thread serves all connections by turns, so clients that are slow or many cost no threads and hold up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from agent.model import Problem
from agent.shared import Latest

TEXT = "text/plain; charset=utf-8"
WITHIN = 5.0  # seconds for all of a connection
LONGEST = 8192  # bytes of a request
MOST = 64  # connections; one more ends the oldest
WAITING = 1024  # connections not yet taken, in the kernel
AGAIN = 5.0  # seconds until a port in use is tried again
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

    def __init__(self, address: tuple[str, int], pages: Pages, problems: Latest[Mapping[str, Problem]]) -> None:
        self.port = 0
        """The port while it is served on."""
        self._address = address
        self._pages = pages
        self._problems = problems
        self._open: list[asyncio.Task[None]] = []

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; a port in use is a problem, and tried again."""
        host, port = self._address
        where = f"--listen [{host}]:{port}" if ":" in host else f"--listen {host}:{port}"
        while not stop.is_set():
            try:
                asyncio.run(self._serve(stop))
            except OSError as error:
                what = error.strerror or str(error)
                problem = Problem(where, what, "free it or choose another; until then no metrics and no health")
                self._problems.publish({"listen": problem})
                stop.wait(AGAIN)

    async def _serve(self, stop: threading.Event) -> None:
        six = ":" in self._address[0]
        family = socket.AF_INET6 if six else socket.AF_INET
        sock = socket.create_server(self._address, family=family, dualstack_ipv6=six)
        server = await asyncio.start_server(self._talk, sock=sock, limit=LONGEST, backlog=MOST)
        async with server:
            sock.listen(WAITING)  # more than are taken at once: one that is dropped comes again after 1 s
            self.port = sock.getsockname()[1]
            self._problems.publish({})
            while not stop.is_set():
                await asyncio.sleep(0.2)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its request to its end."""
        if len(self._open) >= MOST:
            self._open.pop(0).cancel()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open.append(task)
        try:
            async with asyncio.timeout(WITHIN):
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # its own fault or bad luck: no line in the log for every port scan
        finally:
            writer.transport.abort()
            with contextlib.suppress(ValueError):
                self._open.remove(task)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            return _encode(_error(HTTPStatus.BAD_REQUEST))
        request = REQUEST.match(head)
        if not request:
            return _encode(_error(HTTPStatus.BAD_REQUEST))
        method, path = request[1].decode(), request[2].decode().partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _encode(_error(HTTPStatus.METHOD_NOT_ALLOWED))
        return _encode(self._page(path), body=method == "GET")

    def _page(self, path: str) -> Page:
        if path not in self._pages:
            return _error(HTTPStatus.NOT_FOUND, f"there are {', '.join(self._pages)}")
        try:
            return self._pages[path]()
        except Exception as error:
            log.exception("%s failed unexpectedly", path)
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))


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
