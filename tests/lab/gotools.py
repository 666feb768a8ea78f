"""CNI's own tools, built from their Go modules once a machine: cnitool and the reference plugins."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.lab.space import REPO

CNITOOL = "github.com/containernetworking/cni/cnitool@v1.3.1"
PLUGINS = "github.com/containernetworking/plugins"
PLUGINS_VERSION = "v1.9.1"
REFERENCE = ("main/bridge", "ipam/host-local", "main/loopback", "meta/portmap", "meta/bandwidth", "meta/tuning")
THRICE = REPO / "tests/thrice.sh"
BUILD_WITHIN = 1800.0  # seconds; a cold module cache is downloaded first, and CI builds beside its tests


class NoGoError(RuntimeError):
    """There is no Go, or it can't build; says which."""


def cnitool() -> Path:
    """The path of libcni's cnitool. Raises NoGoError."""
    return _build([CNITOOL]) / "cnitool"


def reference_plugins() -> Path:
    """The folder of the reference plugins. Raises NoGoError."""
    return _build([f"{PLUGINS}/plugins/{name}@{PLUGINS_VERSION}" for name in REFERENCE])


def libcni() -> Path:
    """The path of a program that says what libcni makes of conf files. Raises NoGoError."""
    return from_source(Path(__file__).parent / "libcni")


def from_source(source: Path) -> Path:
    """The path of the program whose module is in a folder of this clone and named as that. Raises NoGoError."""
    content = "".join(path.read_text() for path in sorted(source.iterdir()))
    return _install(["."], content, source) / source.name


def module_program(module: Path, package: str) -> Path:
    """The path of a program, of the versions that a module's go.mod and go.sum say. Raises NoGoError."""
    content = "\n".join([package, *((module / name).read_text() for name in ("go.mod", "go.sum"))])
    return _install([package], content, module) / package.rpartition("/")[2]


def _build(packages: list[str]) -> Path:
    """A folder with the programs of these packages, named for their versions."""
    return _install(packages, "\n".join(packages), Path("/"))


def _install(packages: list[str], content: str, where: Path) -> Path:
    """A folder with the programs of these packages as seen from a folder, named for their content."""
    go = shutil.which("go")
    if go is None:
        raise NoGoError("there is no go on the PATH")
    version = subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256("\n".join([version, content]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testcni"
    folder = cache / f"go-{digest}"
    if folder.exists():
        return folder
    unfinished = folder.with_suffix(f".{os.getpid()}")
    environment = {**os.environ, "GOBIN": str(unfinished), "CGO_ENABLED": "0", "GOFLAGS": "-trimpath"}
    try:
        subprocess.run(
            [THRICE, go, "install", "-ldflags=-s -w", *packages],
            env=environment, capture_output=True, text=True, check=True, timeout=BUILD_WITHIN, cwd=where,
        )  # fmt: skip
    except subprocess.SubprocessError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise NoGoError(f"go install failed: {getattr(error, 'stderr', None) or error}") from error
    if folder.exists():  # somebody else was first
        shutil.rmtree(unfinished)
    else:
        unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    try:
        cnitool()
        reference_plugins()
        libcni()
    except NoGoError as error:
        print(f"some tests will be skipped: {error}")
