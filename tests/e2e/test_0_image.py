"""The image: small, without a compiler, and with what it says."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from agent import __version__
from tests.lab.space import REPO

ARCHIVE = REPO / "build/testcni.tar"
PACKED = 120  # MB
CHUNK = 1 << 20


@pytest.fixture(scope="module")
def archive() -> Iterator[tarfile.TarFile]:
    with tarfile.open(ARCHIVE) as it:
        yield it


def document(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.extractfile(name)
    assert member
    return json.load(member)


def files(archive: tarfile.TarFile) -> set[str]:
    names: set[str] = set()
    for layer in document(archive, "manifest.json")[0]["Layers"]:
        member = archive.extractfile(layer)
        with tarfile.open(fileobj=member) as inner:
            names.update(inner.getnames())
    return names


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
    assert "Healthcheck" not in config, "probes are Kubernetes'"
