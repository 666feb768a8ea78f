"""Connections of the agent's socket whose request is not complete yet: they need no thread.

A client has one deadline for its whole request. The number of connections without a complete request is limited;
one more closes the oldest.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from agent.cni import protocol
from agent.cni.netconf import VERSIONS
from agent.errors import CniError, Code

MOST = 256  # connections without a complete request; the plugin sends its request at once
REQUEST_WITHIN = 10.0  # seconds from the connection to the end of the request
CHUNK = 1 << 16
FDS = 4  # descriptors that one message may have; the plugin sends one
PEER = struct.Struct("=3i")  # struct ucred: pid, uid, gid
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class PendingRequest:
    """A connection and the part of its request that has arrived. The thread that takes it closes it."""

    connection: socket.socket
    deadline: float
    """time.monotonic"""
    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    fds: list[int] = field(default_factory=list)

    @property
    def request(self) -> bytes:
        """The bytes that have arrived."""
        return b"".join(self.chunks)

    def close(self) -> None:
        """Close the connection and the descriptors that it brought."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        self.connection.close()  # last, as the client sees this

    def receive(self) -> bool:
        """Read what has arrived; return whether the request is complete. Raises CniError, OSError."""
        while True:
            try:
                chunk, received, _flags, _address = socket.recv_fds(self.connection, CHUNK, FDS)
            except BlockingIOError:
                return False
            self.fds += received
            if not chunk:
                return True
            self.chunks.append(chunk)
            self.size += len(chunk)
            if self.size > protocol.REQUEST_LIMIT:
                what = f"the request is longer than {protocol.REQUEST_LIMIT} bytes"
                raise CniError(Code.DECODING_FAILURE, what, "shorten it")


class PendingRequests:
    """Accept connections and hand out those whose request is complete, to one thread at a time."""

    def __init__(self, listener: socket.socket, within: float = REQUEST_WITHIN) -> None:
        """`within`: seconds from the connection to the end of the request."""
        self._within = within
        listener.setblocking(False)
        self._listener = listener
        self._turn = threading.Lock()
        self._over = False
        self._pending: dict[int, PendingRequest] = {}
        """The requests by descriptor, the oldest first, which is also the order of their deadlines."""
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def next(self) -> PendingRequest | None:
        """Wait for the next complete request; return None after `end`. For several threads at once."""
        with self._turn:
            while not self._over:
                for fd, events in self._epoll.poll(self._until_next()):
                    if fd != self._listener.fileno():
                        arrival = self._pending.get(fd)
                    elif events & select.EPOLLHUP:
                        return None
                    else:
                        arrival = self._accept()
                    if arrival and self._receive(arrival):
                        return arrival
                self._end_late()
        return None

    def end(self) -> None:
        """Accept no more connections, and close those without a complete request."""
        self._over = True
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits
        with self._turn:
            for arrival in self._pending.values():
                arrival.close()
            self._pending.clear()
            self._epoll.close()
            self._listener.close()

    def _until_next(self) -> float:
        oldest = next(iter(self._pending.values()), None)
        return max(0.0, oldest.deadline - time.monotonic()) if oldest else -1

    def _accept(self) -> PendingRequest | None:
        """Accept a connection; if there are too many, close the oldest."""
        try:
            connection, _address = self._listener.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in SCARCE and self._pending:
                self._end(next(iter(self._pending.values())), "the agent has no descriptors or memory left")
            else:
                log.error("cannot accept connections: %s", error)
                time.sleep(0.1)
            return None
        if len(self._pending) >= MOST:
            self._end(next(iter(self._pending.values())), f"{MOST} newer connections wait")
        connection.setblocking(False)
        arrival = PendingRequest(connection, time.monotonic() + self._within)
        self._pending[connection.fileno()] = arrival
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return arrival

    def _receive(self, arrival: PendingRequest) -> bool:
        """Read the bytes that have arrived; return whether the request is complete and can be taken."""
        try:
            if not arrival.chunks:
                _check_peer(arrival.connection)
            if not arrival.receive():
                return False
        except CniError as error:
            with contextlib.suppress(OSError):
                arrival.connection.send(protocol.encode_error(error, VERSIONS[-1]))
            self._end(arrival, str(error))
            return False
        except OSError as error:
            self._end(arrival, str(error))
            return False
        self._forget(arrival)
        return True

    def _end_late(self) -> None:
        now = time.monotonic()
        for arrival in [one for one in self._pending.values() if one.deadline <= now]:
            self._end(arrival, f"its request was not complete after {self._within:g} s")

    def _end(self, arrival: PendingRequest, why: str) -> None:
        log.warning("a call was cut off: %s", why)
        self._forget(arrival)
        arrival.close()

    def _forget(self, arrival: PendingRequest) -> None:
        self._epoll.unregister(arrival.connection.fileno())
        del self._pending[arrival.connection.fileno()]


def _check_peer(connection: socket.socket) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    _pid, uid, _gid = PEER.unpack(credentials)
    if uid not in (0, os.geteuid()):
        raise CniError(Code.INVALID_ENVIRONMENT, f"user {uid} may not call the agent", "root may")
