"""The demo, as a person runs it, with the devices that this kernel has."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.lab.space import REPO


@pytest.mark.parametrize("mode", ["ipip", "ipvlan", "macvlan", "vxlan", "host-gw"])
def test_every_pair_is_reached(mode: str) -> None:
    argv = [sys.executable, "-m", "tests.lab", "demo", "--nodes", "3", "--mode", mode, "-o", "json"]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reaches = json.loads(done.stdout)
    assert len(reaches) == 6 * 7
    assert [reach for reach in reaches if reach["ms"] is None] == []
