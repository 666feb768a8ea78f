"""`make ebpf-kernels`: what the verifiers of Debian's kernels make of the eBPF objects, under emulation.

The guest has nothing but memory: a kernel as Debian packs it, and every file that loading the objects used on this
machine, at the same paths.
"""

from __future__ import annotations

import gzip
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.built import alone, cache
from tests.kernel.uml import KernelError
from tests.lab.space import REPO

BRANCHES = ("5.15", "6.1", "6.12")
LOOK = """
import sys
from tests.netns import verify
code = verify.main()
used = {getattr(module, "__file__", None) for module in sys.modules.values()} - {None}
used |= {line.split()[-1] for line in open("/proc/self/maps") if " /" in line}
print(*sorted(used), sep="\\n", file=sys.stderr)
sys.exit(code)
"""
INIT = """#!PYTHON -S
import ctypes, os, sys, traceback
libc = ctypes.CDLL(None)
for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("bpf", "/sys/fs/bpf")):
    if libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None):
        print("no", kind, flush=True)
sys.path[:0] = PATHS
os.environ.update(ENVIRONMENT)
try:
    from tests.netns import verify
    code = verify.main()
except BaseException as error:
    traceback.print_exc(file=sys.stdout)
    code = repr(error)
print("DONE", code, flush=True)
libc.reboot(0x4321FEDC)  # RB_POWER_OFF
"""
DONE = re.compile(r"^DONE (.*?)\s*$", re.MULTILINE)
WITHIN = 300.0  # seconds
EXIT_REFUSED, EXIT_NONE = 1, 3
LOADER = (Path("/etc/ld.so.cache"), Path("/lib64/ld-linux-x86-64.so.2"))
LINKS = (Path("/lib"), Path("/lib64"))


@dataclass(frozen=True)
class Image:
    """A kernel, and the package that it is from."""

    package: str
    vmlinuz: Path


def newest(branch: str) -> str | None:
    """The newest cloud kernel of a branch that this machine's apt knows."""
    start = f"linux-image-{branch}."
    told = subprocess.run(("apt-cache", "pkgnames", start), capture_output=True, text=True, check=False).stdout
    found = [name for name in told.split() if name.endswith("-cloud-amd64")]
    return max(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], default=None)


def fetch(package: str) -> Image:
    """The kernel of a package, from the cache where it is there. Raises KernelError."""
    folder = cache() / "kernels" / package
    folder.parent.mkdir(exist_ok=True)
    with alone(folder.parent / f"{package}.lock", print):
        found = list(folder.glob("vmlinuz-*"))
        if not found:
            with tempfile.TemporaryDirectory() as name:
                _run("apt-get", "download", "-q", package, cwd=Path(name))
                (archive,) = Path(name).glob("*.deb")
                _run("dpkg-deb", "-x", str(archive), name)
                folder.mkdir(parents=True, exist_ok=True)
                for image in Path(name, "boot").glob("vmlinuz-*"):
                    image.rename(folder / f".{image.name}")
                    (folder / f".{image.name}").rename(folder / image.name)
            found = list(folder.glob("vmlinuz-*"))
    if not found:
        raise KernelError(f"{package} has no kernel in it")
    return Image(package, found[0])


def files() -> list[Path]:
    """Return the files that loading the objects used on this machine's kernel. Raises KernelError."""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        (sys.executable, "-c", LOOK), env=environment, capture_output=True, text=True, check=False, cwd=REPO
    )
    if done.returncode:
        raise KernelError(f"this machine's own kernel refuses the objects: {done.stdout}{done.stderr}")
    used = [Path(line) for line in done.stderr.splitlines() if line.startswith("/") and Path(line).is_file()]
    used += [name for path in used if ".so" in path.name for name in _names(path)]
    return [*used, Path(os.path.realpath(sys.executable)), *(REPO / "build/ebpf").glob("*.o"), *LOADER]


