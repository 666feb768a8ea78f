"""The agent's unix socket: one request and one answer a connection, in as many threads as are needed."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import strictjson
from agent.cni import protocol
from agent.cni.protocol import Call
from agent.datapath.netns import NetnsLostError
from agent.errors import CniError, Code
from agent.netconf import VERSIONS
from agent.strictjson import JsonError

BACKLOG = 1024
WORKERS = 256  # an ADD may wait for seconds; the rest queues in the backlog
IDLE_WORKERS = 16
REQUEST_WITHIN = 10.0  # seconds
CHUNK = 1 << 16
PEER = struct.Struct("=3i")  # struct ucred: pid, uid, gid

log = logging.getLogger(__name__)


class Server:
    """Answers calls on a unix socket; `answer` may run in many threads at once."""

    def __init__(self, path: Path, answer: Callable[[Call], dict[str, Any]]) -> None:
        self._path = path
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._bound: os.stat_result | None = None
        self._state = threading.Condition()
        self._workers = self._busy = self._hired = 0
        self._stopping = False

    def start(self) -> None:
        """Bind, for this user only, and serve. Raises OSError."""
        self._bind(self._listener)
        self._hire()

    def keep(self) -> None:
        """Bind again where the socket's file is gone, or is not ours. Raises OSError."""
        try:
            if self._bound and os.path.samestat(self._path.stat(), self._bound):
                return
        except FileNotFoundError:
            pass
        with self._state:
            if self._stopping or not self._bound:
                return
            new = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._bind(new)
            self._listener, old = new, self._listener
        old.shutdown(socket.SHUT_RDWR)  # who accepts there goes on with the new one
        old.close()
        log.warning("%s was removed: it is there again", self._path)

    def _bind(self, listener: socket.socket) -> None:
        self._path.unlink(missing_ok=True)  # the run-dir's lock says that nobody serves on it
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(mask)
        self._bound = self._path.stat()
        listener.listen(BACKLOG)

    def stop(self, within: float) -> bool:
        """Take no more calls, finish those at work; False when some are not done after `within` seconds."""
        self._path.unlink(missing_ok=True)
        with self._state:
            self._stopping = True
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes whoever accepts
        with self._state:
            done = self._state.wait_for(lambda: self._busy == 0, within)
        self._listener.close()
        return done

    def _hire(self) -> None:
        self._workers += 1
        self._hired += 1
        threading.Thread(target=self._work, name=f"call-{self._hired}", daemon=True).start()

    def _work(self) -> None:
        """Accept and serve; the last idle worker hires another before it begins."""
        try:
            while True:
                connection = self._accept()
                if connection is None:
                    return
                with self._state:
                    self._busy += 1
                    if self._busy == self._workers < WORKERS and not self._stopping:
                        self._hire()
                try:
                    with connection:
                        self._serve(connection)
                finally:
                    with self._state:
                        self._busy -= 1
                        self._state.notify_all()
                        surplus = self._workers - self._busy > IDLE_WORKERS
                if surplus:
                    return
        except NetnsLostError:
            log.exception("a thread is lost in a pod's network namespace and ends")
        finally:
            with self._state:
                self._workers -= 1
                if self._workers == self._busy and not self._stopping:
                    self._hire()

    def _accept(self) -> socket.socket | None:
        while not self._stopping:
            listener = self._listener
            try:
                return listener.accept()[0]
            except OSError as error:
                if self._stopping:
                    break
                if listener is not self._listener:  # it was bound again
                    continue
                log.error("no call can be taken just now: %s", error)  # out of descriptors or memory
                time.sleep(0.1)
        return None

    def _serve(self, connection: socket.socket) -> None:
        fds: list[int] = []
        try:
            connection.settimeout(REQUEST_WITHIN)
            _check_peer(connection)
            request = _receive(connection, fds)
            answer = self._handle(request, fds[0] if fds else None)
            connection.sendall(answer)
        except NetnsLostError as error:
            lost = CniError(Code.TRY_AGAIN, str(error), "the runtime tries again")
            connection.sendall(protocol.encode_error(lost, VERSIONS[-1]))
            raise
        except CniError as error:
            connection.sendall(protocol.encode_error(error, VERSIONS[-1]))
        except OSError as error:
            log.warning("a call was cut off: %s", error)
        finally:
            for fd in fds:
                os.close(fd)

    def _handle(self, request: bytes, netns: int | None) -> bytes:
        call = protocol.decode(request, netns)
        began = time.monotonic()
        try:
            return json.dumps(self._answer(call)).encode()
        except CniError as error:
            level = logging.DEBUG if error.code == Code.NOT_AVAILABLE else logging.WARNING
            log.log(level, "%s %s %s: %s", call.command, call.container_id, call.ifname, error)
            return protocol.encode_error(error, _version(call))
        except Exception as error:
            log.exception("%s %s %s failed unexpectedly", call.command, call.container_id, call.ifname)
            internal = CniError(
                Code.INTERNAL, f"{type(error).__name__}: {error}", "a bug of testcni; its log has the trace"
            )
            return protocol.encode_error(internal, _version(call))
        finally:
            log.debug("%s %s took %.1f ms", call.command, call.container_id, 1e3 * (time.monotonic() - began))


def _version(call: Call) -> str:
    """The version in which an error is told: the netconf's where that can be read."""
    try:
        found = strictjson.mapping(call.config).get("cniVersion")
    except JsonError:
        return VERSIONS[-1]
    return found if isinstance(found, str) and found in VERSIONS else VERSIONS[-1]


def _check_peer(connection: socket.socket) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    _pid, uid, _gid = PEER.unpack(credentials)
    if uid not in (0, os.geteuid()):
        raise CniError(Code.INVALID_ENVIRONMENT, f"user {uid} may not call the agent", "root may")


def _receive(connection: socket.socket, fds: list[int]) -> bytes:
    """The request up to the client's end of writing; descriptors that come with it are added to `fds`."""
    chunks: list[bytes] = []
    size = 0
    while True:
        chunk, received, _flags, _address = socket.recv_fds(connection, CHUNK, 4)
        fds += received
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > protocol.REQUEST_LIMIT:
            raise CniError(
                Code.DECODING_FAILURE,
                f"the request is longer than {protocol.REQUEST_LIMIT} bytes",
                "shorten it",
            )
