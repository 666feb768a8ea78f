"""A client of BIRD's control socket: lines with a code of four digits, as birdc speaks it.

`NNNN-text` is a line of a reply and `NNNN text` its last one; a line that begins with a blank goes on with the
code before it, and one with `+` is a log line (BIRD's source, nest/cli.c). Codes from 8000 on are errors.
"""

from __future__ import annotations

import logging
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.modes.ipip.bird.types import BirdError, BirdTimes, Session, State

LONGEST = 1 << 20  # bytes of one line
READY = 1
RECONFIGURED, IN_PROGRESS, QUEUED = 3, 4, 5
PROTOCOL, DETAILS = 1002, 1006
GRACEFUL_RESTART = 25
UCRED = struct.Struct("=iII")  # pid, uid, gid: SO_PEERCRED of socket(7)
CODED = re.compile(r"(\d{4})([ -])(.*)")
COUNTS = re.compile(r"Routes:\s+(\d{1,18}) imported,(?: \d+ filtered,)? (\d{1,18}) exported")
TOTAL = re.compile(r"\b(\d{1,18}) of \d+ routes for")
PREFIX = re.compile(r"\d+\.\d+\.\d+\.\d+/\d+(?=\s)")
COLUMNS = 4  # of a protocol's line, beside the last one, which may be empty
VERSION = re.compile(r"BIRD v?(\d+)\.(\S+)")


log = logging.getLogger(__name__)


class ControlError(OSError):
    """BIRD does not answer, or its answer is invalid."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: its last code, and all its lines with their codes."""

    code: int
    lines: tuple[tuple[int, str], ...]

    @property
    def text(self) -> str:
        """Return all lines as one text, for people."""
        return "; ".join(text.strip() for _code, text in self.lines if text.strip())


@dataclass(frozen=True, slots=True)
class Protocol:
    """A protocol as `show protocols all` has it."""

    name: str
    kind: str
    state: str
    """up, down, start, stop, feed, flush or wait."""
    info: str = ""
    bgp: State | None = None
    error: str = ""
    imported: int = 0
    exported: int = 0


