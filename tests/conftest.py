"""The environment of all tests: whatever calls pytest, programs that a test starts find this clone's packages."""

from __future__ import annotations

import os

from tests.lab.space import REPO

os.environ["PYTHONPATH"] = str(REPO)  # an absolute one: programs are started in other folders and roots, too
