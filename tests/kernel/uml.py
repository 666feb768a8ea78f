"""The guest's kernel: User Mode Linux from Debian's kernel source, built once a machine (4 minutes)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.built import Say, alone, cache

FRAGMENT = Path(__file__).with_name("uml.frag")
SOURCES = Path("/usr/src")
ARCHIVE = re.compile(r"(linux-source-(\d+)\.(\d+))\.tar\.xz")
SAY_EVERY = 60.0  # seconds
MAKE = ("make", "ARCH=um", "-s")
# Bytes of registers: before Linux 6.13 enough for AVX-512 only, and with AMX in the machine no program can start.
PATCHED = ("arch/x86/um/user-offsets.c", "DEFINE_LONGS(HOST_FP_SIZE, 2696)", "DEFINE_LONGS(HOST_FP_SIZE, 12288)")


class KernelError(RuntimeError):
    """There is no kernel for the guest; says why, and what to do."""


@dataclass(frozen=True)
class Source:
    """A Debian package with the source of a kernel."""

    archive: Path
    package: str
    version: str


def build(say: Say) -> Path:
    """The kernel's program, from the cache where it is there. Raises KernelError."""
    if os.uname().machine != "x86_64":
        raise KernelError(f"User Mode Linux is not for {os.uname().machine}, only for x86_64")
    origin = source()
    folder = cache() / f"uml-{_digest(origin)}"
    kernel = folder / "linux"
    with alone(folder.with_suffix(".lock"), say):
        if not kernel.exists():
            unfinished = folder.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                _build(origin, unfinished, say)
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return kernel


def source() -> Source:
    """The newest kernel source that is installed. Raises KernelError."""
    found = [(match, path) for path in SOURCES.glob("*") if (match := ARCHIVE.fullmatch(path.name))]
    if not found:
        raise KernelError(f"no linux-source-*.tar.xz in {SOURCES}: apt-get install linux-source")
    match, archive = max(found, key=lambda one: (int(one[0][2]), int(one[0][3])))
    return Source(archive, match[1], _output("dpkg-query", "-Wf", "${Version}", match[1]))


def options(text: str) -> list[str]:
    """The lines of a config that set something."""
    return [line for line in text.splitlines() if line.startswith("CONFIG_")]


def _digest(origin: Source) -> str:
    """Return a hash of what the kernel depends on."""
    compiler = _output("gcc", "--version").splitlines()[0]
    words = (FRAGMENT.read_text(), origin.package, origin.version, compiler, *PATCHED)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _build(origin: Source, folder: Path, say: Say) -> None:
    say(f"the guest's kernel is built, once a machine: {origin.package} {origin.version}, unpacking")
    _output("tar", "-xf", str(origin.archive), "-C", str(folder))
    tree = folder / origin.package
    _patch(tree)
    _configure(tree)
    _compile(tree, folder / "make.log", say)
    _output("strip", "-o", str(folder / "linux"), str(tree / "linux"))
    (tree / ".config").rename(folder / "config")
    shutil.rmtree(tree)


def _patch(tree: Path) -> None:
    name, old, new = PATCHED
    text = (tree / name).read_text()
    (tree / name).write_text(text.replace(old, new))  # a newer source asks the machine, and needs no patch


def _configure(tree: Path) -> None:
    """All off but the fragment's options, which must all be there."""
    _output(*MAKE, "allnoconfig", cwd=tree, env={**os.environ, "KCONFIG_ALLCONFIG": str(FRAGMENT)})
    wanted = [line for line in options(FRAGMENT.read_text()) if not line.endswith("=n")]
    missing = set(wanted) - set(options((tree / ".config").read_text()))
    if missing:
        raise KernelError(f"{tree.name} cannot set {', '.join(sorted(missing))}: fix {FRAGMENT}")


def _compile(tree: Path, log: Path, say: Say) -> None:
    """Make the kernel, and say now and then how far it is."""
    jobs = len(os.sched_getaffinity(0))
    say(f"compiling by {jobs} jobs")
    with log.open("w") as words:
        argv = (*MAKE, f"-j{jobs}", "linux")
        make = subprocess.Popen(argv, cwd=tree, stdin=subprocess.DEVNULL, stdout=words, stderr=words)
    try:
        while _runs(make):
            say(f"compiling: {sum(1 for _ in tree.rglob('*.o'))} object files")
    finally:
        make.terminate()
    if make.returncode:
        raise KernelError(f"{' '.join(argv)} failed:\n{log.read_text()[-2000:]}")


def _runs(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(SAY_EVERY)
    except subprocess.TimeoutExpired:
        return True
    return False


def _output(*argv: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise KernelError(f"{argv[0]} is not installed") from error
    if done.returncode:
        raise KernelError(f"{' '.join(argv)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()
