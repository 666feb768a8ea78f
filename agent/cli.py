"""testcni-agent: read the options and run the agent until a signal or a failure."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import replace

from agent import config
from agent import log as logs
from agent.app import Agent
from agent.config import ConfigError, GraceTimes
from agent.host.run_dir import Lock
from agent.modes.registry import BUILT_IN, Modes
from agent.runtime import malloc

EXIT_FAILED, EXIT_USAGE, EXIT_BUSY = 1, 2, 3

log = logging.getLogger("agent")


def main(
    argv: list[str] | None = None,
    modes: Modes = BUILT_IN,
    grace: GraceTimes = GraceTimes(),  # noqa: B008 - it is frozen
) -> int:
    """Run an agent with these modes.

    Return the exit code: 0 stopped, 1 failed, 2 wrong options, 3 another agent serves on the run-dir.
    """
    malloc.use_one_arena()  # before there are threads
    try:
        conf = config.load(sys.argv[1:] if argv is None else argv, os.environ, modes.agent_options)
        conf = replace(conf, grace=grace)
        logs.set_up(conf.log_level)
        agent = Agent(conf, Lock(conf.run_dir), modes)
    except ConfigError as error:
        print(f"testcni-agent: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    except BlockingIOError:
        print(f"testcni-agent: another agent serves on {conf.run_dir}", file=sys.stderr)  # noqa: T201
        return EXIT_BUSY
    except OSError as error:
        print(f"testcni-agent: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    agent.stop_on(signal.SIGTERM, signal.SIGINT)
    try:
        agent.run()
    except OSError:
        log.exception("the agent cannot start")
        return EXIT_FAILED
    return EXIT_FAILED if agent.failed else 0
