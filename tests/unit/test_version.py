"""The version is in agent/__init__.py only; package, plugin, image and changelog follow it, as build_info does."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable

import pytest

import agent
from agent import cli, ctl, uninstall
from tests.lab.space import REPO
from tests.unit.plugin import Builds


def test_it_is_semantic() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9a-z.]+)?", agent.__version__)


def test_the_package_takes_it_from_there() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "agent.__version__"}


def test_the_plugin_says_it() -> None:
    done = subprocess.run([Builds.kept().plugin, "--version"], env={}, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"testcni {agent.__version__}, ")


@pytest.mark.parametrize("program", [cli.main, ctl.main, uninstall.main])
def test_each_program_says_it(program: Callable[..., object], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"testcni {agent.__version__}\n")


def test_the_image_is_labelled_with_it() -> None:
    recipe = (REPO / "Makefile").read_text()
    assert "--label org.opencontainers.image.version=$$($(MAKE) -s -C cni-bin version)" in recipe
    says = ["make", "-s", "-C", str(REPO / "cni-bin"), "version"]
    done = subprocess.run(says, capture_output=True, text=True, check=True)
    assert done.stdout == f"{agent.__version__}\n"


@pytest.mark.parametrize(
    "file", ["pyproject.toml", "Makefile", "Dockerfile", "cni-bin/Makefile", "manifests/testcni.yaml"]
)
def test_no_other_file_has_a_copy(file: str) -> None:
    assert not re.search(rf"(?<![\d.]){re.escape(agent.__version__)}(?![\d.])", (REPO / file).read_text())


def test_the_changelog_knows_it() -> None:
    """It is a release of its own there, or the one that is being made."""
    sections = re.split(r"^## ", (REPO / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    assert sections[0].startswith("[Unreleased]\n")
    released = [section for section in sections if section.startswith(f"[{agent.__version__}] - ")]
    assert released or f"will be released as {agent.__version__}." in sections[0]
