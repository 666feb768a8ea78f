"""`python -m agent` is testcni-agent."""

import sys

from agent.app import main

sys.exit(main())
