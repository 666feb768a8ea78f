"""The real Kubernetes programs, built from their Go modules once a machine: 7 minutes cold on two cores."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.lab.gotools import THRICE, NoGoError

VERSION = "v1.37.2"
STAGING = VERSION.replace("v1", "v0", 1)  # the version under which Kubernetes' parts are published
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "kube-proxy")
STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
BUILD_WITHIN = 1800.0  # seconds


def build(*names: str, say: Callable[[str], None] = lambda _text: None) -> Path:
    """The folder that has these programs, all of PROGRAMS without names. Raises NoGoError."""
    go = shutil.which("go")
    if go is None:
        raise NoGoError("there is no go on the PATH")
    toolchain = _run([go, "version"], Path("/"))
    digest = hashlib.sha256(f"{toolchain}{VERSION}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testcni" / f"kube-{digest}"
    missing = [name for name in names or PROGRAMS if not (folder / name).exists()]
    if missing:
        module = _module(go, folder)
        for name in missing:
            say(f"building {name} {VERSION}")
            _run(
                [
                    go,
                    "build",
                    "-trimpath",
                    "-ldflags",
                    _flags(),
                    "-o",
                    f"{folder}/.{name}",
                    f"k8s.io/kubernetes/cmd/{name}",
                ],
                module,
            )
            (folder / f".{name}").rename(folder / name)
    return folder


def _module(go: str, folder: Path) -> Path:
    """A module that requires Kubernetes; its own go.mod can't be used, as it replaces its parts by folders."""
    module = folder / "module"
    if (module / "go.sum").exists():
        return module
    module.mkdir(parents=True, exist_ok=True)
    _run([str(THRICE), go, "mod", "download", f"k8s.io/kubernetes@{VERSION}"], Path("/"))
    cache = Path(_run([go, "env", "GOMODCACHE"], Path("/")).strip())
    original = (cache / f"cache/download/k8s.io/kubernetes/@v/{VERSION}.mod").read_text()
    parts = re.findall(r"(k8s\.io/[a-z-]+) => \./staging", original)
    language = re.search(r"^go (\S+)", original, re.MULTILINE)
    lines = [
        "module testcni/kube",
        f"go {language[1] if language else '1.26'}",
        *(f"tool k8s.io/kubernetes/cmd/{name}" for name in PROGRAMS),
        f"require k8s.io/kubernetes {VERSION}",
        *(f"replace {part} => {part} {STAGING}" for part in parts),
    ]
    (module / "go.mod").write_text("\n".join(lines) + "\n")
    _run([str(THRICE), go, "mod", "tidy"], module)
    return module


def _flags() -> str:
    values = {"gitVersion": VERSION, "gitMajor": "1", "gitMinor": VERSION.split(".")[1], "gitTreeState": "clean"}
    stamps = [f"-X {package}.{name}={value}" for package in STAMPED for name, value in values.items()]
    return " ".join(["-s -w", *stamps])


def _run(argv: list[str], folder: Path) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_WITHIN
    )
    if done.returncode:
        raise NoGoError(f"{' '.join(argv[:3])} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        build(say=print)
    except NoGoError as error:
        sys.exit(f"Kubernetes can't be built: {error}")
