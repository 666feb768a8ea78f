"""The images that the nodes have: ours, and one of busybox with a pause program; no registry is needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

from tests import built
from tests.lab.space import REPO

PAUSE = "localhost/pause:1"
BUSYBOX = "docker.io/library/busybox:1.37"
TESTCNI = "localhost/testcni:dev"
BUSYBOX_BINARY = Path("/bin/busybox")
WITHIN = 1200.0  # seconds, for a step of a build: CI builds beside its tests
KEPT = 3600.0  # seconds: longer than any run that may still want a copy
SOURCE = r"""
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int s) { _exit(0); }
static void reap(int s) { while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGTERM, leave); signal(SIGINT, leave); signal(SIGCHLD, reap); for (;;) pause(); }
"""
DOCKERFILE = """FROM scratch
COPY pause /pause
COPY bin /bin
COPY tmp /tmp
ENV PATH=/bin
ENTRYPOINT ["/pause"]
"""


class ImageError(RuntimeError):
    """An image is not there or can't be built; says which."""


def folder() -> Path:
    """Return where image archives are on this machine."""
    path = built.cache() / "images"
    path.mkdir(exist_ok=True)
    return path


@cache
def archives() -> list[Path]:
    """The archives to import into containerd. Raises ImageError."""
    ours = REPO / "build/testcni.tar"
    if not ours.exists():
        raise ImageError(f"{ours} is not there: make image")
    with built.alone(folder() / "lock", print):
        return [_copy(ours), *_busybox()]


def _copy(ours: Path) -> Path:
    """A copy by content: other clones have other images, and `make image` replaces the original beside a run."""
    with ours.open("rb") as file:
        copy = folder() / f"testcni-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.tar"
    if copy.exists():
        copy.touch()
    else:
        shutil.copyfile(ours, copy.with_suffix(".new"))
        copy.with_suffix(".new").rename(copy)
    for other in folder().glob("testcni-*.tar"):
        if other.stat().st_mtime < time.time() - KEPT:
            other.unlink()
    return copy


def _busybox() -> list[Path]:
    """One image under two names: what a sandbox holds, and what the tests run."""
    digest = hashlib.sha256(SOURCE.encode() + DOCKERFILE.encode() + BUSYBOX_BINARY.read_bytes()).hexdigest()[:16]
    archives = {name: folder() / f"{name.rpartition('/')[2]}-{digest}.tar" for name in (PAUSE, BUSYBOX)}
    if all(archive.exists() for archive in archives.values()):
        return list(archives.values())
    context = folder() / f"context-{os.getpid()}"
    shutil.rmtree(context, ignore_errors=True)
    (context / "bin").mkdir(parents=True)
    (context / "tmp").mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    run("gcc", "-O2", "-static", "-x", "c", "-o", str(context / "pause"), "-", stdin=SOURCE)
    shutil.copy2(BUSYBOX_BINARY, context / "bin/busybox")
    for name in run(str(BUSYBOX_BINARY), "--list").split():
        if name != "busybox":
            (context / "bin" / name).symlink_to("busybox")
    run("buildah", "build", "-q", "--isolation", "chroot", "-t", PAUSE, str(context))
    run("buildah", "tag", PAUSE, BUSYBOX)
    for name, archive in archives.items():
        run("buildah", "push", "-q", name, f"docker-archive:{context}/new.tar:{name}")
        (context / "new.tar").rename(archive)
    shutil.rmtree(context)
    return list(archives.values())


def run(*argv: str, stdin: str | None = None) -> str:
    """Return what a command prints. Raises ImageError."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=WITHIN)
    if done.returncode:
        raise ImageError(f"{' '.join(argv[:3])} failed: {done.stderr.strip()[-1000:]}")
    return done.stdout
