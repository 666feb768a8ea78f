"""What an agent does not load before it needs it."""

from __future__ import annotations

import subprocess
import sys

from tests.lab.space import REPO

SCRIPT = "import sys, agent.app; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def test_an_agent_loads_what_it_uses_only() -> None:
    """The Kubernetes client (0.4 s, 20 MiB) in a cluster, pyroute2 (0.3 s, 11 MiB) to make or change a bridge."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tenacity" in loaded
    assert not loaded & {"kubernetes", "pydantic", "requests", "urllib3", "pyroute2"}
