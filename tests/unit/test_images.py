"""Which archive of our image a cluster's nodes import, where several clones share the folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import images


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Two clones with images of their own, the second one's older."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "_busybox", list)
    found = [tmp_path / name for name in ("one", "two")]
    for clone in found:
        (clone / "build").mkdir(parents=True)
        (clone / "build/testcni.tar").write_text(clone.name)
    os.utime(found[1] / "build/testcni.tar", (1, 1))
    yield found
    images.archives.cache_clear()


def imported(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    images.archives.cache_clear()
    monkeypatch.setattr(images, "REPO", clone)
    (archive,) = images.archives()
    return archive


def test_each_clone_gets_its_own_image(clones: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    archives = [imported(clone, monkeypatch) for clone in clones]
    assert [archive.read_text() for archive in archives] == ["one", "two"]


def test_a_copy_stays_while_a_run_may_want_it_and_no_longer(
    clones: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = clones
    first = imported(one, monkeypatch)
    os.utime(first, (time.time() - images.KEPT + 60,) * 2)
    second = imported(two, monkeypatch)
    assert first.exists()
    os.utime(first, (time.time() - images.KEPT - 60,) * 2)
    imported(two, monkeypatch)
    assert second.exists()
    assert not first.exists()
    assert imported(one, monkeypatch).read_text() == "one"


def test_an_image_that_is_not_there_is_named(clones: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (clones[0] / "build/testcni.tar").unlink()
    with pytest.raises(images.ImageError, match="make image"):
        imported(clones[0], monkeypatch)
