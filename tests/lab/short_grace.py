"""The agent as it is, but for shorter grace times: `python -m tests.lab.short_grace`."""

from __future__ import annotations

import sys

from agent import cli
from agent.config import GraceTimes
from tests.lab.space import PATIENCE

GRACE = GraceTimes(mode=4.0 * PATIENCE, daemon=1.0)

if __name__ == "__main__":
    sys.exit(cli.main(grace=GRACE))
