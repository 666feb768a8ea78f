"""Nodes are namespaces and mounts: without root there is no lab. Tests of every mode share their nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.agents import ForkedAgent
from tests.lab.lab import Lab, LabNode, lab
from tests.lab.paths import WAYS, Way


def pytest_configure() -> None:
    LabNode.AGENT = ForkedAgent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if "lab" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="the lab's namespaces and mounts need root"))


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.name)
def way(request: pytest.FixtureRequest) -> Way:
    """A mode that this machine can do."""
    found: Way = request.param
    if found.lacks:
        pytest.skip(found.lacks)
    return found


@pytest.fixture(scope="module")
def shared(way: Way) -> Iterator[Lab]:
    """Three nodes for many tests, as nodes take longer than most of them."""
    with lab(3, conf=way.conf, program=way.program) as it:
        if way.name == "ipip":
            it.wait_converged()
        yield it


@pytest.fixture
def three(shared: Lab) -> Iterator[Lab]:
    """The nodes without a pod."""
    yield shared
    shared.tidy()
