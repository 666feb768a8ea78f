"""The guest of `make ebpf-kernels`: its file system holds what it should, links included."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import verifier


def listed(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Modes and contents by name of a cpio archive."""
    found: dict[str, tuple[int, bytes]] = {}
    while True:
        assert data[:6] == b"070701"
        fields = [int(data[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[110 : 110 + length - 1].decode()
        start = (110 + length + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[f"/{name}"] = (mode, data[start : start + size])
        data = data[(start + size + 3) & ~3 :]


def test_a_file_comes_with_its_folders_and_the_links_on_the_way(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "lib.so.1.2").write_bytes(b"library")
    (real / "lib.so.1").symlink_to("lib.so.1.2")
    (tmp_path / "alias").symlink_to("real")
    found = listed(verifier.archive([tmp_path / "alias/lib.so.1"], "#!/bin/init\n"))
    assert found[str(tmp_path / "alias")] == (stat.S_IFLNK | 0o777, b"real")
    assert found[str(real)][0] == stat.S_IFDIR | 0o755
    assert found[str(real / "lib.so.1")] == (stat.S_IFLNK | 0o777, b"lib.so.1.2")
    assert found[str(real / "lib.so.1.2")] == (stat.S_IFREG | 0o755, b"library")
    assert found["/init"] == (stat.S_IFREG | 0o755, b"#!/bin/init\n")


def test_the_newest_kernel_of_a_branch_and_of_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"linux-image-{name}" for name in (
        "6.1.0-9-cloud-amd64", "6.1.0-53-cloud-amd64", "6.1.0-56-amd64", "6.1.0-54-cloud-amd64-unsigned",
    )]  # fmt: skip

    def apt(argv: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        told = [name for name in names if name.startswith(argv[-1])]
        return subprocess.CompletedProcess(argv, 0, "\n".join(told))

    monkeypatch.setattr(subprocess, "run", apt)
    assert verifier.newest("6.1") == "linux-image-6.1.0-53-cloud-amd64"
    assert verifier.newest("6.12") is None
