"""A machine in miniature: network, mount and UTS namespaces held by one process, on a root of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
GUEST = "TESTCNI_GUEST"
"""Set in the environment of all that runs in a guest of the kernel tier."""
PATIENCE = 4 if GUEST in os.environ else 1
"""The factor by which things may take longer here than on the machine itself."""
PYTHON = (sys.executable, "-ISc")
"""Begins a command of a short program, by Python without packages: `python3` on the PATH may be a slow script."""

# Runs inside the new namespaces: an overlay of the machine's own root, so that nothing is written to it.
SETUP = r"""
set -e
read -r go  # not before it is noted on disk; the end of input when the creator has died
mount -t tmpfs -o mode=0755 lab "$DIR"
mkdir "$DIR/upper" "$DIR/work" "$DIR/root"
mount -t overlay -o "lowerdir=/,upperdir=$DIR/upper,workdir=$DIR/work" lab "$DIR/root" || {
  echo "a node's root is an overlay of this machine's, and this kernel or this / does not allow it" >&2; exit 1; }
cd "$DIR/root"
mount --rbind /proc proc
mount --rbind /dev dev
mount -t sysfs lab sys
mount -t bpf lab sys/fs/bpf || true  # a kernel without bpf has no such folder; the lab does not need it
mount -t tmpfs -o mode=0755 lab run
mount -t tmpfs -o mode=1777 lab tmp
mkdir -p run/netns etc/cni/net.d opt/cni/bin var/lib/testcni
for shared in $SHARED; do mkdir -p ".$shared"; mount --bind "$shared" ".$shared"; done
mkdir run/old
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old
rm -f /etc/cni/net.d/*
hostname "$NAME"
ip link set lo up
echo ready
exec sleep infinity
"""


class SpaceError(RuntimeError):
    """A namespace could not be set up; says what failed."""


def start_time(pid: int) -> str:
    """When a process began, in ticks since boot: with the pid, its identity (proc(5)). Empty: it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


def shared_paths(*more: Path) -> list[str]:
    """Return the paths that must look the same inside: `more`, and those of the project and Python."""
    root = Path("/").stat().st_dev
    own = [path.resolve() for path in (REPO, Path(sys.prefix), Path(sys.base_prefix))]
    hidden = [path for path in own if path.stat().st_dev != root or path.parts[1] in ("run", "tmp")]
    return [str(path) for path in (*more, *hidden)]


class Space:
    """The namespaces of one miniature machine; `begin` sets them up."""

    ENTER: tuple[str, ...] = ("-n", "-m", "-u")
    """The options of nsenter(1) for its namespaces."""

    def __init__(self, name: str, folder: Path, shared: Sequence[Path] = ()) -> None:
        self.name = name
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "DIR": str(folder),
            "NAME": name,
            "SHARED": " ".join(shared_paths(*shared)),
        }
        self._holder = subprocess.Popen(
            self.setup(), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        self.pid = self.inner = self._holder.pid
        """`inner` is the process to enter, another one than the holder where that has a PID namespace."""
        self.began = start_time(self.pid)

    def setup(self) -> Sequence[str]:
        """The command that makes the namespaces and sets them up, after a line on its stdin; it says `ready`."""
        return ("unshare", "--net", "--mount", "--uts", "--propagation", "private", "sh", "-c", SETUP)

    def begin(self) -> None:
        """Let the holder set up; until then it ends when this process does."""
        assert self._holder.stdin
        try:
            with self._holder.stdin as pipe:
                pipe.write("go\n")
        except BrokenPipeError:  # it ended already: wait_ready says why
            return

    def wait_ready(self) -> None:
        """Wait until it is set up; raises SpaceError."""
        assert self._holder.stdout
        assert self._holder.stderr
        with self._holder.stdout as out, self._holder.stderr as err:
            ready, _, pid = out.readline().strip().partition(" ")
            if ready != "ready":
                words = err.read().strip() or "it said nothing"
                raise SpaceError(f"{self.name}: its holder ended with {self._holder.wait()}: {words}")
            self.inner = int(pid or self.pid)

    @property
    def root(self) -> Path:
        """Its root folder, seen from outside."""
        return Path(f"/proc/{self.inner}/root")

    @property
    def netns(self) -> Path:
        """Its network namespace, seen from outside."""
        return Path(f"/proc/{self.pid}/ns/net")

    def argv(self, *command: str) -> list[str]:
        """The command line that runs `command` inside."""
        return ["nsenter", "-t", str(self.inner), *self.ENTER, *command]

    def exec(
        self,
        *command: str,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and wait for it; raises SpaceError with its words when it fails and `check`."""
        done = subprocess.run(
            self.argv(*command), check=False, capture_output=True, text=True, input=stdin, env=env, timeout=timeout
        )
        if check and done.returncode:
            words = "\n".join(filter(None, (done.stderr.strip(), done.stdout.strip())))
            raise SpaceError(f"{self.name}: {' '.join(command)}: exit code {done.returncode}: {words}")
        return done

    def batch(self, lines: Sequence[str]) -> None:
        """Run many `ip` commands inside at once."""
        self.exec("ip", "-batch", "-", stdin="\n".join(lines) + "\n")

    def reap(self) -> None:
        """Wait for a holder that was ended."""
        self._holder.wait()


def processes_in(holders: Sequence[int]) -> list[int]:
    """All processes in the mount namespaces of some holders, the holders last."""
    # a holder that has only just started is still in the machine's own namespace, with everybody else
    own = {None, _mount_namespace(os.getpid()), _mount_namespace(1)}
    namespaces = {_mount_namespace(pid) for pid in holders} - own
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    inside = [pid for pid in pids if pid not in holders and _mount_namespace(pid) in namespaces]
    return [*inside, *holders]


def _mount_namespace(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/ns/mnt").readlink()
    except OSError:  # it has ended
        return None


def kill_all(pids: Sequence[int], within: float = 60.0) -> None:
    """Kill these processes and wait until they are gone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    end = time.monotonic() + within
    while any(map(start_time, pids)) and time.monotonic() < end:
        time.sleep(0.005)


def end_all(holders: Sequence[int], within: float = 60.0) -> None:
    """Kill all processes in the mount namespaces of some holders; these last, as by them others are found.

    One look is not enough: who is killed may just have started another.
    """
    end = time.monotonic() + within
    while (inside := processes_in(holders)[: -len(holders)]) and time.monotonic() < end:
        kill_all(inside)
    kill_all(holders)


def remove_tree(folder: Path) -> None:
    """Remove a lab's folder; its mounts were only in the namespaces that are gone."""
    shutil.rmtree(folder, ignore_errors=False)
