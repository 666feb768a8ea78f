"""An agent ends when it is told to, whichever thread hears of it and whatever the main thread is at."""

from __future__ import annotations

import subprocess
import sys

import pytest

TOLD = """
import os, signal, threading
from agent.runtime.shutdown import Shutdown

ending = Shutdown()
ending.on(signal.SIGTERM)
{told}
ending.wait()
print("ended")
"""
BY_ANOTHER_THREAD = """
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as when the kernel chooses another thread
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
"""
EARLY = "os.kill(os.getpid(), signal.SIGTERM)"
BY_A_PART = "threading.Timer(0.2, ending.now).start()"
MANY_TIMES = "for _ in range(100_000): ending.now()"


@pytest.mark.parametrize("told", [BY_ANOTHER_THREAD, EARLY, BY_A_PART, MANY_TIMES])
def test_an_agent_ends_when_it_is_told_to(told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOLD.format(told=told)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "ended\n", done.stderr
