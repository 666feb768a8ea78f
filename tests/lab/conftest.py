"""Nodes are namespaces and mounts: without root there is no lab."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if "lab" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="the lab's namespaces and mounts need root"))
