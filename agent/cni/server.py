"""The agent's unix socket: each connection has one request and one answer. Threads are started as needed."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.cni import protocol
from agent.cni.connections import REQUEST_WITHIN, PendingRequest, PendingRequests
from agent.cni.netconf import VERSIONS
from agent.cni.protocol import Call
from agent.codec import strict_json
from agent.codec.strict_json import JsonError
from agent.errors import CniError, Code
from agent.kernel.netns import NetnsLostError

BACKLOG = 1024
WORKERS = 256  # threads, as an ADD may wait for seconds; more calls wait in the backlog
IDLE_WORKERS = 16
ANSWER_WITHIN = 10.0  # seconds for the client to take its answer

log = logging.getLogger(__name__)


class Server:
    """Answers calls on a unix socket; `answer` runs in many threads at once."""

    def __init__(
        self,
        path: Path,
        answer: Callable[[Call], dict[str, Any]],
        *,
        request_within: float = REQUEST_WITHIN,
        answer_within: float = ANSWER_WITHIN,
    ) -> None:
        """Seconds for a client: `request_within` to send its whole request, `answer_within` to take its answer."""
        self._request_within = request_within
        self._answer_within = answer_within
        self._path = path
        self._answer = answer
        self._arrivals: PendingRequests | None = None
        self._bound: os.stat_result | None = None
        self._state = threading.Condition()
        self._workers = self._busy = self._hired = 0
        self._stopping = False

    def start(self) -> None:
        """Bind the socket, with mode 0600, and serve. Raises OSError."""
        self._arrivals = self._bind()
        with self._state:
            self._hire()

    def keep(self) -> None:
        """Ensure that there is a worker, and bind again if the socket's file was removed. Raises OSError."""
        with self._state:
            if not self._workers and self._arrivals and not self._stopping:
                self._hire()
        try:
            if self._bound and os.path.samestat(self._path.stat(), self._bound):
                return
        except FileNotFoundError:
            pass
        with self._state:
            if self._stopping or not self._arrivals:
                return
            old, self._arrivals = self._arrivals, self._bind()
        old.end()  # workers that wait there continue with the new one
        log.warning("%s was removed, and is created again", self._path)

    def _bind(self) -> PendingRequests:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path.unlink(
            missing_ok=True
        )  # this agent holds the lock of the run-dir, so no other agent serves on it
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(mask)
        self._bound = self._path.stat()
        listener.listen(BACKLOG)
        return PendingRequests(listener, self._request_within)

    def stop(self, within: float) -> bool:
        """Accept no more calls, wait for those at work; return False if one takes over `within` seconds."""
        with self._state:
            self._stopping = True  # from here on the socket is not created again
        self._path.unlink(missing_ok=True)
        if self._arrivals:
            self._arrivals.end()
        with self._state:
            return self._state.wait_for(lambda: self._busy == 0, within)

    def _hire(self) -> None:
        """Start one more worker, if the kernel allows another thread. The caller holds the lock `_state`."""
        try:
            threading.Thread(target=self._work, name=f"call-{self._hired + 1}", daemon=True).start()
        except RuntimeError as error:  # pids.max, or no memory
            log.warning("calls wait for the %d threads at work: %s", self._workers, error)
            return
        self._workers += 1
        self._hired += 1

    def _work(self) -> None:
        """Serve calls; the last idle worker starts another worker before it serves one."""
        try:
            while arrival := self._next():
                with self._state:
                    self._busy += 1
                    if self._busy == self._workers < WORKERS and not self._stopping:
                        self._hire()
                try:
                    self._serve(arrival)
                finally:
                    with self._state:
                        self._busy -= 1
                        self._state.notify_all()
                        surplus = self._workers - self._busy > IDLE_WORKERS
                if surplus:
                    return
        except NetnsLostError:
            log.exception("a thread could not leave a pod's network namespace, and ends")
        finally:
            with self._state:
                self._workers -= 1
                if self._workers == self._busy and not self._stopping:
                    self._hire()

    def _next(self) -> PendingRequest | None:
        """Wait for a call; return None when the server stops."""
        while not self._stopping and (arrivals := self._arrivals):
            if arrival := arrivals.next():
                return arrival
        return None

    def _serve(self, arrival: PendingRequest) -> None:
        """Answer a call. Raises NetnsLostError, after the answer, if this thread must end."""
        lost: NetnsLostError | None = None
        try:
            answer = self._handle(arrival.request, arrival.fds[0] if arrival.fds else None)
        except CniError as error:
            answer = protocol.encode_error(error, VERSIONS[-1])
        except NetnsLostError as error:
            lost = error
            again = CniError(Code.TRY_AGAIN, str(error), "the runtime tries again")
            answer = protocol.encode_error(again, VERSIONS[-1])
        try:
            arrival.connection.settimeout(self._answer_within)
            arrival.connection.sendall(answer)
        except OSError as error:
            log.warning("a call was cut off: %s", error)
        finally:
            arrival.close()
        if lost:
            raise lost

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
    """Return the CNI version for an error: the netconf's if it can be read, else the newest."""
    try:
        found = strict_json.mapping(call.config).get("cniVersion")
    except JsonError:
        return VERSIONS[-1]
    return found if isinstance(found, str) and found in VERSIONS else VERSIONS[-1]
