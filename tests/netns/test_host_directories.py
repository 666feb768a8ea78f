"""A folder that the host removed behind its mount is noticed on every file system that nodes have."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from agent.host.host_directories import HostDirectories, removed
from agent.model.problem_board import PartProblems
from agent.runtime.shutdown import MustEndError
from tests.netns.node import CLONE_NEWNS, command


def mounted(kind: str, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of the host on a file system of a kind, with a file; and where a container has it mounted."""
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0
    command("mount", "--make-rprivate", "/")
    root = tmp_path / "root"
    root.mkdir()
    command("mount", "-t", "tmpfs", "none", str(root))
    parts = {name: root / name for name in ("lower", "upper", "work", "merged")}
    for path in parts.values():
        path.mkdir()
    host = parts["merged"] / "net.d"
    (parts["lower"] / "net.d").mkdir()  # of two layers
    (parts["lower"] / "net.d/of-the-image").touch()
    if kind == "overlay":
        options = ",".join(f"{name}dir={parts[name]}" for name in ("lower", "upper", "work"))
        command("mount", "-t", "overlay", "none", "-o", options, str(parts["merged"]))
    host.mkdir(exist_ok=True)
    (host / "conflist").touch()
    inside = tmp_path / "inside"
    inside.mkdir()
    command("mount", "--bind", str(host), str(inside))
    return host, inside


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_folder_that_is_made_again_behind_its_mount_ends_the_agent(tmp_path: Path, kind: str) -> None:
    host, inside = mounted(kind, tmp_path)
    problems = PartProblems("host-directories")
    watched = HostDirectories({"--conf-dir": inside}, problems)
    watched.once()
    for path in host.iterdir():
        path.unlink()
    watched.once()  # an empty folder is none that was removed
    assert not problems.get()
    shutil.rmtree(host)
    host.mkdir()
    with pytest.raises(MustEndError, match=r"--conf-dir\) was removed on the host"):
        watched.once()
    assert not removed(host)
    assert not removed(tmp_path / "nowhere")
