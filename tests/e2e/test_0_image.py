"""The image: small, without a compiler, and with what it says."""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from agent import __version__
from tests.lab.space import REPO
from tests.unit.test_licences import DUAL

ARCHIVE = REPO / "build/testcni.tar"
PACKED = 120  # MB
CHUNK = 1 << 20
DOC = "usr/share/doc"


@pytest.fixture(scope="module")
def archive() -> Iterator[tarfile.TarFile]:
    with tarfile.open(ARCHIVE) as it:
        yield it


def document(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.extractfile(name)
    assert member
    return json.load(member)


def layers(archive: tarfile.TarFile) -> Iterator[tarfile.TarFile]:
    for layer in document(archive, "manifest.json")[0]["Layers"]:
        with tarfile.open(fileobj=archive.extractfile(layer)) as inner:
            yield inner


def files(archive: tarfile.TarFile) -> set[str]:
    return {name for layer in layers(archive) for name in layer.getnames()}


def text(archive: tarfile.TarFile, name: str) -> str:
    """The file as the last layer that has it says."""
    found = [layer.extractfile(name) for layer in layers(archive) if name in layer.getnames()]
    assert found[-1]
    return found[-1].read().decode()


def test_it_is_small(archive: tarfile.TarFile) -> None:
    packed = 0
    for layer in document(archive, "manifest.json")[0]["Layers"]:
        member, packer = archive.extractfile(layer), zlib.compressobj(6)
        assert member
        while chunk := member.read(CHUNK):
            packed += len(packer.compress(chunk))
        packed += len(packer.flush())
    print(f"image: {ARCHIVE.stat().st_size / 1e6:.0f} MB, {packed / 1e6:.0f} MB packed")
    assert packed < PACKED * 1e6


def test_it_has_what_it_needs_and_no_compiler(archive: tarfile.TarFile) -> None:
    names = files(archive)
    programs = {name.rpartition("/")[2] for name in names if "/bin/" in name or "/sbin/" in name}
    assert {
        "testcni-agent",
        "testcnictl",
        "testcni-uninstall",
        "testcni",
        "portmap",
        "nft",
        "bird",
        "birdc",
        "ip",
    } <= programs
    assert not programs & {"gcc", "cc", "clang", "ld", "pip", "make"}
    assert any(name.endswith("opt/testcni/ebpf/veth_ingress.o") for name in names)
    assert any(name.endswith("site-packages/agent/cli.py") for name in names), "not a link to a clone"


def test_it_says_what_it_is(archive: tarfile.TarFile) -> None:
    config = document(archive, document(archive, "manifest.json")[0]["Config"])["config"]
    assert config["Entrypoint"] == ["testcni-agent"]
    assert config["Labels"]["org.opencontainers.image.title"] == "testcni"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert config["Labels"]["org.opencontainers.image.licenses"] == f"Apache-2.0 AND ({DUAL})"
    assert "Healthcheck" not in config, "probes are Kubernetes'"


def test_it_has_the_licence_of_each_part(archive: tarfile.TarFile) -> None:
    names, listed = files(archive), text(archive, f"{DOC}/testcni/THIRD_PARTY.md")
    links = {
        member.name: f"{DOC}/{member.linkname}"
        for layer in layers(archive)
        for member in layer
        if member.issym() and member.name.startswith(DOC)
    }
    debian = re.findall(r"^Package: (\S+)$", text(archive, "var/lib/dpkg/status"), re.MULTILINE)
    python = {name.rpartition("/")[0] for name in names if name.endswith(".dist-info/METADATA")}
    assert {"bird2", "libc6", "libgcc-s1", "nftables", "python3.11-minimal"} <= set(debian)
    for package in debian:
        folder = f"{DOC}/{package}"
        assert f"{links.get(folder, folder)}/copyright" in names, package
        assert f"| {package} | " in listed
    assert len(python) > 20
    for folder in python:
        assert any(name.startswith(folder) and "LICENSE" in name for name in names), folder
        assert f"/{folder}/" in listed or "/testcni-" in folder
    linked = set(re.findall(rf" /({DOC}/testcni/linked/[^/]+/copyright) ", listed))
    assert linked == {name for name in names if re.fullmatch(rf"{DOC}/testcni/linked/[^/]+/copyright", name)}
    for part in ("containernetworking-plugins", "golang-1.", "golang-github-vishvananda-netlink"):
        assert any(f"/linked/{part}" in name for name in linked), part
    own = ("LICENSE", "LICENSES/GPL-2.0-only.txt", "LICENSES/BSD-2-Clause.txt")
    assert names >= {f"{DOC}/testcni/{name}" for name in own}
