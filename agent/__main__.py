"""`python -m agent` is testcni-agent."""

import sys

from agent.cli import main

sys.exit(main())
