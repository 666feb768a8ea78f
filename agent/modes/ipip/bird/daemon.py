"""The process bird: find the installed one, write its files, start it, find it again, end it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from agent.modes.ipip.bird.control import Control, ControlError
from agent.modes.ipip.bird.types import BirdError, BirdTimes
from agent.runtime.atomic_file import beside, read

CHECK_TIMEOUT = 20.0  # seconds; bird -p takes 10 ms
END_WITHIN = 5.0
MAJOR = 2
RUNS_ON = f"install BIRD {MAJOR} (Debian: bird2)"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Files:
    """The paths of BIRD's files, in a folder of the agent's own on a tmpfs."""

    folder: Path
    answer_within: float = BirdTimes().answer
    """Seconds that BIRD has for one reply on its socket."""

    def control(self, *, change: bool = False) -> Control:
        """Return a connection to BIRD, read-only unless `change`. Raises ControlError."""
        return Control(self.socket, change=change, timeout=self.answer_within)

    @property
    def conf(self) -> Path:
        """The configuration, with mode 0600 because it contains passwords."""
        return self.folder / "bird.conf"

    @property
    def standby(self) -> Path:
        """The configuration for a BIRD that does not change routes in the kernel."""
        return self.folder / "bird.conf.standby"

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.folder / "bird.ctl"

    @property
    def pid(self) -> Path:
        """The file that BIRD writes its pid to."""
        return self.folder / "bird.pid"

    @property
    def log(self) -> Path:
        """The named pipe for its log, which the next agent finds again."""
        return self.folder / "bird.log"


def version(program: str) -> str:
    """Return the installed BIRD's version. Raises BirdError if there is none, or it is unusable."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, errors="replace", timeout=CHECK_TIMEOUT,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise BirdError(f"{program}: {error}", RUNS_ON) from error
    words = done.stdout + done.stderr
    found = re.search(r"BIRD version v?((\d+)\.\S+)", words)
    if not found:
        raise BirdError(f"{program} --version says {words.strip()[:80]!r}", RUNS_ON)
    if found[2] != str(MAJOR):
        raise BirdError(
            f"{program} is BIRD {found[1]}, whose filters cannot set on-link next hops as those of BIRD 2 do",
            RUNS_ON,
        )
    return found[1]


def write(program: str, files: Files, text: str, standby: str) -> None:
    """Write both configurations, after BIRD has accepted `text`. Raises BirdError, OSError."""
    new = beside(files.conf, text)
    try:
        done = subprocess.run(
            [program, "-p", "-c", str(new)], capture_output=True, text=True, errors="replace",
            timeout=CHECK_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise BirdError(f"{program} -p: {error}", RUNS_ON) from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().replace(f"{new}:", "line ")
        raise BirdError(
            f"bird -p refuses the configuration: {words}", f"see {new}; the earlier configuration stays in force"
        )
    new.rename(files.conf)
    beside(files.standby, standby).rename(files.standby)


def restore(files: Files) -> None:
    """Put the standby configuration in place: no change of routes in the kernel. Raises BirdError, OSError."""
    try:
        text = read(files.standby).decode()
    except UnicodeError as error:
        raise BirdError(f"{files.standby}: {error}", "BIRD waits for the datastore; or remove the file") from error
    beside(files.conf, text).rename(files.conf)


class Daemon:
    """A running BIRD, held by a descriptor of its process, as its pid may be reused."""

    def __init__(self, pid: int, fd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.fd = fd
        self._child = child

    def is_alive(self) -> bool:
        """Return whether it still runs."""
        return not select.select([self.fd], [], [], 0)[0]

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, number)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it has ended."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        if self._child:
            self._child.wait()
        return True

    def forget(self) -> None:
        """Close the descriptor, and reap a child that has ended."""
        if self._child:
            self._child.poll()
        os.close(self.fd)

    def how_it_ended(self) -> str:
        """Return as text how it ended: by which signal or exit code, if that is known."""
        code = self._child.poll() if self._child else None
        if code is None:
            return "ended"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def start(program: str, files: Files, *, recover: bool, log_to: int) -> Daemon:
    """Start BIRD with its configuration; `recover` keeps the kernel's routes until its peers have sent theirs.

    It runs in a session of its own, so it outlives an agent that is killed. Raises BirdError.
    """
    argv = [program, "-f", "-c", str(files.conf), "-s", str(files.socket), "-P", str(files.pid)]
    try:
        child = subprocess.Popen(
            argv + ["-R"] * recover,
            stdin=subprocess.DEVNULL,
            stdout=log_to,
            stderr=log_to,
            cwd="/",
            start_new_session=True,
        )
        return Daemon(child.pid, os.pidfd_open(child.pid), child)
    except OSError as error:
        raise BirdError(f"{program}: {error}", RUNS_ON) from error


def find(files: Files) -> tuple[Daemon, str] | None:
    """Return the BIRD that an earlier agent left running, and its version ("" if it does not answer).

    Raises BirdError if another process holds the socket.
    """
    try:
        with files.control() as control:
            daemon = _held(control.pid, files)
            return (daemon, control.version) if daemon else None
    except ControlError as error:
        log.debug("no BIRD answers: %s", error)
        hung = _by_pid_file(files)
        return (hung, "") if hung else None


def replace(daemon: Daemon, files: Files) -> None:
    """End it so that its routes stay, in the kernel and at its peers."""
    with contextlib.suppress(ControlError), files.control(change=True) as control:
        if control.graceful_restart() and daemon.wait(END_WITHIN):
            return
    daemon.signal(signal.SIGKILL)  # not SIGTERM: then it closes its sessions, and peers remove its routes
    daemon.wait(END_WITHIN)


def dismiss(daemon: Daemon) -> None:
    """End it permanently: its peers remove its routes at once."""
    daemon.signal(signal.SIGTERM)
    if not daemon.wait(END_WITHIN):
        daemon.signal(signal.SIGKILL)
        daemon.wait(END_WITHIN)


def _held(pid: int, files: Files) -> Daemon | None:
    if pid == 0:
        raise BirdError(
            f"{files.socket} is held by a process of another PID namespace", "give each agent a run-dir of its own"
        )
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if _is_ours(pid, files):
        return Daemon(pid, fd)
    os.close(fd)
    raise BirdError(f"{files.socket} is held by pid {pid}, which is not our BIRD", "end it, or change run-dir")


def _by_pid_file(files: Files) -> Daemon | None:
    try:
        pid = int(read(files.pid))
        fd = os.pidfd_open(pid)
    except (OSError, ValueError, OverflowError):  # no file, or no pid in it
        return None
    if _is_ours(pid, files):  # checked with the descriptor open: before, the pid may have been reused
        return Daemon(pid, fd)
    os.close(fd)
    return None


def _is_ours(pid: int, files: Files) -> bool:
    try:
        return str(files.socket).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def wait_for_socket(daemon: Daemon, files: Files, within: float = END_WITHIN) -> None:
    """Wait until a BIRD that was just started answers. Raises BirdError."""
    deadline = time.monotonic() + within
    while True:
        try:
            with files.control() as control:
                if control.pid == daemon.pid:
                    return
        except ControlError:
            pass
        if daemon.wait(0.005):
            raise BirdError(f"BIRD {daemon.how_it_ended()} as soon as it was started", "see the agent's log")
        if time.monotonic() > deadline:
            raise BirdError(f"BIRD does not open {files.socket}", "see the agent's log")
