"""Upstream's e2e suite and what its cases run, built from their Go modules once a machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.built import Say, alone, cache
from tests.e2e import images, programs
from tests.lab import gotools
from tests.lab.space import REPO

HERE = Path(__file__).parent
SUITE, GINKGO, AGNHOST, CASES = "e2e.test", "ginkgo", "agnhost", "conformance.yaml"
TOOLS = {GINKGO: "github.com/onsi/ginkgo/v2/ginkgo", AGNHOST: "k8s.io/kubernetes/test/images/agnhost"}
CERTIFICATE = ("localhost.crt", "localhost.key")  # of agnhost's porter
IMAGE = "localhost/testcni-conformance:dev"
NAMES = ("agnhost", "glibc-dns-testing", "pause")  # what the cases call it
BASE = os.environ.get("BASE", "localhost/debian:bookworm")


def suite(say: Say = lambda _text: None) -> Path:
    """The folder with upstream's suite, its runner, agnhost and the list of cases. Raises NoGoError."""
    sources = [HERE / "suite"]
    content = [path.read_text() for source in sources for path in sorted(source.iterdir())]
    folder = cache() / f"suite-{programs.digest(*content, *TOOLS.values())}"
    wanted = (*TOOLS, SUITE, *CERTIFICATE, CASES)
    if programs.missing(folder, wanted):
        with alone(folder.with_suffix(".lock"), say):
            module = programs.module(folder / "module", list(TOOLS.values()), sources)
            for name in programs.missing(folder, wanted):
                say(f"building {name} {programs.VERSION}")
                _make(name, folder, module)
    return folder


def _make(name: str, folder: Path, module: Path) -> None:
    if name == SUITE:
        programs.compiled(["test", "-c"], "./suite", folder / name)
    elif name in TOOLS:
        programs.compiled(["build"], TOOLS[name], folder / name)
    else:
        listed = [programs.go(), "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]
        where = "test/conformance/testdata" if name == CASES else "test/images/agnhost/porter"
        shutil.copyfile(Path(programs.run(listed, module).strip()) / where / name, folder / name)


def archive(say: Say = lambda _text: None) -> Path:
    """The archive of the image, to be imported by each node. Raises NoGoError, ImageError."""
    dns = gotools.from_source(HERE / "coredns")
    files = [*(suite(say) / name for name in (AGNHOST, *CERTIFICATE)), dns]
    text = (HERE / "Dockerfile").read_text()
    digest = hashlib.sha256("".join([text, BASE, *map(str, files)]).encode()).hexdigest()[:16]
    path = images.folder() / f"conformance-{digest}.tar"
    if not path.exists():
        with alone(path.with_suffix(".lock"), say):
            if not path.exists():
                say("building the image of the Conformance cases")
                _image(files, path)
    return path


def _image(files: Sequence[Path], path: Path) -> None:
    if BASE.startswith("localhost/"):
        images.run(str(REPO / "tests/image/base.sh"), BASE)
    with tempfile.TemporaryDirectory(dir=images.folder()) as folder:
        for file in (*files, HERE / "Dockerfile"):
            shutil.copy2(file, folder)
        options = ("--quiet", "--isolation", "chroot", "--network", "host", "--build-arg", f"BASE={BASE}")
        images.run(str(gotools.THRICE), "buildah", "build", *options, "-t", IMAGE, folder)
        unfinished = Path(folder) / "new.tar"
        images.run("buildah", "push", "--quiet", IMAGE, f"docker-archive:{unfinished}:{IMAGE}")
        unfinished.rename(path)


def names() -> list[str]:
    """Return what the cases call the image. Raises NoGoError."""
    argv = [str(suite() / SUITE), "--list-images"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    return [one for one in listed if one.rpartition("/")[2].partition(":")[0] in NAMES]


if __name__ == "__main__":
    try:
        archive(print)
    except (gotools.NoGoError, images.ImageError) as error:
        sys.exit(f"the Conformance cases can't be built: {error}")
