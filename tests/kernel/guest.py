"""A guest: a command on another kernel and on this machine's own root, of which it can change nothing."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from tests.built import Say
from tests.lab.space import GUEST, shared_paths

INIT = Path(__file__).with_name("init.sh")
MEMORY = 3 << 30
CRASHED, TIMED_OUT = 125, 124
DONE = "guest: the command has ended"
# Its processes are real ones, traced by its kernel; untraced they would go on as root of this machine. The end of
# a PID namespace ends them all at once, and its first process dies with the one that started the guest.
CAGE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
HOLDER = ("sh", "-c", '"$@"; exit $?', "sh")


def run(
    kernel: Path,
    argv: Sequence[str],
    *,
    within: float,
    say: Say,
    out: BinaryIO | None = None,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command in a guest, its output to `out` (stdout); its exit code, or CRASHED, or TIMED_OUT.

    On one core it is quicker: each system call in it is two switches between processes, one running at a time.
    """
    pinned = () if core is None else ("taskset", "-c", str(core))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="testcni-guest-") as name:
        folder, log = Path(name), Path(name) / "log"
        _write_init(folder / "init", argv, {**os.environ, **(environment or {}), GUEST: "1"})
        with log.open("wb") as words:
            process = subprocess.Popen(
                (*pinned, *CAGE, *HOLDER, str(kernel), *_options(folder)), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=words, env={**os.environ, "TMPDIR": _memory_folder(folder)},
            )  # fmt: skip
        with process:
            try:
                ended = _pump(process, out or sys.stdout.buffer, began, within, say)
                code = process.wait(2) if ended else TIMED_OUT
            except subprocess.TimeoutExpired:
                code = TIMED_OUT
            finally:
                process.kill()
        return _judge(code, log.read_text(errors="replace"), within, say)


def _options(folder: Path) -> list[str]:
    """The kernel's command line: tty0, its own, is stderr, and tty1 stdout."""
    return [
        "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={folder}/init", f"mem={MEMORY >> 20}M",
        "con=null", "con0=null,fd:2", "con1=null,fd:1", f"uml_dir={folder}/",
    ]  # fmt: skip


def _write_init(path: Path, argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """The guest's first program, which knows by itself what to run and where."""
    values = {**environment, "FOLDER": str(Path.cwd())}
    lines = [f"export {key}={shlex.quote(value)}" for key, value in values.items() if key.isidentifier()]
    lines += [f"COMMAND={shlex.quote(shlex.join(argv))}", f"SHARED={shlex.quote(' '.join(shared_paths()))}"]
    lines += [f"DONE={shlex.quote(DONE)}"]
    path.touch(mode=0o700)
    path.write_text("\n".join(["#!/bin/sh", *lines, INIT.read_text()]))


def _memory_folder(otherwise: Path) -> str:
    """Return where the file that is the guest's memory lies: not on a disk, if it can be."""
    shm = Path("/dev/shm")  # noqa: S108 - a file system, not a file with a name to guess
    return str(shm if shm.is_dir() and shutil.disk_usage(shm).free > MEMORY else otherwise)


def _pump(process: subprocess.Popen[bytes], out: BinaryIO, began: float, within: float, say: Say) -> bool:
    """Hand on what the guest says until it ends; False: it did not in time."""
    assert process.stdout
    first, greeted = b"", False
    while (left := began + within - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            return True
        if not greeted:
            first += data
            greeted = b"\n" in first
            data = _greet(first, time.monotonic() - began, say) if greeted else b""
        out.write(data)
        out.flush()
    return False


def _greet(said: bytes, took: float, say: Say) -> bytes:
    """Say that the guest is up, and return the rest of its output; if it is not up, all of it."""
    greeting, _, rest = said.partition(b"\n")
    if not greeting.startswith(b"Linux "):
        return said
    say(f"{greeting.decode(errors='replace')} booted in {took:.1f} s")
    return rest


def _judge(code: int, log: str, within: float, say: Say) -> int:
    """Return the exit code. If it is not the command's, show the last lines of the kernel."""
    if code == TIMED_OUT:
        say(f"the guest was ended: not done within {within:.0f} s")
    elif DONE not in log or "Kernel panic" in log:
        code = CRASHED
        say("the guest crashed")
    else:
        return code
    say("its kernel's last words:\n" + "\n".join(log.splitlines()[-40:]))
    return code