class Control:
    """A connection to BIRD, read-only unless `change`. All methods raise ControlError."""

    def __init__(self, path: Path, *, change: bool = False, timeout: float = BirdTimes().answer) -> None:
        """`timeout`: seconds for one reply."""
        self._timeout = timeout
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self.pid: int = UCRED.unpack(
                self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
            )[0]
            """The process that opened the socket; 0: one that is not in our PID namespace."""
            self.version = _version(self._reply())
            if not change:
                self.ask("restrict")
        except OSError as error:
            self._socket.close()
            raise error if isinstance(error, ControlError) else ControlError(f"{path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, command: str) -> Reply:
        """Return BIRD's reply to one command; an error that it reports is a reply, too."""
        if "\n" in command:
            raise ControlError("a command is one line")
        try:
            self._socket.sendall(f"{command}\n".encode())
            return self._reply()
        except OSError as error:
            raise error if isinstance(error, ControlError) else ControlError(f"{command}: {error}") from error

    def configure(self) -> None:
        """Make BIRD read its configuration again. Raises BirdError if it refuses, else ControlError."""
        reply = self.ask("configure")
        if reply.code not in (RECONFIGURED, IN_PROGRESS, QUEUED):
            raise BirdError(
                f"BIRD refused its configuration: {reply.text}", "see bird.conf in the agent's run-dir"
            )

    def graceful_restart(self) -> bool:
        """Make BIRD (2.0.8 or later) end so that peers and kernel keep its routes; return whether it will."""
        return self.ask("graceful restart").code == GRACEFUL_RESTART

    def is_busy(self) -> bool:
        """Return whether a reconfiguration, or the recovery from a restart, is still in progress."""
        text = self.ask("show status").text
        return "Reconfiguration in progress" in text or "Graceful restart recovery in progress" in text

    def route_count(self) -> int:
        """Return the number of routes in all tables of BIRD."""
        found = TOTAL.search(self.ask("show route count").text)
        if not found:
            raise ControlError("show route count: no count in the reply")
        return int(found[1])

    def routes(self) -> frozenset[IPv4Network]:
        """Return the IPv4 destinations in all tables of BIRD; an unreadable line is skipped."""
        lines = self.ask("show route").lines
        return frozenset(_networks(found[0] for _code, text in lines if (found := PREFIX.match(text))))

    def protocols(self) -> tuple[Protocol, ...]:
        """Return all protocols with their details."""
        return tuple(parse_protocols(self.ask("show protocols all").lines))

    def _reply(self) -> Reply:
        lines: list[tuple[int, str]] = []
        code = -1
        end = time.monotonic() + self._timeout
        while True:
            line = self._line(end)
            coded = CODED.fullmatch(line)
            if line.startswith("+"):
                continue
            if not coded:
                if not line.startswith(" ") or code < 0:
                    raise ControlError(f"{line[:40]!r} is not a line of BIRD's control protocol")
                lines.append((code, line[1:]))
                continue
            code = int(coded[1])
            lines.append((code, coded[3]))
            if coded[2] == " ":
                return Reply(code, tuple(lines))

    def _line(self, end: float) -> str:
        while not self._lines:
            left = end - time.monotonic()
            if left < -self._timeout:
                raise ControlError("BIRD's answer has no end")
            if len(self._rest) > LONGEST:
                raise ControlError("BIRD's line has no end")
            self._socket.settimeout(max(0.0, left))  # 0: read what has already arrived
            try:
                data = self._socket.recv(1 << 16)
            except (TimeoutError, BlockingIOError) as error:
                raise ControlError(f"BIRD has not answered within {self._timeout:g} s") from error
            if not data:
                raise ControlError("BIRD closed its control socket")
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines.extend(lines)
        return self._lines.popleft().decode(errors="replace")


def _version(reply: Reply) -> str:
    """Return `2.0.12` from `0001 BIRD 2.0.12 ready.`. Raises ControlError."""
    found = VERSION.search(reply.text)
    if reply.code != READY or not found:
        raise ControlError(f"{reply.text[:60]!r} is not a greeting of BIRD")
    return f"{found[1]}.{found[2]}"


def _networks(texts: Iterable[str]) -> Iterator[IPv4Network]:
    for text in texts:
        try:
            yield IPv4Network(text)
        except ValueError:
            log.debug("BIRD has a route to %r, which is not an IPv4 network", text)


def parse_protocols(lines: tuple[tuple[int, str], ...]) -> Iterator[Protocol]:
    """Yield the protocols in the lines of `show protocols all`; an unreadable one is skipped."""
    row: list[str] = []
    details: list[str] = []
    for code, text in lines:
        if code == PROTOCOL:
            if row:
                yield _protocol(row, details)
            row, details = text.split(None, COLUMNS), []
            if len(row) < COLUMNS:
                log.debug("%r is not a protocol of BIRD", text)
                row = []
        elif code == DETAILS:
            details.append(text)
    if row:
        yield _protocol(row, details)


def _protocol(row: list[str], details: list[str]) -> Protocol:
    name, kind, state = row[0], row[1], row[3]
    fields = dict(_field(line) for line in details)
    counts = [(int(m[1]), int(m[2])) for line in details if (m := COUNTS.search(line))]
    bgp = None
    if kind == "BGP":
        known = fields.get("BGP state", "")
        bgp = State(known) if known in {*State} else State.DOWN
    return Protocol(
        name=name,
        kind=kind,
        state=state,
        info=row[COLUMNS] if len(row) > COLUMNS else "",
        bgp=bgp,
        error=fields.get("Last error", ""),
        imported=sum(imported for imported, _exported in counts),
        exported=sum(exported for _imported, exported in counts),
    )


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.strip().partition(":")
    return name.strip(), value.strip()


def sessions(protocols: tuple[Protocol, ...], names: dict[str, str]) -> tuple[Session, ...]:
    """Return the BGP sessions with the names of their peers, sorted by these."""
    found = (
        Session(names.get(p.name, p.name), p.bgp, p.imported, p.exported, p.error) for p in protocols if p.bgp
    )
    return tuple(sorted(found, key=lambda session: session.peer))
