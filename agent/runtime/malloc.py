"""Tell the C library how to allocate memory."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8  # malloc.h of glibc


def use_one_arena() -> None:
    """Let all threads allocate in one arena: Python runs one of them at a time, and each arena keeps freed memory.

    Without this, glibc makes up to eight arenas for each core (mallopt(3)). Another C library is left as it is.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)
