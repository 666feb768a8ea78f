"""The memory of an agent: all its threads allocate in one arena."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, threading
from agent.runtime import malloc
if {once}:
    malloc.use_one_arena()
kept, ready = [], threading.Barrier(9)
def allocate():
    kept.append(bytearray(2000))  # too large for Python's own allocator
    ready.wait()
for _ in range(8):
    threading.Thread(target=allocate).start()
ready.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.parametrize("once", [True, False])
def test_threads_share_an_arena(once: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(once=once)], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout.count("<heap nr=") == 1) == once
