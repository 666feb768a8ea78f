"""These tests are of the guest's kernel; this machine's may lack what they use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kernel.nets import Nets
from tests.lab.space import GUEST


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if GUEST not in os.environ:
        for item in items:
            if "kernel" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="for the guest of `make test-kernel`"))


@pytest.fixture
def nets() -> Iterator[Nets]:
    with Nets() as it:
        yield it
