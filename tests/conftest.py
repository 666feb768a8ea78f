"""The environment of all tests: whatever calls pytest, programs that a test starts find this clone's packages."""

from __future__ import annotations

import os

import pytest

from tests.lab.space import REPO

os.environ["PYTHONPATH"] = str(REPO)  # an absolute one: programs are started in other folders and roots, too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side (xdist's loadgroup), those that share a module's fixture stay together."""
    for item in items:
        if isinstance(item, pytest.Function) and (shared := _shared(item)):
            item.add_marker(pytest.mark.xdist_group(" ".join([item.path.name, *shared])))


def _shared(item: pytest.Function) -> list[str]:
    """The module's fixtures that a test uses, each with its parameter."""
    definitions = item._fixtureinfo.name2fixturedefs
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return [
        f"{name} {getattr(parameters.get(name), 'name', parameters.get(name, ''))}"
        for name in sorted(definitions)
        if definitions[name][-1].scope == "module"
    ]
