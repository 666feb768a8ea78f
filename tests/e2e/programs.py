"""The real Kubernetes programs, built from their Go modules once a machine: 7 minutes cold on two cores."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.built import alone, cache
from tests.lab.gotools import THRICE, NoGoError, module_program

VERSION = "v1.37.2"
STAGING = VERSION.replace("v1", "v0", 1)  # the version under which Kubernetes' parts are published
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "kube-proxy")
STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
BUILD_WITHIN = 1800.0  # seconds
Say = Callable[[str], None]


def build(*names: str, say: Say = lambda _text: None) -> Path:
    """The folder that has these programs, all of PROGRAMS without names. Raises NoGoError."""
    folder = cache() / f"kube-{digest()}"
    names = names or PROGRAMS
    if missing(folder, names):
        with alone(folder.with_suffix(".lock"), say):
            module(folder / "module", [f"k8s.io/kubernetes/cmd/{name}" for name in PROGRAMS])
            for name in missing(folder, names):
                say(f"building {name} {VERSION}")
                compiled(["build"], f"k8s.io/kubernetes/cmd/{name}", folder / name)
    return folder


def multus() -> Path:
    """The path of Multus' thin plugin, of the version in multus/go.mod: 2 minutes cold. Raises NoGoError."""
    package = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus"
    return module_program(Path(__file__).parent / "multus", package)


def digest(*more: str) -> str:
    """Return a hash of what programs of this version depend on, and `more`. Raises NoGoError."""
    toolchain = run([go(), "version"], Path("/"))
    return hashlib.sha256("".join([toolchain, VERSION, *more]).encode()).hexdigest()[:16]


def missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Return those of the names that are not in the folder."""
    return [name for name in names if not (folder / name).exists()]


def module(folder: Path, tools: Sequence[str], sources: Sequence[Path] = ()) -> Path:
    """A module that requires Kubernetes, with folders of sources; Kubernetes' own replaces its parts by folders.

    Raises NoGoError.
    """
    if (folder / "go.sum").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
    run([str(THRICE), go(), "mod", "download", f"k8s.io/kubernetes@{VERSION}"], Path("/"))
    downloaded = Path(run([go(), "env", "GOMODCACHE"], Path("/")).strip())
    original = (downloaded / f"cache/download/k8s.io/kubernetes/@v/{VERSION}.mod").read_text()
    parts = re.findall(r"(k8s\.io/[a-z-]+) => \./staging", original)
    language = re.search(r"^go (\S+)", original, re.MULTILINE)
    lines = [
        "module testcni/kube",
        f"go {language[1] if language else '1.26'}",
        *(f"tool {tool}" for tool in tools),
        f"require k8s.io/kubernetes {VERSION}",
        *(f"replace {part} => {part} {STAGING}" for part in parts),
    ]
    (folder / "go.mod").write_text("\n".join(lines) + "\n")
    run([str(THRICE), go(), "mod", "tidy"], folder)
    return folder


def compiled(command: Sequence[str], package: str, program: Path) -> None:
    """Compile a package of the folder's module, by `go build` or `go test -c`. Raises NoGoError."""
    unfinished = program.with_name(f".{program.name}")
    options = ["-trimpath", "-ldflags", _flags(), "-o", str(unfinished)]
    run([go(), *command, *options, package], program.parent / "module")
    unfinished.rename(program)


def go() -> str:
    """The path of go. Raises NoGoError."""
    found = shutil.which("go")
    if found is None:
        raise NoGoError("there is no go on the PATH")
    return found


def run(argv: Sequence[str], folder: Path) -> str:
    """Return what a command of Go prints. Raises NoGoError."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_WITHIN
    )
    if done.returncode:
        raise NoGoError(f"{' '.join(argv[:3])} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _flags() -> str:
    values = {"gitVersion": VERSION, "gitMajor": "1", "gitMinor": VERSION.split(".")[1], "gitTreeState": "clean"}
    stamps = [f"-X {package}.{name}={value}" for package in STAMPED for name, value in values.items()]
    return " ".join(["-s -w", *stamps])


if __name__ == "__main__":
    try:
        build(say=print)
        print("building multus")
        multus()
    except NoGoError as error:
        sys.exit(f"Kubernetes or Multus can't be built: {error}")
