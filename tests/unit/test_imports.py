"""What an agent without a cluster need not pay for."""

from __future__ import annotations

import subprocess
import sys

from tests.lab.space import REPO

SCRIPT = "import sys, agent.app; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def test_an_agent_without_a_cluster_does_not_load_the_kubernetes_client() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pyroute2" in loaded
    assert not loaded & {"kubernetes", "pydantic", "requests", "urllib3"}, "they take 0.4 s and 20 MiB"