def _names(library: Path) -> Iterator[Path]:
    """The links by which programs ask for a library."""
    yield from (link for link in library.parent.glob("*.so*") if link.is_symlink() and link.resolve() == library)


def archive(paths: Iterable[Path], init: str) -> bytes:
    """An initramfs (cpio "newc": the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)."""
    entries: dict[str, tuple[int, bytes]] = {}
    for path in paths:
        _add(entries, path)
    for link in filter(Path.is_symlink, LINKS):
        entries[str(link)] = (stat.S_IFLNK | 0o777, bytes(link.readlink()))
    for folder in ("/proc", "/sys", "/dev", "/tmp", "/run"):  # noqa: S108 - the guest's own
        entries[folder] = (stat.S_IFDIR | 0o755, b"")
    entries["/init"] = (stat.S_IFREG | 0o755, init.encode())
    return b"".join(_records(entries))


def _add(entries: dict[str, tuple[int, bytes]], path: Path) -> None:
    """A file with its folders, and the links on the way to it."""
    for parent in reversed(path.parents[:-1]):
        if parent.is_symlink():
            entries[str(parent)] = (stat.S_IFLNK | 0o777, bytes(parent.readlink()))
            _add(entries, parent.resolve() / path.relative_to(parent))
            return
        entries[str(parent)] = (stat.S_IFDIR | 0o755, b"")
    if path.is_symlink():
        entries[str(path)] = (stat.S_IFLNK | 0o777, bytes(path.readlink()))
        _add(entries, path.parent / path.readlink())
    else:
        entries[os.path.normpath(path)] = (stat.S_IFREG | 0o755, path.read_bytes())


def _records(entries: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    for number, (name, (mode, data)) in enumerate(sorted(entries.items())):
        yield _record(number + 1, name.lstrip("/"), mode, data)
    yield _record(0, "TRAILER!!!", 0, b"")


def _record(number: int, name: str, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def boot(image: Image, initramfs: Path) -> tuple[str, str]:
    """Return what the guest says, and the exit code that it ended with, in its words. Raises KernelError."""
    argv = (
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,-cx16", "-smp", "1", "-m", "1024",
        "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.vmlinuz), "-initrd", str(initramfs), "-append", "console=ttyS0 quiet panic=-1",
    )  # fmt: skip
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=WITHIN,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise KernelError(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{image.package}: not done within {WITHIN:.0f} s") from error
    said = DONE.search(done.stdout)
    if not said:
        raise KernelError(f"{image.package}: the guest crashed\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout[: said.start()].replace("\r", ""), said[1]


def _run(*argv: str, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"{shlex.join(argv)} failed: {done.stderr.strip()[-500:]}")


def main() -> int:
    """Exit codes: 0 all kernels that there are take all objects, 1 one refuses, 3 no kernel or no guest."""
    init = INIT.replace("PYTHON", os.path.realpath(sys.executable)).replace("PATHS", repr([str(REPO), *sys.path]))
    init = init.replace("ENVIRONMENT", repr({"PYTHONDONTWRITEBYTECODE": "1"}))
    refused, tried = [], 0
    try:
        with tempfile.TemporaryDirectory() as name:
            initramfs = Path(name) / "initramfs"
            initramfs.write_bytes(gzip.compress(archive(files(), init), 1))
            for branch in BRANCHES:
                package = newest(branch)
                if package is None:
                    print(f"Linux {branch}: skipped, this machine's apt has no cloud kernel of it\n", flush=True)
                    continue
                tried += 1
                began = time.monotonic()
                text, code = boot(fetch(package), initramfs)
                print(f"{text.strip()}\n{package}: {time.monotonic() - began:.0f} s\n", flush=True)
                if code != "0":
                    refused.append(f"{package}: {code}")
    except KernelError as error:
        print(error, file=sys.stderr)
        return EXIT_NONE
    for one in refused:
        print(f"REFUSED by {one}", file=sys.stderr)
    return EXIT_REFUSED if refused else 0 if tried else EXIT_NONE


if __name__ == "__main__":
    sys.exit(main())
