"""The plugin's binaries, built once a machine, and an agent for them to talk to."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.unit.plugin import Agent, Builds, Plugin
from tests.unit.properties import examples

# without a deadline: an example that takes long is the machine's doing
settings.register_profile("busy", deadline=None, max_examples=examples(100))
settings.load_profile("busy")


def pytest_collection_finish() -> None:
    """Let the garbage collector run seldom, and leave out what stays: to look at all takes 0.3 s each time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="session")
def builds() -> Builds:
    return Builds.kept()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "agent.sock")
    agent.start()
    yield agent
    agent.stop()


@pytest.fixture
def plugin(builds: Builds, tmp_path: Path) -> Plugin:
    return Plugin(builds.plugin, tmp_path)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log nothing, for tests of texts that no report of a test can hold."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
