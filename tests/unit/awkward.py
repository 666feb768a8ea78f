"""An API server on the loopback whose every answer a test decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kubernetes.client.configuration import Configuration


@dataclass
class Asked:
    """One request as the server saw it."""

    method: str
    path: str
    query: dict[str, str]
    token: str
    body: Any = None
    client: Any = None
    """The other end of the connection."""
    at: float = field(default_factory=time.monotonic)

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query


Answer = tuple[int, Any] | Iterator[bytes]
"""A status and a document, or the lines of a watch."""


class Awkward:
    """An API server whose every answer is a function of the request."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.asked: list[Asked] = []
        self.answer = answer
        awkward = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body waits 40 ms for the acknowledgement of its head

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                token = self.headers.get("authorization", "")
                asked = Asked(self.command, url.path, dict(parse_qsl(url.query)), token, body, self.client_address)
                awkward.asked.append(asked)
                answer = awkward.answer(asked)
                if isinstance(answer, tuple):
                    self._document(*answer)
                else:
                    self._stream(answer)

            do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

            def _document(self, status: int, doc: Any) -> None:
                data = doc if isinstance(doc, bytes) else json.dumps(doc).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "2")
                self.send_header("Content-Length", str(len(data)))
                try:
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client did not wait for it
                    self.close_connection = True

            def _stream(self, lines: Iterator[bytes]) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    for line in lines:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # a SYN that finds the queue full is sent again after a second

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def config(port: int, token: str) -> Configuration:
    configuration = Configuration(host=f"http://127.0.0.1:{port}", api_key={"BearerToken": token})
    configuration.retries = False
    return configuration
